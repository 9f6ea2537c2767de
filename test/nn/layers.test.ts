// The simple layers: their computation, initial values, options and errors.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import { ModuleList, Sequential } from "../../src/nn/containers.js";
import { Dropout } from "../../src/nn/dropout.js";
import { Embedding, StableEmbedding } from "../../src/nn/embedding.js";
import * as init from "../../src/nn/init.js";
import { LayerNorm } from "../../src/nn/layer-norm.js";
import { Linear } from "../../src/nn/linear.js";
import { Linear4bit } from "../../src/nn/linear-4bit.js";
import { Linear8bitLt } from "../../src/nn/linear-8bit.js";
import { RMSNorm } from "../../src/nn/rms-norm.js";
import { Generator } from "../../src/ops/random.js";
import { ones, tensor } from "../../src/tensor/create.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { integers, normals } from "../helpers/random.js";
import { tolerance } from "../helpers/tolerance.js";
import { embeddingGradReference, embeddingReference, renormReference } from "../reference/embedding.js";
import { layerNormReference } from "../reference/layer-norm.js";
import { rmsNormReference } from "../reference/rms-norm.js";

const generator = () => new Generator(7);

describe("init", () => {
  const spread = (values: Float32Array) => {
    const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
    const std = Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length);
    return { mean, std, top: values.reduce((top, v) => Math.max(top, Math.abs(v)), 0) };
  };

  it.each([
    ["kaimingUniform", () => init.kaimingUniform([64, 100], { generator: generator() }), 1 / Math.sqrt(100)],
    [
      "kaimingUniform of ReLU",
      () => init.kaimingUniform([64, 100], { a: 0, generator: generator() }),
      Math.sqrt(6 / 100),
    ],
    ["xavierUniform", () => init.xavierUniform([64, 100], { generator: generator() }), Math.sqrt(6 / 164)],
    [
      "xavierUniform of a kernel",
      () => init.xavierUniform([8, 4, 5, 5], { gain: 2, generator: generator() }),
      2 * Math.sqrt(6 / 300),
    ],
  ])("%s fills its bound", (_, make, bound) => {
    const { mean, std, top } = spread(make().floatsSync());
    expect(top).toBeLessThanOrEqual(bound);
    expect(top).toBeGreaterThan(0.98 * bound);
    expect(Math.abs(mean)).toBeLessThan(0.06 * bound);
    expect(Math.abs(std / (bound / Math.sqrt(3)) - 1)).toBeLessThan(0.03);
  });

  it("normal has the mean and deviation asked for, and a seed gives the same values", () => {
    const make = () => init.normal([100, 100], 3, 0.5, { generator: generator() }).floatsSync();
    const { mean, std } = spread(make());
    expect(Math.abs(mean - 3)).toBeLessThan(0.02);
    expect(Math.abs(std - 0.5)).toBeLessThan(0.02);
    expect(make()).toEqual(make());
  });

  it("needs two axes", () => {
    expect(() => init.xavierUniform([3])).toThrow("init: the shape must have at least two axes, got [3]");
  });
});

describe.each(testDevices())("layers on %s", (device) => {
  const make = (values: Float32Array | Int32Array, shape: number[]) => tensor(values, { shape, device });

  describe("Linear", () => {
    it("multiplies by the transposed weight and adds the bias", () => {
      const layer = new Linear(2, 3, { device });
      layer.loadStateDict({
        weight: tensor([
          [1, 2],
          [3, 4],
          [5, 6],
        ]),
        bias: tensor([0.5, 0, -0.5]),
      });
      const y = layer.forward(make(Float32Array.of(1, 1, 2, -1), [2, 1, 2]));
      expect(y.shape).toEqual([2, 1, 3]);
      expect([...y.floatsSync()]).toEqual([3.5, 7, 10.5, 0.5, 2, 3.5]);
    });

    it.each(["Linear", "Linear4bit", "Linear8bitLt"] as const)(
      "%s loads weights that lie on another device",
      (name) => {
        const weight = normals(64 * 3, 7);
        const layer = { Linear, Linear4bit, Linear8bitLt }[name];
        const run = (from: string) => {
          const made = new layer(64, 3, { bias: false, device });
          made.loadStateDict({ weight: tensor(weight, { shape: [3, 64], device: from }) });
          const y = made.forward(make(normals(128, 8), [2, 64]));
          expect(String(y.device)).toBe(device);
          return [...y.floatsSync()];
        };
        expect(run("cpu")).toEqual(run(device));
      },
    );

    it("starts within 1/sqrt(inFeatures), from its generator alone", () => {
      const [a, b] = [generator(), generator()].map((g) => new Linear(64, 32, { device, generator: g })) as [
        Linear,
        Linear,
      ];
      for (const name of ["weight", "bias"]) {
        const values = a.stateDict().get(name)!.floatsSync();
        expect(values).toEqual(b.stateDict().get(name)!.floatsSync());
        expect(Math.max(...values.map(Math.abs))).toBeLessThanOrEqual(1 / 8);
        expect(new Set(values).size).toBeGreaterThan(values.length / 2);
      }
    });

    it("has no bias when told", () => {
      expect([...new Linear(2, 2, { bias: false }).stateDict().keys()]).toEqual(["weight"]);
    });
  });

  describe("RMSNorm and LayerNorm", () => {
    it("start as the plain normalizations", () => {
      const x = normals(5 * 12, 1);
      const rms = new RMSNorm(12, { eps: 1e-5, device }).forward(make(x, [5, 12]));
      expectClose(rms.floatsSync(), rmsNormReference(x, new Float32Array(12).fill(1), 1e-5));
      const layer = new LayerNorm(12, { device }).forward(make(x, [5, 12]));
      expectClose(layer.floatsSync(), layerNormReference(x, 12, null, null, 1e-5));
    });

    it("LayerNorm leaves out what is not wanted", () => {
      expect([...new LayerNorm(3).stateDict().keys()]).toEqual(["weight", "bias"]);
      expect([...new LayerNorm(3, { bias: false }).stateDict().keys()]).toEqual(["weight"]);
      expect([...new LayerNorm(3, { elementwiseAffine: false }).stateDict().keys()]).toEqual([]);
    });
  });

  describe("Dropout", () => {
    it("drops and scales in training, repeatably for a seed, and does nothing in evaluation", () => {
      const x = ones([1000], { device });
      const run = () => new Dropout(0.25, { generator: generator() }).forward(x).floatsSync();
      const y = run();
      expect(run()).toEqual(y);
      expectClose([...new Set(y)].sort(), [0, 4 / 3]);
      const dropped = y.filter((v) => v === 0).length;
      expect(Math.abs(dropped - 250)).toBeLessThan(60);
      expect(new Dropout(0.25).eval().forward(x).floatsSync()).toEqual(x.floatsSync());
    });
  });

  describe("Embedding", () => {
    it("looks rows up and keeps a 32-bit optimizer state", () => {
      const layer = new Embedding(11, 6, { device, generator: generator() });
      const ids = integers(8, 11, 2);
      const y = layer.forward(make(ids, [2, 4]));
      expect(Float64Array.from(y.floatsSync())).toEqual(embeddingReference(ids, layer.weight.floatsSync(), 6));
      expect(layer.weight.optimConfig).toEqual({ optimBits: 32 });
      expect(Math.max(...layer.weight.floatsSync().map(Math.abs))).toBeLessThanOrEqual(Math.sqrt(6 / 17));
    });

    it.each([2, -3])("the padding row %i of 5 starts at zero and gets no gradient", (paddingIdx) => {
      const layer = new Embedding(5, 3, { paddingIdx, device });
      expect(layer.paddingIdx).toBe(2);
      expect([...layer.weight.floatsSync().slice(6, 9)]).toEqual([0, 0, 0]);
      const [ids, dy] = [Int32Array.of(2, 1, 2, 4), normals(12, 3)];
      backward(layer.forward(make(ids, [4])), make(dy, [4, 3]));
      expectClose(layer.weight.grad!.floatsSync(), embeddingGradReference(dy, ids, 5, 3, { paddingIdx: 2 }));
    });

    it("scales gradients by frequency", () => {
      const layer = new Embedding(3, 2, { scaleGradByFreq: true, device });
      const [ids, dy] = [Int32Array.of(0, 0, 0, 2), normals(8, 4)];
      backward(layer.forward(make(ids, [4])), make(dy, [4, 2]));
      expectClose(layer.weight.grad!.floatsSync(), embeddingGradReference(dy, ids, 3, 2, { scaleGradByFreq: true }));
    });

    it("holds the rows it returns to maxNorm in the norm asked for", () => {
      const layer = new Embedding(6, 4, { maxNorm: 0.3, normType: 1, device });
      const before = layer.weight.floatsSync();
      const ids = Int32Array.of(1, 1, 4);
      layer.forward(make(ids, [3]));
      expectClose(layer.weight.floatsSync(), renormReference(before, 4, ids, 0.3, 1));
    });

    it("rejects what it cannot do", () => {
      expect(() => new Embedding(4, 2, { paddingIdx: 4 })).toThrow(
        "Embedding: paddingIdx must be an integer in [-4, 4), got 4",
      );
      expect(() => new Embedding(4, 2, { sparse: true })).toThrow("Embedding: sparse must be false, got true");
    });
  });

  describe("StableEmbedding", () => {
    it("normalizes the rows, with gradients of table, scale and shift", () => {
      const ids = Int32Array.of(3, 0, 3);
      const layer = new StableEmbedding(4, 5, { device });
      expect([...layer.stateDict().keys()]).toEqual(["weight", "norm.weight", "norm.bias"]);
      const oracle = (table: ArrayLike<number>, scale: ArrayLike<number>, shift: ArrayLike<number>) =>
        layerNormReference(embeddingReference(ids, table, 5), 5, scale, shift, 1e-5);
      gradcheck(
        (table, scale, shift) => {
          Object.assign(layer, { weight: table });
          Object.assign(layer.norm, { weight: scale, bias: shift });
          return layer.forward(make(ids, [3]));
        },
        [
          { data: normals(20, 5), shape: [4, 5] },
          { data: normals(5, 6), shape: [5] },
          { data: normals(5, 7), shape: [5] },
        ],
        { device, reference: (table, scale, shift) => oracle(table!, scale!, shift!) },
      );
    });

    it.each(["float16", "bfloat16"] as const)("%s weights are normalized in float32", (dtype) => {
      const layer = new StableEmbedding(4, 64, { dtype, device });
      const ids = Int32Array.of(0, 2);
      const y = layer.forward(make(ids, [2]));
      expect([y.dtype, layer.norm.weight!.dtype]).toEqual([dtype, "float32"]);
      const rows = embeddingReference(ids, layer.weight.floatsSync(), 64);
      expectClose(y.floatsSync(), layerNormReference(rows, 64, null, null, 1e-5), tolerance(dtype));
    });
  });
});

describe("containers", () => {
  it("Sequential applies its modules in order", () => {
    const model = new Sequential(new Linear(2, 3), new LayerNorm(3), new Linear(3, 1));
    const x = ones([4, 2]);
    const [a, b, c] = [model.at(0), model.at(1), model.at(2)];
    expect(model.forward(x).floatsSync()).toEqual(c.forward(b.forward(a.forward(x))).floatsSync());
    expect([...model.stateDict().keys()]).toEqual(["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]);
  });

  it("ModuleList grows, iterates and guards its indices", () => {
    const list = new ModuleList([new Linear(1, 1)]).push(new Linear(1, 2));
    expect([...list].map((layer) => layer.outFeatures)).toEqual([1, 2]);
    expect([list.length, list.at(-1).outFeatures]).toEqual([2, 2]);
    expect(() => list.at(2)).toThrow("ModuleList: the index must be below 2, got 2");
    expect(() => list.forward()).toThrow("ModuleList: forward is not defined");
  });
});
