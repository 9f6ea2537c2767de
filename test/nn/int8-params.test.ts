// Int8Params: from floats and from codes, alone and as the weight of a layer.
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Int8Params, Linear8bitLt } from "../../src/nn/index.js";
import { int8VectorwiseQuant } from "../../src/ops/index.js";
import { tensor } from "../../src/tensor/create.js";
import { memory, tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { normals } from "../helpers/random.js";
import { quantizeRows } from "../reference/int8.js";

const [n, k] = [3, 16];
const weight = (): Tensor => tensor(normals(n * k, 1), { shape: [n, k] });

let before: number;
beforeEach(() => {
  before = memory().tensors;
});
afterEach(() => {
  expect(memory().tensors).toBe(before);
});

describe("Int8Params", () => {
  it("is a float parameter that learns until it is quantized", () => {
    tidy(() => {
      const values = normals(n * k, 1);
      const float = new Int8Params(weight());
      expect([float.requiresGrad, float.SCB, float.CB, float.hasFp16Weights]).toEqual([true, null, null, false]);
      using quantized = float.quantize();
      expect(float.disposed).toBe(true);
      const { codes, stats } = quantizeRows(values, n, k);
      expect(quantized.dataSync()).toEqual(codes);
      expect(quantized.SCB?.dataSync()).toEqual(stats);
      expect([quantized.requiresGrad, quantized.CB, quantized.quantize()]).toEqual([false, quantized, quantized]);
      using kept = new Int8Params(weight(), { hasFp16Weights: true });
      expect(kept.quantize()).toBe(kept);
      expect(kept.dtype).toBe("float32");
    });
  });

  it("takes over codes, as data or as CB", () => {
    tidy(() => {
      const { codes, stats } = int8VectorwiseQuant(weight());
      const expected = [...codes.dataSync()];
      using byData = new Int8Params(codes, { SCB: stats });
      expect([...byData.dataSync()]).toEqual(expected);
      const again = int8VectorwiseQuant(weight());
      const float = weight();
      using byCB = new Int8Params(float, { CB: again.codes, SCB: again.stats });
      expect([...byCB.dataSync()]).toEqual(expected);
      expect(float.disposed).toBe(true);
    });
  });

  it("becomes the weight of a Linear8bitLt that computes and saves it", () => {
    tidy(() => {
      using layer = new Linear8bitLt(k, n, { bias: false });
      layer.weight.dispose();
      const { codes, stats } = int8VectorwiseQuant(weight());
      const [c, s] = [[...codes.dataSync()], [...stats.dataSync()]];
      layer.weight = new Int8Params(codes, { SCB: stats });
      using other = new Linear8bitLt(k, n, { bias: false, hasFp16Weights: false });
      other.loadStateDict({ weight: weight() });
      const x = tensor(normals(2 * k, 5), { shape: [2, k] });
      expect(layer.forward(x).dataSync()).toEqual(other.forward(x).dataSync());
      expect(layer.isQuantized).toBe(true);
      const saved = layer.stateDict();
      expect([...saved.keys()].sort()).toEqual(["SCB", "weight", "weight_format"]);
      expect([...(saved.get("weight") as Tensor).dataSync()]).toEqual(c);
      expect([...(saved.get("SCB") as Tensor).dataSync()]).toEqual(s);
    });
  });

  it("refuses codes without scales, of another form, and that no file may hold", () => {
    tidy(() => {
      const codes = (first = 1): Tensor => tensor(Int8Array.from([first, 2, 3, 4]), { shape: [2, 2] });
      expect(() => new Int8Params(codes())).toThrow("Parameter: data must be float32, float16 or bfloat16");
      expect(() => new Int8Params(weight(), { CB: codes() })).toThrow(
        "Int8Params: CB and SCB must be given together, got CB alone",
      );
      expect(() => new Int8Params(weight(), { SCB: tensor([1, 2, 3]) })).toThrow(
        "Int8Params: the codes must be int8 [N, K] and SCB float32 [N], got float32 [3, 16] and float32 [3]",
      );
      expect(() => new Int8Params(codes(), { SCB: tensor([1]) })).toThrow("got int8 [2, 2] and float32 [1]");
      using layer = new Linear8bitLt(2, 2, { bias: false });
      const use = (params: Int8Params) => () => {
        layer.weight.dispose();
        layer.weight = params;
        layer.quantize();
      };
      expect(use(new Int8Params(codes(-128), { SCB: tensor([1, 1]) }))).toThrow(
        "codes must be from -127 to 127, got -128",
      );
      expect(use(new Int8Params(codes(), { SCB: tensor([1, Infinity]) }))).toThrow(
        "Int8Params: SCB must be finite and not negative, got Infinity",
      );
    });
  });
});
