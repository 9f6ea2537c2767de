// attention against one query and one head at a time in float64.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import type { Tensor } from "../../src/index.js";
import { tensor, zeros } from "../../src/index.js";
import { attention } from "../../src/ops/attention.js";
import { slice } from "../../src/ops/shape.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { noise } from "../helpers/noise.js";
import type { FloatDType } from "../helpers/tolerance.js";
import { tolerance } from "../helpers/tolerance.js";
import type { AttentionSizes } from "../reference/attention.js";
import { attentionReference } from "../reference/attention.js";

const base: AttentionSizes = { batch: 2, queries: 7, keys: 7, heads: 4, kvHeads: 2, dim: 8 };

describe.each(testDevices())("attention on %s", (device) => {
  function inputs(sizes: AttentionSizes, dtype: FloatDType = "float32") {
    const { batch, queries, keys, heads, kvHeads, dim } = sizes;
    const make = (time: number, h: number, seed: number): Tensor =>
      tensor(noise(batch * time * h * dim, seed), { shape: [batch, time, h, dim], dtype, device });
    return [make(queries, heads, 1), make(keys, kvHeads, 2), make(keys, kvHeads, 3)] as const;
  }

  const options = ({ causal, scale }: AttentionSizes) => ({
    ...(causal === undefined ? {} : { causal }),
    ...(scale === undefined ? {} : { scale }),
  });

  function check(sizes: AttentionSizes, dtype: FloatDType = "float32", allowed = tolerance(dtype, "reduction")): void {
    const [q, k, v] = inputs(sizes, dtype);
    const y = attention(q, k, v, options(sizes));
    expect([y.dtype, y.shape]).toEqual([dtype, q.shape]);
    const expected = attentionReference(q.floatsSync(), k.floatsSync(), v.floatsSync(), sizes);
    expectClose(y.floatsSync(), expected, allowed);
    for (const t of [q, k, v, y]) t.dispose();
  }

  describe("values", () => {
    it("equal keys average the values seen so far", () => {
      const q = zeros([1, 3, 1, 2], { device });
      const k = zeros([1, 3, 1, 2], { device });
      const v = tensor([1, 10, 2, 20, 6, 60], { shape: [1, 3, 1, 2], device });
      expectClose(attention(q, k, v).floatsSync(), [1, 10, 1.5, 15, 3, 30]);
      expectClose(attention(q, k, v, { causal: false }).floatsSync(), [3, 30, 3, 30, 3, 30]);
    });

    it.each([true, false])("agrees with the definition, causal %s", (causal) => {
      for (const time of [1, 2, 5, 13, 64, 65, 150]) check({ ...base, queries: time, keys: time, causal });
      for (const dim of [1, 3, 16, 33, 64, 128]) check({ ...base, queries: 20, keys: 20, dim, causal });
      check({ ...base, queries: 40, keys: 100, causal });
    });

    it("groups of heads share keys", () => {
      for (const [heads, kvHeads] of [
        [1, 1],
        [6, 6],
        [6, 3],
        [6, 2],
        [6, 1],
        [20, 1],
      ] as const)
        for (const time of [1, 9, 40]) check({ ...base, heads, kvHeads, queries: time, keys: 40 });
    });

    it("decodes: a few queries at the end of many keys", () => {
      for (const queries of [1, 2, 3, 4, 9]) for (const keys of [9, 64, 65, 200]) check({ ...base, queries, keys });
      check({ ...base, queries: 1, keys: 100, dim: 37 });
    });

    it("a prefix and one more query give what all queries together give", () => {
      const [q, k, v] = inputs({ ...base, queries: 30, keys: 30 });
      const all = attention(q, k, v).floatsSync();
      const row = 4 * 8;
      const last = tensor(q.floatsSync().subarray(29 * row, 30 * row), { shape: [1, 1, 4, 8], device });
      const first = (t: Tensor): Tensor =>
        tensor(t.floatsSync().subarray(0, 30 * 16), { shape: [1, 30, 2, 8], device });
      const y = attention(last, first(k), first(v)).floatsSync();
      expectClose(y, all.subarray(29 * row, 30 * row), tolerance("float32", "reduction"));
    });

    it("takes a scale, and scores far beyond the range of exp", () => {
      check({ ...base, scale: 0.01 });
      // Scores of about 1000 carry float32 errors of 1e-4, which become relative errors of the weights.
      check({ ...base, queries: 70, keys: 70, scale: 100 }, "float32", { atol: 1e-3, rtol: 1e-3 });
      check({ ...base, queries: 70, keys: 70, scale: -3 });
    });
  });

  describe("gradients", () => {
    const cases: [string, AttentionSizes][] = [
      ["grouped heads", { ...base, batch: 1, queries: 5, keys: 5, dim: 3 }],
      ["not causal", { ...base, batch: 1, queries: 3, keys: 6, dim: 4, causal: false, scale: 0.7 }],
      ["more keys than queries", { ...base, batch: 2, queries: 3, keys: 5, heads: 2, kvHeads: 1, dim: 2 }],
    ];
    it.each(cases)("%s", (_, sizes) => {
      const data = inputs(sizes).map((t) => ({ data: t.floatsSync(), shape: t.shape }));
      gradcheck((q, k, v) => attention(q!, k!, v!, options(sizes)), data, {
        device,
        reference: (q, k, v) => attentionReference(q!, k!, v!, sizes),
      });
    });

    it("over several blocks of queries and keys: directional derivatives", () => {
      const sizes: AttentionSizes = { ...base, batch: 1, queries: 150, keys: 150, dim: 16 };
      const tensors = inputs(sizes);
      const y0 = tensors.map((t) => Float64Array.from(t.floatsSync()));
      for (const t of tensors) t.requiresGrad = true;
      const y = attention(...tensors);
      const weights = noise(y.size, 9);
      backward(y, tensor(weights, { shape: y.shape, device }));
      tensors.forEach((t, i) => {
        const direction = noise(t.size, 20 + i);
        const at = (step: number): number => {
          const moved = y0.map((values, j) => (j === i ? values.map((x, n) => x + step * direction[n]!) : values));
          const out = attentionReference(moved[0]!, moved[1]!, moved[2]!, sizes);
          return out.reduce((total, value, n) => total + value * weights[n]!, 0);
        };
        const expected = (at(1e-5) - at(-1e-5)) / 2e-5;
        const terms = Array.from(t.grad!.floatsSync(), (g, n) => g * direction[n]!);
        const actual = terms.reduce((a, b) => a + b, 0);
        // Each gradient has its own error, so they add up like the terms of a walk.
        const atol = 4 * tolerance("float32", "gradient").rtol * Math.hypot(...terms);
        expectClose([actual], [expected], { atol, rtol: 2e-5 });
      });
    });
  });

  it.each(["float32", "float16", "bfloat16"] as const)("dtypes: %s", (dtype) => {
    check({ ...base, queries: 30, keys: 30, dim: 20 }, dtype);
    check({ ...base, queries: 1, keys: 90, dim: 20 }, dtype);
    const sizes = { ...base, queries: 20, keys: 20 };
    const tensors = inputs(sizes, dtype);
    for (const t of tensors) t.requiresGrad = true;
    const y = attention(...tensors);
    const dy = tensor(noise(y.size, 5), { shape: y.shape, dtype, device });
    backward(y, dy);
    // The float32 gradients at the same (rounded) point; those are checked by differences above.
    const exact = tensors.map((t) => tensor(t.floatsSync(), { shape: t.shape, device, requiresGrad: true }));
    backward(attention(exact[0]!, exact[1]!, exact[2]!), tensor(dy.floatsSync(), { shape: y.shape, device }));
    tensors.forEach((t, i) => {
      expect(t.grad!.dtype).toBe(dtype);
      expectClose(t.grad!.floatsSync(), exact[i]!.grad!.floatsSync(), tolerance(dtype, "gradient"));
    });
  });

  describe.each(["float16", "bfloat16"] as const)("%s, whole vectors of 8 elements", (dtype) => {
    it.each([8, 64, 72, 128, 200, 256])("heads of %s", (dim) => {
      for (const queries of [20, 65, 100]) check({ ...base, batch: 1, queries, keys: queries + 30, dim }, dtype);
      check({ ...base, batch: 1, queries: 33, keys: 50, dim, causal: false }, dtype);
    });

    it("decodes, over one block or several", () => {
      for (const [heads, kvHeads] of [
        [8, 8],
        [8, 2],
        [16, 1],
        [20, 1],
      ] as const)
        for (const keys of [1, 15, 64, 65, 129, 500])
          check({ batch: 1, queries: 1, keys, heads, kvHeads, dim: 64 }, dtype);
      for (const queries of [2, 3, 5]) check({ batch: 2, queries, keys: 290, heads: 6, kvHeads: 2, dim: 32 }, dtype);
      for (const dim of [128, 256]) check({ batch: 1, queries: 1, keys: 280, heads: 4, kvHeads: 1, dim }, dtype);
    });

    it("scores far beyond the range of exp, and no keys at all", () => {
      const rough = { atol: 0.05, rtol: 0.05 };
      check({ ...base, batch: 1, queries: 70, keys: 70, dim: 16, scale: 30 }, dtype, rough);
      check({ ...base, batch: 1, queries: 70, keys: 70, dim: 16, scale: -3 }, dtype, rough);
      const [q, k, v] = inputs({ ...base, queries: 20, keys: 0, dim: 16 }, dtype);
      expect([...attention(q, k, v, { causal: false }).floatsSync()]).toEqual(new Array(q.size).fill(0));
    });

    it("gives the same bits every time", () => {
      for (const queries of [1, 70]) {
        const tensors = inputs({ ...base, batch: 1, queries, keys: 200, dim: 64 }, dtype);
        const run = (): Float32Array[] => {
          for (const t of tensors) {
            t.grad = null;
            t.requiresGrad = true;
          }
          const y = attention(...tensors);
          backward(y, tensor(noise(y.size, 4), { shape: y.shape, dtype, device }));
          return [y, ...tensors.map((t) => t.grad!)].map((t) => t.floatsSync());
        };
        expect(run()).toEqual(run());
      }
    });

    it.each([
      [8, 2, 70, 70, true],
      [4, 4, 20, 81, true],
      [6, 1, 40, 70, false],
    ] as const)("gradients: heads %s/%s, %s queries, %s keys", (heads, kvHeads, queries, keys, causal) => {
      for (const dim of [16, 72]) {
        const sizes: AttentionSizes = { batch: 1, queries, keys, heads, kvHeads, dim, causal };
        const tensors = inputs(sizes, dtype);
        for (const t of tensors) t.requiresGrad = true;
        const y = attention(...tensors, options(sizes));
        const dy = tensor(noise(y.size, 5), { shape: y.shape, dtype, device });
        backward(y, dy);
        const exact = tensors.map((t) => tensor(t.floatsSync(), { shape: t.shape, device, requiresGrad: true }));
        backward(
          attention(exact[0]!, exact[1]!, exact[2]!, options(sizes)),
          tensor(dy.floatsSync(), { shape: y.shape, device }),
        );
        tensors.forEach((t, i) => {
          expectClose(t.grad!.floatsSync(), exact[i]!.grad!.floatsSync(), tolerance(dtype, "gradient"));
        });
      }
    });
  });

  describe("shapes", () => {
    it("views that start between two vectors", () => {
      const sizes: AttentionSizes = { ...base, batch: 1, dim: 16 };
      const [q, k, v] = inputs(sizes, "float16");
      const shifted = (t: Tensor): Tensor => {
        const padded = tensor([0, ...t.floatsSync()], { dtype: "float16", device });
        return slice(padded, 0, 1, t.size + 1).reshape(t.shape);
      };
      const y = attention(shifted(q), shifted(k), shifted(v));
      const expected = attentionReference(q.floatsSync(), k.floatsSync(), v.floatsSync(), sizes);
      expectClose(y.floatsSync(), expected, tolerance("float16", "reduction"));
    });

    it("no batch, no queries, no keys", () => {
      expect(attention(...inputs({ ...base, batch: 0 })).shape).toEqual([0, 7, 4, 8]);
      expect(attention(...inputs({ ...base, queries: 0 })).shape).toEqual([2, 0, 4, 8]);
      const [q, k, v] = inputs({ ...base, keys: 0 });
      expect([...attention(q, k, v, { causal: false }).floatsSync()]).toEqual(new Array(q.size).fill(0));
    });

    it("gradients without queries or keys are zero", () => {
      for (const sizes of [
        { ...base, queries: 0 },
        { ...base, keys: 0, causal: false },
      ]) {
        const tensors = inputs(sizes);
        for (const t of tensors) t.requiresGrad = true;
        const y = attention(...tensors, options(sizes));
        backward(y, zeros(y.shape, { device }));
        for (const t of tensors) expect(t.grad!.floatsSync().every((g) => g === 0)).toBe(true);
      }
    });
  });

  it("errors", () => {
    const [q, k, v] = inputs(base);
    const [few, fewValues] = inputs({ ...base, keys: 6 }).slice(1) as [Tensor, Tensor];
    expect(() => attention(q, few, fewValues)).toThrow(
      "attention: causal attention must have at least as many keys as queries, got [2, 7, 4, 8] and [2, 6, 2, 8]",
    );
    expect(() => attention(q, k, q)).toThrow("v must have shape [2, 7, 2, 8]");
    expect(() => attention(q, zeros([2, 7, 3, 8], { device }), zeros([2, 7, 3, 8], { device }))).toThrow(
      "the heads of q (4) must be a multiple of those of k (3)",
    );
    expect(() => attention(zeros([2, 7, 8], { device }), k, v)).toThrow("four axes");
    expect(() => attention(q, zeros([2, 7, 2, 4], { device }), zeros([2, 7, 2, 4], { device }))).toThrow(
      "same batch and dim",
    );
  });
});
