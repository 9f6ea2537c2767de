// The mixture of experts as a part of a model: the fused way against the general one, through layers of every kind, with
// gradients, alone and in a batch, recorded, and what it leaves behind.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import type { DType, Tensor } from "../../src/index.js";
import {
  capture,
  copyInto,
  dequantize4bit,
  LoraLinear,
  manualSeed,
  memory,
  nn,
  noGrad,
  tensor,
  tidy,
} from "../../src/index.js";
import { GatedMlp } from "../../src/models/parts/gated-mlp.js";
import { Experts } from "../../src/models/parts/moe.js";
import { testDevices } from "../helpers/devices.js";
import { relativeError } from "../helpers/expect-close.js";
import { normals } from "../helpers/random.js";
import type { ExpertMatrices } from "../reference/experts.js";
import { chooseExpertsReference, expertsSwigluReference } from "../reference/experts.js";

const [hidden, width, count, chosen] = [64, 96, 5, 2];

describe.each(testDevices())("Experts on %s", (device) => {
  const make = (values: ArrayLike<number>, shape: readonly number[], dtype: DType = "float32"): Tensor =>
    tensor(Float32Array.from(values), { shape, dtype, device });

  interface Options {
    isNormalized?: boolean;
    activation?: string;
    dtype?: DType;
  }
  const block = ({ isNormalized = true, activation = "silu", dtype = "float32" }: Options = {}): Experts => {
    manualSeed(3);
    const own = { experts: count, chosen, intermediateSize: width, isNormalized, activation };
    return new Experts(hidden, { device, dtype }, own, GatedMlp).eval();
  };
  const inFourBits = <M extends nn.Module>(module: M): M =>
    nn.replaceLinear(module, (k, n, bias) => new nn.LinearNF4(k, n, { bias, device }), {
      copyWeights: true,
      skipModules: [],
      predicate: (path, layer) => path !== "gate" && !(layer instanceof nn.Linear4bit),
    });

  const problem = (tokens: number, dtype: DType = "float32") => ({
    x: make(normals(tokens * hidden, 4), [tokens, hidden], dtype),
    residual: make(normals(tokens * hidden, 5), [tokens, hidden], dtype),
  });

  const floatsOf = (layer: nn.UnaryModule): Float32Array =>
    (layer instanceof nn.Linear4bit
      ? dequantize4bit(layer.quantize().weight, { quantState: layer.weight.quantState! })
      : (layer as nn.Linear).weight
    ).floatsSync();

  const oracle = (experts: Experts, x: Tensor, residual: Tensor, isNormalized = true): Float64Array => {
    const rows = x.floatsSync();
    const gate = floatsOf(experts.gate);
    const logits = Float64Array.from({ length: (rows.length / hidden) * count }, (_, i) => {
      const [row, e] = [Math.floor(i / count), i % count];
      let sum = 0;
      for (let k = 0; k < hidden; k++) sum += rows[row * hidden + k]! * gate[e * hidden + k]!;
      return sum;
    });
    const choice = chooseExpertsReference(logits, count, chosen, isNormalized);
    const weights = [...experts.experts].map(
      (mlp): ExpertMatrices => ({
        gate: floatsOf(mlp.gateProj),
        up: floatsOf(mlp.upProj),
        down: floatsOf(mlp.downProj),
      }),
    );
    const sizes = { hidden, width, choices: chosen };
    return expertsSwigluReference(rows, choice.shares, choice.experts, weights, sizes, residual.floatsSync());
  };

  const run = (experts: Experts, x: Tensor, residual: Tensor): Float32Array =>
    tidy(() => noGrad(() => experts.forward(x, residual).floatsSync()));

  it.each([true, false])("is the oracle's, normalized: %s", (isNormalized) =>
    tidy(() => {
      const experts = block({ isNormalized });
      const { x, residual } = problem(7);
      expect(relativeError(run(experts, x, residual), oracle(experts, x, residual, isNormalized))).toBeLessThan(2e-6);
      // Trainable experts go the general way.
      const general = tidy(() => experts.forward(x, residual).floatsSync());
      expect(relativeError(general, oracle(experts, x, residual, isNormalized))).toBeLessThan(2e-6);
      inFourBits(experts);
      expect(relativeError(run(experts, x, residual), oracle(experts, x, residual, isNormalized))).toBeLessThan(2e-6);
      experts.dispose();
    }),
  );

  it("of float16 and other activations, too", () =>
    tidy(() => {
      const half = block({ dtype: "float16" });
      const { x, residual } = problem(6, "float16");
      expect(relativeError(run(half, x, residual), oracle(half, x, residual))).toBeLessThan(2e-3);
      half.dispose();
      const gelu = block({ activation: "gelu" });
      const rows = problem(6);
      const general = run(gelu, rows.x, rows.residual);
      expect(relativeError(general, oracle(gelu, rows.x, rows.residual))).toBeGreaterThan(1e-3);
      gelu.dispose();
    }));

  it("computes a token alone as in a batch", () =>
    tidy(() => {
      const experts = inFourBits(block());
      const { x, residual } = problem(20);
      const all = run(experts, x, residual);
      for (const t of [0, 9, 19]) {
        const row = (from: Tensor) => make(from.floatsSync().slice(t * hidden, (t + 1) * hidden), [1, 1, hidden]);
        const alone = run(experts, row(x), row(residual));
        expect(relativeError(alone, all.slice(t * hidden, (t + 1) * hidden))).toBeLessThan(2e-6);
      }
      experts.dispose();
    }));

  it("gives x, the residual and the router the gradients that the general way gives", () =>
    tidy(() => {
      const gradients = (isFused: boolean): Float32Array[] => {
        const experts = inFourBits(block()).requiresGrad_(false);
        (experts.gate as nn.Linear).weight.requiresGrad = true;
        // A layer that is no plain one, and computes as one: the block cannot know.
        if (!isFused) {
          const mlp = [...experts.experts][0]!;
          const { upProj } = mlp;
          upProj.forward = (rows: Tensor) => nn.Linear4bit.prototype.forward.call(upProj, rows) as Tensor;
        }
        const { x, residual } = problem(9);
        for (const t of [x, residual]) t.requiresGrad = true;
        backward(experts.forward(x, residual), make(normals(x.size, 8), x.shape));
        const found = [x, residual, (experts.gate as nn.Linear).weight].map((t) => t.grad!.floatsSync());
        experts.dispose();
        return found;
      };
      const [fused, general] = [gradients(true), gradients(false)];
      fused.forEach((gradient, i) => {
        expect(relativeError(gradient, general[i]!)).toBeLessThan(5e-6);
      });
    }));

  it("gives trainable experts and their router their gradients", () =>
    tidy(() => {
      const experts = block();
      const { x, residual } = problem(6);
      const dy = make(normals(x.size, 8), x.shape);
      backward(experts.forward(x, residual), dy);
      const weightsOfY = dy.floatsSync();
      const total = () => oracle(experts, x, residual).reduce((sum, v, i) => sum + v * weightsOfY[i]!, 0);
      const [first] = experts.experts;
      for (const layer of [experts.gate, first!.downProj, first!.upProj] as nn.Linear[]) {
        const { weight } = layer;
        const direction = normals(weight.size, 9);
        const values = weight.floatsSync();
        const at = (step: number): number => {
          const moved = values.map((v, i) => v + step * direction[i]!);
          noGrad(() => copyInto(weight, make(moved, weight.shape)));
          return total();
        };
        const numeric = (at(1e-3) - at(-1e-3)) / 2e-3;
        noGrad(() => copyInto(weight, make(values, weight.shape)));
        const analytic = weight.grad!.floatsSync().reduce((sum, v, i) => sum + v * direction[i]!, 0);
        expect(Math.abs(analytic - numeric)).toBeLessThan(2e-3 * (1 + Math.abs(numeric)));
      }
      experts.dispose();
    }));

  it("trains adapters around layers of experts", () =>
    tidy(() => {
      const experts = inFourBits(block());
      const { x, residual } = problem(9);
      const before = run(experts, x, residual);
      for (const mlp of experts.experts) mlp.upProj = new LoraLinear(mlp.upProj as nn.Linear4bit, { r: 2 });
      expect(relativeError(run(experts, x, residual), before)).toBeLessThan(2e-6);
      backward(experts.forward(x, residual), make(normals(x.size, 8), x.shape));
      const adapters = [...experts.experts].map((mlp) =>
        (mlp.upProj as LoraLinear).adapters.get("default")!.loraB.grad!.floatsSync(),
      );
      expect(adapters.some((gradient) => gradient.some((v) => v !== 0))).toBe(true);
      experts.dispose();
    }));

  it("takes experts of several kinds, and follows a layer that was exchanged", () =>
    tidy(() => {
      const experts = block();
      const { x, residual } = problem(5);
      const before = run(experts, x, residual);
      const inFourBitsAll = oracle(inFourBits(block()), x, residual);
      const mlp = [...experts.experts][1]!;
      inFourBits(mlp);
      const mixed = run(experts, x, residual);
      expect(relativeError(mixed, oracle(experts, x, residual))).toBeLessThan(2e-6);
      expect(relativeError(mixed, before)).toBeGreaterThan(1e-3);
      inFourBits(experts);
      expect(relativeError(run(experts, x, residual), inFourBitsAll)).toBeLessThan(2e-6);
      expect(relativeError(run(experts, x, residual), oracle(experts, x, residual))).toBeLessThan(2e-6);
      experts.dispose();
    }));

  it.each([false, true])("follows the router in a recorded graph, after a first pass: %s", (hasRun) =>
    tidy(() => {
      const experts = inFourBits(block());
      for (const layer of experts.modules()) if (layer instanceof nn.Linear4bit) layer.quantize();
      const { x, residual } = problem(3);
      if (hasRun) run(experts, x, residual);
      const graph = noGrad(() => capture(() => experts.forward(x, residual), { device }));
      for (const seed of [21, 22]) {
        copyInto(x, make(normals(x.size, seed), x.shape));
        graph.replay();
        expect(relativeError(graph.outputs.floatsSync(), oracle(experts, x, residual))).toBeLessThan(2e-6);
        expect(run(experts, x, residual)).toEqual(graph.outputs.floatsSync());
      }
      graph.dispose();
      expect(relativeError(run(experts, x, residual), oracle(experts, x, residual))).toBeLessThan(2e-6);
      experts.dispose();
    }),
  );

  it("leaves nothing when it is disposed, also after a move", () => {
    const before = memory().tensors;
    const experts = inFourBits(block());
    tidy(() => {
      const { x, residual } = problem(3);
      run(experts, x, residual);
    });
    experts.to("cpu");
    tidy(() => {
      const [x, residual] = [4, 5].map((seed) => tensor(normals(hidden, seed), { shape: [1, hidden], device: "cpu" }));
      run(experts, x!, residual!);
    });
    experts.dispose();
    expect(memory().tensors).toBe(before);
  });
});
