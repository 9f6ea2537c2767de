// Linear8bitLt and Embedding8bit: checkpoints both ways, training, what is frozen and freed.
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { cast, mean, memory, mul, noGrad, randn, sub, tensor, tidy } from "../../src/index.js";
import { Embedding8bit, Linear, Linear8bitLt } from "../../src/nn/index.js";
import { AdamW } from "../../src/optim/index.js";
import { expectClose, relativeError } from "../helpers/expect-close.js";
import { normals } from "../helpers/random.js";
import { readSafetensors, toNumbers } from "../helpers/safetensors.js";
import { mixedLinear, quantizeRows } from "../reference/int8.js";

const file = readSafetensors("functional/int8.safetensors");
const fixture = (name: string): Tensor => {
  const t = file.get(name);
  if (!t) throw new Error(`no ${name}`);
  return tensor(t.values as never, { dtype: t.dtype as never, shape: t.shape });
};

let before: number;
beforeEach(() => {
  before = memory().tensors;
});
afterEach(() => {
  expect(memory().tensors).toBe(before);
});

describe("Linear8bitLt", () => {
  const [n, k] = [20, 48];

  it("loads a checkpoint of bitsandbytes into a fresh layer and gives its outputs", () => {
    tidy(() => {
      using layer = new Linear8bitLt(k, n, { hasFp16Weights: false, threshold: 6 });
      layer.loadStateDict(
        new Map(["weight", "SCB", "weight_format", "bias"].map((key) => [key, fixture(`linear8.sd.${key}`)])),
      );
      expect(layer.isQuantized).toBe(true);
      // That run casts activations and products to float16.
      const y = layer.forward(cast(fixture("linear8.x"), "float16"));
      expectClose(y.floatsSync(), toNumbers(file.get("linear8.y") as never), { atol: 1e-3, rtol: 2e-3 });
      const saved = layer.stateDict();
      expect([...saved.keys()].sort()).toEqual(["SCB", "bias", "weight", "weight_format"]);
      for (const [key, value] of saved) {
        const expected = file.get(`linear8.sd.${key}`);
        expect(value.dtype, key).toBe(expected?.dtype);
        expect(value.shape, key).toEqual(expected?.shape);
        expect(value.dataSync(), key).toEqual(expected?.values);
      }
    });
  });

  it("quantizes at the first forward, frees the float weight and freezes it", () => {
    tidy(() => {
      using layer = new Linear8bitLt(k, n, { hasFp16Weights: false, bias: false, threshold: 2 });
      const w = layer.weight.floatsSync();
      const float = layer.weight;
      const x = randn([3, k]);
      const y = layer.forward(x);
      expect(float.disposed).toBe(true);
      expect([layer.weight.dtype, layer.weight.requiresGrad]).toEqual(["int8", false]);
      const weight = quantizeRows(w, n, k);
      expect(layer.weight.dataSync()).toEqual(weight.codes);
      const expected = mixedLinear(x.floatsSync(), weight.codes, weight.stats, [3, n, k], { threshold: 2 });
      expectClose(y.floatsSync(), expected.y, { atol: 1e-5, rtol: 1e-5 });
    });
  });

  it("trains its float weight with hasFp16Weights, requantizing after every step", () => {
    const target = new Linear(k, n);
    const layer = new Linear8bitLt(k, n, { threshold: 6 });
    const optimizer = new AdamW(layer.parameters(), { lr: 3e-2, weightDecay: 0 });
    const x = tensor(normals(64 * k, 1), { shape: [64, k] });
    const y = noGrad(() => target.forward(x));
    const losses: number[] = [];
    for (let step = 0; step < 60; step++) {
      losses.push(
        tidy(() => {
          const error = sub(layer.forward(x), y);
          const loss = mean(mul(error, error));
          loss.backward();
          optimizer.step();
          optimizer.zeroGrad();
          return loss.itemSync();
        }),
      );
    }
    // The codes follow the weight: the loss falls to what int8 rounding leaves.
    expect(losses.at(-1)).toBeLessThan((losses[0] as number) / 50);
    const error = tidy(() => relativeError(layer.forward(x).floatsSync(), y.floatsSync()));
    expect(error).toBeLessThan(0.05);
    expect([...layer.stateDict().keys()]).toEqual(["weight", "bias"]);
    for (const owner of [target, layer, optimizer, x, y]) owner.dispose();
  });

  it("loads float weights into a quantized layer, and quantized ones into a float layer", () => {
    tidy(() => {
      using quantized = new Linear8bitLt(k, n, { hasFp16Weights: false }).quantize();
      using linear = new Linear(k, n);
      quantized.loadStateDict(linear.stateDict(), { strict: false });
      expect(quantized.weight.dataSync()).toEqual(quantizeRows(linear.weight.floatsSync(), n, k).codes);
      using fresh = new Linear8bitLt(k, n);
      fresh.loadStateDict(quantized.stateDict());
      expect(fresh.isQuantized).toBe(true);
      const x = randn([2, k]);
      expect(fresh.forward(x).dataSync()).toEqual(quantized.forward(x).dataSync());
    });
  });

  it("refuses damaged checkpoints and changes nothing", () => {
    tidy(() => {
      using layer = new Linear8bitLt(2, 1, { bias: false });
      const codes = (values: number[]): Tensor => tensor(Int8Array.from(values), { shape: [1, 2] });
      const scale = tensor([1]);
      const load = (dict: Record<string, Tensor>) => () => layer.loadStateDict(dict);
      expect(load({ weight: codes([1, -128]), SCB: scale })).toThrow(
        '"weight" must hold codes from -127 to 127, got -128',
      );
      expect(load({ weight: codes([1, 2]), SCB: tensor([-1]) })).toThrow(
        '"SCB" must be finite and not negative, got -1',
      );
      expect(load({ weight: codes([1, 2]), SCB: tensor([Infinity]) })).toThrow(
        '"SCB" must be finite and not negative, got Infinity',
      );
      expect(
        load({ weight: codes([1, 2]), SCB: scale, weight_format: tensor(new Uint8Array([2]), { shape: [] }) }),
      ).toThrow('"weight_format" must be 0 (row-major), got 2');
      expect(load({ weight: tensor([[1, 2]]), SCB: scale })).toThrow(
        '"weight" must be int8 [1, 2], got float32 [1, 2]',
      );
      expect(load({ weight: tensor(Int8Array.of(1, 2), { shape: [2, 1] }), SCB: scale })).toThrow(
        '"weight" must be int8 [1, 2], got int8 [2, 1]',
      );
      expect(layer.isQuantized).toBe(false);
      expect(() => new Linear8bitLt(2, 2, { threshold: -1 })).toThrow(
        "Linear8bitLt: threshold must be at least 0, got -1",
      );
      expect(() => new Linear8bitLt(2, 2, { threshold: -0.5 })).toThrow("threshold must be at least 0, got -0.5");
    });
  });
});

describe("Embedding8bit", () => {
  it("gathers rows within a code of the float table, and saves like Linear8bitLt", () => {
    tidy(() => {
      using table = new Embedding8bit(10, 7);
      const w = table.weight.floatsSync();
      const ids = tensor([3, 0, 9, 3], { dtype: "int32", shape: [2, 2] });
      const y = table.forward(ids);
      expect(y.shape).toEqual([2, 2, 7]);
      const { codes, stats } = quantizeRows(w, 10, 7);
      const expected = [3, 0, 9, 3].flatMap((row) =>
        Array.from({ length: 7 }, (_, j) => ((codes[row * 7 + j] as number) * (stats[row] as number)) / 127),
      );
      expectClose(y.floatsSync(), expected, { atol: 0, rtol: 3e-7 });
      const saved = table.stateDict();
      expect([...saved.keys()].sort()).toEqual(["SCB", "weight", "weight_format"]);
      using other = new Embedding8bit(10, 7);
      other.loadStateDict(saved);
      expect(other.forward(ids).dataSync()).toEqual(y.dataSync());
    });
  });

  it("is exact for weights of one magnitude, and reports an id beyond the table", async () => {
    const table = new Embedding8bit(4, 2, { dtype: "bfloat16" });
    const [signs, ids] = [
      tensor([
        [1, -1],
        [-1, 1],
        [1, 1],
        [-1, -1],
      ]),
      tensor([1, 3], { dtype: "int32" }),
    ];
    table.loadStateDict({ weight: signs });
    const y = table.forward(ids);
    expect(y.dtype).toBe("bfloat16");
    expect([...y.floatsSync()]).toEqual([-1, 1, -1, -1]);
    const bad = tensor([4], { dtype: "int32" });
    const wrong = table.forward(bad);
    await expect(wrong.data()).rejects.toThrow("index 4 is out of range, it must be in [0, 4)");
    for (const owner of [table, signs, ids, y, bad, wrong]) owner.dispose();
  });
});
