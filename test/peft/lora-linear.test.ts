// Adapters: the formula against float64, what is frozen, which layers are wrapped, and training over every kind
// of base layer.
import { afterEach, describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import { noGrad } from "../../src/autograd/no-grad.js";
import { LlamaForCausalLM } from "../../src/models/index.js";
import {
  Linear,
  Linear4bit,
  Linear8bitLt,
  linearResidual,
  Module,
  Parameter,
  replaceLinear,
} from "../../src/nn/index.js";
import { crossEntropy, Generator, mean, mul, randn } from "../../src/ops/index.js";
import { AdamW8bit } from "../../src/optim/index.js";
import type { LinearLike } from "../../src/peft/index.js";
import { applyLora, LoraLinear } from "../../src/peft/index.js";
import { tensor } from "../../src/tensor/create.js";
import { toDevice } from "../../src/tensor/device.js";
import { memory, tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";

/** Rows times matrix^T in float64. */
function product(x: ArrayLike<number>, w: ArrayLike<number>, inner: number): number[] {
  const [rows, columns] = [x.length / inner, w.length / inner];
  return Array.from({ length: rows * columns }, (_, at) => {
    const [i, j] = [Math.floor(at / columns), at % columns];
    let sum = 0;
    for (let k = 0; k < inner; k++) sum += (x[i * inner + k] as number) * (w[j * inner + k] as number);
    return sum;
  });
}

describe.each(testDevices())("on %s", (name) => {
  const device = toDevice(name);
  const owned: { dispose(): void }[] = [];
  const own = <T extends { dispose(): void }>(value: T): T => {
    owned.push(value);
    return value;
  };
  afterEach(() => {
    for (const value of owned.splice(0)) value.dispose();
  });

  const bases: [string, (inputs: number, outputs: number) => LinearLike][] = [
    ["Linear", (i, o) => new Linear(i, o, { bias: true, device, generator: new Generator(2) })],
    ["Linear4bit", (i, o) => quantized(new Linear4bit(i, o, { quantType: "nf4", device }), i, o)],
    ["Linear8bitLt", (i, o) => quantized(new Linear8bitLt(i, o, { hasFp16Weights: false, device }), i, o)],
  ];
  function quantized<M extends Linear4bit | Linear8bitLt>(layer: M, inputs: number, outputs: number): M {
    const source = new Linear(inputs, outputs, { device, generator: new Generator(2) });
    layer.loadStateDict(source.stateDict());
    source.dispose();
    layer.quantize();
    return layer;
  }
  const values = (t: Tensor) => Array.from(t.floatsSync());

  describe.each(bases)("over %s", (_, makeBase) => {
    it("changes nothing at the start", () => {
      const base = makeBase(64, 24);
      const x = own(randn([3, 64], { device, generator: new Generator(3) }));
      const before = values(own(noGrad(() => base.forward(x))));
      const lora = own(new LoraLinear(base, { r: 4, loraAlpha: 16, device }));
      expect(values(own(noGrad(() => lora.forward(x))))).toEqual(before);
    });

    it("adds alpha / r * x A^T B^T", () => {
      const base = makeBase(64, 24);
      const lora = own(new LoraLinear(base, { r: 4, loraAlpha: 6, device, generator: new Generator(4) }));
      const b = own(randn([24, 4], { device, generator: new Generator(5) }));
      lora.loadStateDict({ "default.lora_B": b }, { strict: false });
      const x = own(randn([3, 64], { device, generator: new Generator(6) }));
      const low = product(values(x), values(lora.adapters.get("default")!.loraA), 64);
      const update = product(low, values(b), 4);
      const want = values(own(noGrad(() => base.forward(x)))).map((y, i) => y + 1.5 * (update[i] as number));
      expectClose(values(own(noGrad(() => lora.forward(x)))), want, { atol: 1e-4, rtol: 1e-4 });
    });

    it.each(["float32", "float16", "bfloat16"] as const)(
      "gives %s for it, and float32 gradients to A and B",
      (dtype) => {
        const base = makeBase(64, 24);
        if (base instanceof Linear && !(base instanceof Linear4bit) && !(base instanceof Linear8bitLt)) {
          for (const p of [base.weight, base.bias as Tensor]) p.dispose();
          base.weight = new Parameter(randn([24, 64], { device, dtype, generator: new Generator(2) }));
          base.bias = new Parameter(randn([24], { device, dtype, generator: new Generator(3) }));
        }
        const lora = own(new LoraLinear(base, { r: 4, device, generator: new Generator(4) }));
        const x = own(randn([3, 64], { device, dtype, generator: new Generator(6) }));
        const y = own(lora.forward(x));
        expect(y.dtype).toBe(dtype);
        tidy(() => backward(mean(y)));
        expect([
          lora.adapters.get("default")!.loraA.grad?.dtype,
          lora.adapters.get("default")!.loraB.grad?.dtype,
        ]).toEqual(["float32", "float32"]);
      },
    );

    it("adds to a residual what it gives by itself", () => {
      tidy(() => {
        const layer = own(
          new LoraLinear(makeBase(64, 32), { initLoraWeights: false, generator: new Generator(3), device }),
        );
        const x = randn([3, layer.inFeatures], { device, generator: new Generator(4) });
        const residual = randn([3, layer.outFeatures], { device, generator: new Generator(5) });
        const [y, rest] = [layer.forward(x).floatsSync(), residual.floatsSync()];
        expectClose(
          linearResidual(layer, x, residual).floatsSync(),
          rest.map((v, i) => v + (y[i] as number)),
        );
      });
    });

    it("gives gradients to the adapter and to x, and none to the base", () => {
      const lora = own(new LoraLinear(makeBase(64, 24), { r: 4, device, generator: new Generator(4) }));
      lora.baseLayer.requiresGrad_(false);
      const x = own(randn([3, 64], { device, generator: new Generator(6) }));
      x.requiresGrad = true;
      tidy(() => backward(mean(mul(lora.forward(x), lora.forward(x)))));
      expect(x.grad).not.toBeNull();
      expect(lora.adapters.get("default")!.loraB.grad).not.toBeNull();
      for (const parameter of lora.baseLayer.parameters()) expect(parameter.grad).toBeNull();
    });

    it("learns through AdamW8bit and leaves the base as it was", () => {
      const base = makeBase(64, 32);
      const lora = own(new LoraLinear(base, { r: 8, loraAlpha: 16, device, generator: new Generator(4) }));
      base.requiresGrad_(false);
      const before = [...base.stateDict()].map(([key, tensor]) => [key, Array.from(tensor.dataSync())]);
      const optimizer = own(
        new AdamW8bit([lora.adapters.get("default")!.loraA, lora.adapters.get("default")!.loraB], { lr: 0.01 }),
      );
      const x = own(randn([16, 64], { device, generator: new Generator(6) }));
      const targets = own(
        tensor(
          Int32Array.from({ length: 16 }, (_, i) => (i * 5) % 32),
          { device },
        ),
      );
      const losses: number[] = [];
      for (let step = 0; step < 40; step++) {
        const loss = tidy(() => {
          const loss = crossEntropy(lora.forward(x), targets);
          backward(loss);
          return loss;
        });
        optimizer.step();
        optimizer.zeroGrad();
        losses.push(loss.itemSync());
        loss.dispose();
      }
      expect(losses.at(-1)).toBeLessThan(0.3 * (losses[0] as number));
      expect([...base.stateDict()].map(([key, tensor]) => [key, Array.from(tensor.dataSync())])).toEqual(before);
    });
  });

  describe("init", () => {
    it("draws A uniformly within 1 / sqrt(in) and sets B to zero", () => {
      const lora = own(new LoraLinear(new Linear(400, 10, { device }), { r: 16, device, generator: new Generator(7) }));
      const a = values(lora.adapters.get("default")!.loraA);
      const bound = 1 / Math.sqrt(400);
      expect(a).toHaveLength(16 * 400);
      expect(Math.max(...a.map(Math.abs))).toBeLessThanOrEqual(bound);
      const variance = a.reduce((sum, value) => sum + value * value, 0) / a.length;
      expect(Math.abs(variance / (bound ** 2 / 3) - 1)).toBeLessThan(0.05);
      expect(new Set(values(lora.adapters.get("default")!.loraB))).toEqual(new Set([0]));
    });

    it("drops inputs of A in training only", () => {
      const lora = own(new LoraLinear(new Linear(64, 8, { device }), { r: 4, loraDropout: 0.5, device }));
      const b = own(randn([8, 4], { device, generator: new Generator(5) }));
      lora.loadStateDict({ "default.lora_B": b }, { strict: false });
      const x = own(randn([2, 64], { device, generator: new Generator(6) }));
      const forward = () => values(own(noGrad(() => lora.forward(x))));
      expect(forward()).not.toEqual(forward());
      lora.eval();
      expect(forward()).toEqual(forward());
    });
  });

  describe("applyLora", () => {
    const newModel = () =>
      own(
        new LlamaForCausalLM(
          { vocabSize: 16, hiddenSize: 32, intermediateSize: 64, numHiddenLayers: 2, numAttentionHeads: 2 },
          { device, generator: new Generator(1) },
        ),
      );

    it("wraps the named layers, freezes the rest and returns the adapters' parameters", () => {
      const model = newModel();
      const adapters = applyLora(model, { r: 2, targetModules: ["q_proj", "layers.1.mlp.up_proj"] });
      expect(adapters).toHaveLength(6);
      const trainable = model.namedParameters().filter(([, parameter]) => parameter.requiresGrad);
      expect(trainable.map(([path]) => path)).toEqual([
        "model.layers.0.self_attn.q_proj.default.lora_A",
        "model.layers.0.self_attn.q_proj.default.lora_B",
        "model.layers.1.self_attn.q_proj.default.lora_A",
        "model.layers.1.self_attn.q_proj.default.lora_B",
        "model.layers.1.mlp.up_proj.default.lora_A",
        "model.layers.1.mlp.up_proj.default.lora_B",
      ]);
      expect(new Set(trainable.map(([, parameter]) => parameter))).toEqual(new Set(adapters));
      expect(model.stateDict().has("model.layers.0.self_attn.q_proj.base_layer.weight")).toBe(true);
    });

    it("never freezes or wraps the adapters that are there: another comes by addAdapter", () => {
      const model = newModel();
      const first = applyLora(model, { r: 2, targetModules: ["q_proj"] });
      const state = [...model.stateDict().keys()];
      expect(() => applyLora(model, { r: 2, targetModules: ["k_proj"] })).toThrow(
        expect.objectContaining({
          code: "ERR_BNB_OPTION",
          message:
            "PeftModel: model must have no adapters yet, got one with some; addAdapter of its PeftModel adds another",
        }),
      );
      expect(first.every(({ requiresGrad }) => requiresGrad)).toBe(true);
      expect([...model.stateDict().keys()]).toEqual(state);
    });

    it("matches whole names and whole ends of paths", () => {
      const make = () => new Linear(4, 4, { device, bias: false });
      class Attention extends Module {
        qProj = make();
        xqProj = make();
        forward(x: Tensor): Tensor {
          return this.qProj.forward(this.xqProj.forward(x));
        }
      }
      class Model extends Module {
        qProj = make();
        attn = new Attention();
        xattn = new Attention();
        forward(x: Tensor): Tensor {
          return this.attn.forward(this.qProj.forward(x));
        }
      }
      const wrapped = (targetModules: string[]): string[] => {
        const model = own(new Model());
        applyLora(model, { r: 2, targetModules });
        return model.namedModules().flatMap(([path, module]) => (module instanceof LoraLinear ? [path] : []));
      };
      expect(wrapped(["q_proj"])).toEqual(["q_proj", "attn.q_proj", "xattn.q_proj"]);
      expect(wrapped(["attn.q_proj"])).toEqual(["attn.q_proj"]);
      expect(wrapped(["xq_proj"])).toEqual(["attn.xq_proj", "xattn.xq_proj"]);
    });

    it("gives a layer that is used in two places one adapter", () => {
      const before = memory().tensors;
      const shared = new Linear(4, 4, { device });
      class Twice extends Module {
        upProj = shared;
        downProj = shared;
        forward(x: Tensor): Tensor {
          return this.downProj.forward(this.upProj.forward(x));
        }
      }
      const model = own(new Twice());
      const adapters = applyLora(model, { r: 2, targetModules: ["up_proj", "down_proj"] });
      expect(adapters).toHaveLength(2);
      expect(model.upProj).toBe(model.downProj);
      expect((model.upProj as unknown as LoraLinear).baseLayer).toBe(shared);
      model.dispose();
      expect(memory().tensors).toBe(before);
    });

    it.each([true, false])("gives new adapters the training mode of their layers: %s", (training) => {
      const model = newModel().train(training);
      applyLora(model, { r: 2, loraDropout: 0.5, targetModules: ["q_proj", "down_proj"] });
      expect(model.modules().map((module) => module.training)).toEqual(model.modules().map(() => training));
    });

    it("works on a model whose layers were swapped for quantized ones", () => {
      const model = newModel();
      replaceLinear(model, (i, o, bias) => new Linear4bit(i, o, { bias, quantType: "nf4", device }), {
        copyWeights: true,
      });
      const ids = own(tensor([[1, 2, 3]], { dtype: "int32", device }));
      const logits = () => values(own(noGrad(() => tidy(() => model.forward(ids)))));
      const before = logits();
      const adapters = applyLora(model, { r: 2, targetModules: ["q_proj", "down_proj"] });
      expect(logits()).toEqual(before);
      tidy(() => backward(crossEntropy(model.forward(ids), ids)));
      expect(adapters.every((parameter) => parameter.grad !== null)).toBe(true);
    });

    it("rejects names that match nothing or no linear layer, and a rank below 1", () => {
      const option = (message: string) => expect.objectContaining({ code: "ERR_BNB_OPTION", message });
      const model = newModel();
      expect(() => applyLora(model, { targetModules: ["q_proj"], device: "cpu" } as never)).toThrow(
        /applyLora: options must be among .*, got device/s,
      );
      expect(() => applyLora(model, { targetModules: ["nothing"] })).toThrow(
        option("applyLora: targetModules must name layers of the model, got [nothing]"),
      );
      // One that matches does not excuse one that does not.
      expect(() => applyLora(model, { targetModules: ["v_proj", "qproj"] })).toThrow(
        option("applyLora: each of targetModules must name layers of the model, got qproj (did you mean q_proj?)"),
      );
      const alpha = { lora_alpha: 32, targetModules: ["q_proj"] } as object as { targetModules: string[] };
      expect(() => applyLora(model, alpha)).toThrow("got lora_alpha (did you mean loraAlpha?)");
      expect(() => applyLora(model, { targetModules: ["mlp"] })).toThrow(
        option("applyLora: a target must be a linear layer or an embedding, got GatedMlp at model.layers.0.mlp"),
      );
      expect(() => applyLora(model, { r: 0, targetModules: ["q_proj"] })).toThrow(
        option("applyLora: r must be an integer of at least 1, got 0"),
      );
      expect(model.parameters().every((parameter) => parameter.requiresGrad)).toBe(true);
    });
  });
});
