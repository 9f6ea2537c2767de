// What a module saves it loads, and what it would not load it does not save: values that are not finite, and integers,
// which may be codes, where floats belong.
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import * as nn from "../../src/nn/index.js";
import { int8VectorwiseQuant, QuantState, quantize4bit } from "../../src/ops/index.js";
import { LoraLinear } from "../../src/peft/index.js";
import { tensor, zeros } from "../../src/tensor/create.js";
import { BnbError } from "../../src/tensor/errors.js";
import { memory, tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { normals } from "../helpers/random.js";

const [n, k] = [6, 64];
const dtypes = ["float32", "float16", "bfloat16"] as const;

let before: number;
beforeEach(() => {
  before = memory().tensors;
});
afterEach(() => {
  expect(memory().tensors).toBe(before);
});

type Quantizing = nn.Linear4bit | nn.Linear8bitLt | nn.Embedding4bit | nn.Embedding8bit;
const bias = false;
const quantizing: [string, () => Quantizing][] = [
  ["nested Linear4bit", () => new nn.LinearNF4(k, n, { bias })],
  ["Linear4bit", () => new nn.Linear4bit(k, n, { bias, compressStatistics: false })],
  ["Linear4bit of float16", () => new nn.LinearNF4(k, n, { bias, dtype: "float16", compressStatistics: false })],
  ["Linear8bitLt", () => new nn.Linear8bitLt(k, n, { bias, hasFp16Weights: false })],
  ["EmbeddingNF4", () => new nn.EmbeddingNF4(n, k)],
  ["EmbeddingFP4", () => new nn.EmbeddingFP4(n, k)],
  ["Embedding8bit", () => new nn.Embedding8bit(n, k)],
];
const linears = quantizing.filter(([name]) => name.includes("Linear"));
const floats: [string, () => nn.Module][] = [
  ["Linear", () => new nn.Linear(k, n, { bias })],
  ["Linear8bitLt with hasFp16Weights", () => new nn.Linear8bitLt(k, n, { bias })],
  ["Embedding", () => new nn.Embedding(n, k)],
];
const all: [string, () => nn.Module][] = [
  ...quantizing,
  ...floats,
  ["quantized Linear4bit", () => new nn.LinearNF4(k, n, { bias }).quantize()],
  ["quantized Linear8bitLt", () => new nn.Linear8bitLt(k, n, { bias, hasFp16Weights: false }).quantize()],
  ["quantized EmbeddingNF4", () => new nn.EmbeddingNF4(n, k).quantize()],
  ["quantized Embedding8bit", () => new nn.Embedding8bit(n, k).quantize()],
];

/** A weight with one element replaced. */
function weightWith(value: number, at = 70, dtype: (typeof dtypes)[number] = "float32"): Tensor {
  const values = normals(n * k, 3);
  values[at] = value;
  return tensor(values, { shape: [n, k], dtype });
}

function codeOf(fn: () => unknown): string {
  try {
    fn();
  } catch (error) {
    if (error instanceof BnbError) return error.code;
    throw error;
  }
  return "none";
}

/** The weight put into the layer past the loader's checks. */
function force(layer: nn.Module & { weight: nn.Parameter }, weight: Tensor): void {
  layer.weight.dispose();
  layer.weight =
    layer instanceof nn.Linear4bit || layer instanceof nn.Embedding4bit
      ? new nn.Params4bit(weight, {
          quantType: layer.weight.quantType,
          compressStatistics: layer.weight.compressStatistics,
          module: layer,
        })
      : new nn.Parameter(weight);
}

describe.each([NaN, Infinity, -Infinity])("a weight with %d", (value) => {
  describe.each(quantizing)("in %s", (_, make) => {
    it("is not loaded, before and after quantization", () => {
      tidy(() => {
        using layer = make();
        const load = () => layer.loadStateDict({ weight: weightWith(value) }, { strict: false });
        const was = [...layer.weight.floatsSync()];
        expect(codeOf(load)).toBe("ERR_BNB_NONFINITE");
        expect(load).toThrow(`loadStateDict: the dict must fit the module, got: "weight" must be finite`);
        expect(load).toThrow(`got ${value} at 70`);
        expect([...layer.weight.floatsSync()]).toEqual(was);
        layer.quantize();
        const codes = [...layer.weight.dataSync()];
        expect(codeOf(load)).toBe("ERR_BNB_NONFINITE");
        expect([...layer.weight.dataSync()]).toEqual(codes);
      });
    });

    it("is not saved, before and after quantization", () => {
      tidy(() => {
        using layer = make();
        force(layer, weightWith(value, 70, layer.weight.dtype as "float32"));
        const outer = new nn.ModuleList([layer]);
        expect(codeOf(() => outer.stateDict())).toBe("ERR_BNB_NONFINITE");
        expect(() => outer.stateDict()).toThrow(`stateDict: "0.weight" must be finite to be saved, got ${value} at 70`);
        layer.quantize();
        expect(codeOf(() => outer.stateDict())).toBe("ERR_BNB_NONFINITE");
        expect(() => outer.stateDict()).toThrow(/^stateDict: "0\.(weight|SCB)" .*must be finite to be saved, got NaN/);
      });
    });
  });

  it.each(linears)("is named by its path when a model is converted to %s, and nothing changes", (_, make) => {
    tidy(() => {
      using model = new nn.Sequential(new nn.Linear(k, k, { bias }), new nn.Linear(k, n, { bias }));
      model.at(1).loadStateDict({ weight: weightWith(value) });
      const layers = [...model];
      const live = memory().tensors;
      const convert = () =>
        nn.replaceLinear(model, (i, o) => (o === n ? make() : new nn.LinearNF4(i, o, { bias })), {
          copyWeights: true,
        });
      expect(convert).toThrow(`"1.weight" must be finite`);
      expect(codeOf(convert)).toBe("ERR_BNB_NONFINITE");
      expect([...model]).toEqual(layers);
      expect(memory().tensors).toBe(live);
    });
  });

  it.each(floats)("is saved and loaded by %s, which keeps floats", (_, make) => {
    tidy(() => {
      using layer = make();
      layer.loadStateDict({ weight: weightWith(value) });
      using other = make();
      other.loadStateDict(layer.stateDict());
      expect(other.stateDict().get("weight")?.floatsSync()[70]).toBe(value);
    });
  });

  it("makes scales that neither a dict of a QuantState holds nor is read from one", () => {
    tidy(() => {
      for (const compressStatistics of [true, false]) {
        const [, state] = quantize4bit(weightWith(value), { quantType: "nf4", compressStatistics });
        for (const packed of [true, false]) {
          expect(codeOf(() => state.asDict({ packed }))).toBe("ERR_BNB_NONFINITE");
        }
      }
      const [, good] = quantize4bit(weightWith(1), { quantType: "nf4" });
      const absmax = good.absmax.floatsSync().slice();
      absmax[2] = value;
      const dict = { ...good.asDict({ packed: true }), absmax: tensor(absmax) };
      expect(() => QuantState.fromDict(dict)).toThrow(`"absmax" must be finite and not negative, got ${value} at 2`);
    });
  });
});

it("refuses a weight that overflows the dtype in which the layer would quantize it", () => {
  tidy(() => {
    using layer = new nn.LinearNF4(k, n, { bias, dtype: "float16" });
    const load = () => layer.loadStateDict({ weight: weightWith(1e6) });
    expect(load).toThrow('"weight" must be finite in float16, got Infinity at 70');
    expect(codeOf(load)).toBe("ERR_BNB_NONFINITE");
  });
});

describe.each([NaN, Infinity, -1])("an SCB with %d", (value) => {
  it.each(["Linear8bitLt", "Embedding8bit"] as const)("is neither loaded nor saved by %s", (type) => {
    tidy(() => {
      const make = () => (type === "Linear8bitLt" ? new nn.Linear8bitLt(k, n, { bias }) : new nn.Embedding8bit(n, k));
      using layer = make();
      const { codes, stats } = int8VectorwiseQuant(weightWith(1));
      const bad = stats.floatsSync().slice();
      bad[4] = value;
      const load = () => layer.loadStateDict({ weight: codes, SCB: tensor(bad) });
      expect(load).toThrow(`"SCB" must be finite and not negative, got ${value}`);
      expect(layer.isQuantized).toBe(false);
      layer.loadStateDict({ weight: codes, SCB: stats });
      layer.SCB?.dispose();
      layer.SCB = tensor(bad);
      expect(() => layer.stateDict()).toThrow(`stateDict: "SCB" must be finite to be saved, got ${value}`);
      expect(codeOf(() => layer.stateDict())).toBe("ERR_BNB_NONFINITE");
    });
  });
});

describe("integers for floats", () => {
  const integers = (values: Int8Array | Uint8Array | Int32Array, shape = [n, k]): Tensor => tensor(values, { shape });
  const ones = [Int8Array, Uint8Array, Int32Array].map((A) => [A.name, () => integers(new A(n * k).fill(1))] as const);

  it.each(all)("are refused by %s, strict or not", (_, make) => {
    tidy(() => {
      using layer = make();
      for (const [name, weight] of [...ones, ["Float64Array", () => zeros([n, k], { dtype: "float64" })] as const]) {
        for (const strict of [true, false]) {
          const load = () => layer.loadStateDict({ weight: weight() }, { strict });
          expect(load, name).toThrow('"weight" must be float32, float16 or bfloat16, got ');
          expect(codeOf(load), name).toBe("ERR_BNB_DTYPE");
        }
      }
    });
  });

  it.each(all)("8-bit and 4-bit dicts never reach %s as values", (_, make) => {
    tidy(() => {
      using int8 = new nn.Linear8bitLt(k, n, { bias, hasFp16Weights: false }).quantize();
      using nf4 = new nn.LinearNF4(k, n, { bias }).quantize();
      for (const source of [int8, nf4]) {
        const dict = new Map(source.stateDict());
        for (const key of [...dict.keys()]) if (key !== "weight") dict.delete(key);
        using layer = make();
        const was = [...(layer.stateDict().get("weight") as Tensor).dataSync()];
        expect(() => layer.loadStateDict(dict, { strict: false })).toThrow(/must be/);
        expect([...(layer.stateDict().get("weight") as Tensor).dataSync()]).toEqual(was);
      }
      // An 8-bit dict as it was saved: only the 8-bit layers know what SCB is.
      using layer = make();
      const load = () => layer.loadStateDict(int8.stateDict(), { strict: false });
      if ("SCB" in layer) expect(load).not.toThrow();
      else expect(load).toThrow('"weight" must be float32, float16 or bfloat16, got int8');
    });
  });

  it("are refused for biases, norms and adapters", () => {
    tidy(() => {
      using lora = new LoraLinear(new nn.Linear(4, 2), { r: 2 });
      const eights = (shape: number[]): Tensor =>
        integers(new Int8Array(8).fill(1).subarray(0, shape[0]! * (shape[1] ?? 1)), shape);
      for (const [key, shape] of [
        ["default.lora_A", [2, 4]],
        ["default.lora_B", [2, 2]],
        ["base_layer.bias", [2]],
      ] as const) {
        const load = () => lora.loadStateDict({ [key]: eights([...shape]) }, { strict: false });
        expect(load).toThrow(`"${key}" must be float32, float16 or bfloat16, got int8`);
      }
      using norm = new nn.LayerNorm(2);
      expect(() => norm.loadStateDict({ weight: eights([2]) }, { strict: false })).toThrow('"weight" must be float32');
      using quantized = new nn.Linear8bitLt(4, 2, { hasFp16Weights: false });
      expect(() => quantized.loadStateDict({ bias: eights([2]) }, { strict: false })).toThrow('"bias" must be float32');
    });
  });

  it("make no parameter that learns and no weight to quantize", () => {
    tidy(() => {
      const codes = integers(new Int8Array(n * k));
      expect(() => new nn.Parameter(codes)).toThrow(
        "Parameter: data must be float32, float16 or bfloat16 unless requiresGrad is false, got int8",
      );
      expect(() => new nn.Params4bit(codes)).toThrow(
        "Params4bit: data without a quantState must be float32, float16 or bfloat16, got int8",
      );
      expect(codes.disposed).toBe(false);
      using frozen = new nn.Parameter(codes, { requiresGrad: false });
      expect(frozen.requiresGrad).toBe(false);
    });
  });

  it("floats of every width convert into each other", () => {
    tidy(() => {
      for (const dtype of dtypes) {
        for (const from of dtypes) {
          using layer = new nn.Linear(k, n, { bias, dtype });
          layer.loadStateDict({ weight: tensor(new Float32Array(n * k).fill(1.5), { shape: [n, k], dtype: from }) });
          expect(layer.weight.dtype).toBe(dtype);
          expect(new Set(layer.weight.floatsSync())).toEqual(new Set([1.5]));
        }
      }
    });
  });
});

describe("shapes of float weights", () => {
  it.each(all)("are checked by %s", (_, make) => {
    tidy(() => {
      using layer = make();
      for (const shape of [[k, n], [n * k], [n, k + 1], [n + 1, k], [1, n, k]]) {
        const load = () => layer.loadStateDict({ weight: zeros(shape) }, { strict: false });
        expect(load, `${shape}`).toThrow(`the shape of "weight" must be [${n}, ${k}], got [${shape.join(", ")}]`);
        expect(codeOf(load)).toBe("ERR_BNB_SHAPE");
      }
    });
  });
});
