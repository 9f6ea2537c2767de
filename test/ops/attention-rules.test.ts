// attention with a window, a softcap, sinks and packed samples, against the definition in float64.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import type { Tensor } from "../../src/index.js";
import { tensor, zeros } from "../../src/index.js";
import { attention } from "../../src/ops/attention.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { noise } from "../helpers/noise.js";
import type { FloatDType } from "../helpers/tolerance.js";
import { tolerance } from "../helpers/tolerance.js";
import type { AttentionSizes } from "../reference/attention.js";
import { attentionReference } from "../reference/attention.js";

const base: AttentionSizes = { batch: 1, queries: 9, keys: 9, heads: 4, kvHeads: 2, dim: 8 };
const sinks = [0.5, -1, 2, 0];
const sized = (time: number, more: Partial<AttentionSizes> = {}): AttentionSizes => ({
  ...base,
  queries: time,
  keys: time,
  ...more,
});

describe.each(testDevices())("attention's rules on %s", (device) => {
  function inputs({ batch, queries, keys, heads, kvHeads, dim }: AttentionSizes, dtype: FloatDType = "float32") {
    const make = (time: number, h: number, seed: number): Tensor =>
      tensor(noise(batch * time * h * dim, seed), { shape: [batch, time, h, dim], dtype, device });
    return [make(queries, heads, 1), make(keys, kvHeads, 2), make(keys, kvHeads, 3)] as const;
  }
  const options = ({ causal, scale, window, softcap, sinks, starts }: AttentionSizes, given?: Tensor) => ({
    ...(scale === undefined ? {} : { scale }),
    ...(causal === undefined ? {} : { causal }),
    ...(window === undefined ? {} : { window }),
    ...(softcap === undefined ? {} : { softcap }),
    ...(sinks === undefined ? {} : { sinks: given ?? tensor(Float32Array.from(sinks), { device }) }),
    ...(starts === undefined ? {} : { starts: tensor([...starts], { dtype: "int32", device }) }),
  });

  function check(sizes: AttentionSizes, dtype: FloatDType = "float32"): void {
    const [q, k, v] = inputs(sizes, dtype);
    const y = attention(q, k, v, options(sizes));
    const expected = attentionReference(q.floatsSync(), k.floatsSync(), v.floatsSync(), sizes);
    expectClose(y.floatsSync(), expected, tolerance(dtype, "reduction"));
    for (const t of [q, k, v, y]) t.dispose();
  }

  describe("values", () => {
    it.each([true, false])("a window, causal %s", (causal) => {
      for (const window of [1, 2, 7, 64, 70, 200]) check(sized(100, { causal, window }));
      for (const queries of [1, 2, 9]) check({ ...base, queries, keys: 80, causal, window: 20 });
      check({ ...base, batch: 2, queries: 40, keys: 100, causal, window: 33 });
    });

    it("a softcap, also far beyond it", () => {
      for (const softcap of [0.5, 5, 50]) check(sized(70, { softcap }));
      check({ ...base, queries: 1, keys: 90, softcap: 2 });
      check(sized(20, { softcap: 1, scale: 40, causal: false }));
    });

    it("sinks, which alone leave nothing", () => {
      for (const time of [1, 9, 70]) check(sized(time, { batch: 2, sinks }));
      check(sized(20, { sinks: [80, -80, 0, 1e4] }));
      check(sized(12, { sinks, starts: [3, 5] }));
    });

    it.each([true, false])("packed samples, causal %s", (causal) => {
      check(sized(30, { causal, starts: [0, 5, 5, 12, 30] }));
      check(sized(33, { causal, starts: [2, 3, 20] }));
      check(sized(200, { causal, starts: [0, 1, 70, 140, 200] }));
      check(sized(2, { causal, starts: [0, 1, 2] }));
      check(sized(9, { causal, starts: [4] }));
      check(sized(9, { causal, starts: [0, 0] }));
    });

    it("all of them together", () => {
      for (const causal of [true, false])
        check(sized(150, { causal, starts: [0, 20, 100, 148], window: 30, softcap: 4, sinks }));
    });

    it("each sample alone gives the same", () => {
      const sizes = sized(40, { starts: [0, 13, 40] });
      const [q, k, v] = inputs(sizes);
      const packed = attention(q, k, v, options(sizes)).floatsSync();
      const part = (t: Tensor, from: number, to: number): Tensor => {
        const row = t.shape[2]! * 8;
        return tensor(t.floatsSync().subarray(from * row, to * row), { shape: [1, to - from, t.shape[2]!, 8], device });
      };
      for (const [from, to] of [
        [0, 13],
        [13, 40],
      ] as const) {
        const alone = attention(part(q, from, to), part(k, from, to), part(v, from, to)).floatsSync();
        expectClose(packed.subarray(from * 32, to * 32), alone, tolerance("float32", "reduction"));
      }
    });
  });

  describe("gradients", () => {
    const cases: [string, AttentionSizes][] = [
      ["a window", sized(6, { dim: 3, window: 2 })],
      ["a window on both sides", sized(6, { dim: 3, window: 3, causal: false })],
      ["a softcap", sized(5, { dim: 3, softcap: 0.8, scale: 1 })],
      ["sinks", sized(5, { batch: 2, dim: 3, sinks })],
      ["packed samples", sized(7, { dim: 3, starts: [0, 2, 2, 6] })],
      ["all of them", sized(8, { dim: 3, starts: [1, 4, 8], window: 2, softcap: 1, sinks, causal: false })],
    ];
    it.each(cases)("%s", (_, sizes) => {
      const data = inputs(sizes).map((t) => ({ data: t.floatsSync(), shape: t.shape }));
      if (sizes.sinks) data.push({ data: Float32Array.from(sinks), shape: [4] });
      gradcheck((q, k, v, given) => attention(q!, k!, v!, options(sizes, given)), data, {
        device,
        reference: (q, k, v, given) => attentionReference(q!, k!, v!, given ? { ...sizes, sinks: given } : sizes),
      });
    });

    it("of sinks alone", () => {
      const sizes = sized(5, { dim: 3, sinks });
      const [q, k, v] = inputs(sizes);
      gradcheck(
        (given) => attention(q, k, v, options(sizes, given)),
        [{ data: Float32Array.from(sinks), shape: [4] }],
        {
          device,
          reference: (given) =>
            attentionReference(q.floatsSync(), k.floatsSync(), v.floatsSync(), { ...sizes, sinks: given! }),
        },
      );
    });

    it.each([true, false])("over several blocks: directional derivatives, causal %s", (causal) => {
      const sizes = sized(150, { dim: 16, causal, starts: [0, 20, 100, 150], window: 40, softcap: 3, sinks });
      const tensors = [...inputs(sizes), tensor(Float32Array.from(sinks), { device })];
      const at0 = tensors.map((t) => Float64Array.from(t.floatsSync()));
      for (const t of tensors) t.requiresGrad = true;
      const y = attention(tensors[0]!, tensors[1]!, tensors[2]!, options(sizes, tensors[3]));
      const weights = noise(y.size, 9);
      backward(y, tensor(weights, { shape: y.shape, device }));
      tensors.forEach((t, i) => {
        const direction = noise(t.size, 20 + i);
        const at = (step: number): number => {
          const moved = at0.map((values, j) => (j === i ? values.map((x, n) => x + step * direction[n]!) : values));
          const out = attentionReference(moved[0]!, moved[1]!, moved[2]!, { ...sizes, sinks: moved[3]! });
          return out.reduce((total, value, n) => total + value * weights[n]!, 0);
        };
        const expected = (at(1e-5) - at(-1e-5)) / 2e-5;
        const terms = Array.from(t.grad!.floatsSync(), (g, n) => g * direction[n]!);
        const actual = terms.reduce((a, b) => a + b, 0);
        const atol = 4 * tolerance("float32", "gradient").rtol * Math.hypot(...terms);
        expectClose([actual], [expected], { atol, rtol: 2e-5 });
      });
    });
  });

  describe.each(["float16", "bfloat16"] as const)("dtypes: %s", (dtype) => {
    const all = { window: 20, softcap: 5, sinks };
    it.each([16, 64, 72, 128, 256])("values with heads of %s", (dim) => {
      for (const causal of [true, false]) {
        check(sized(70, { dim, causal, starts: [0, 30, 70], ...all }), dtype);
        check(sized(130, { dim, causal, window: 40 }), dtype);
        check(sized(70, { dim, causal, starts: [3, 20, 20, 61] }), dtype);
        check({ ...base, queries: 2, keys: 200, dim, causal, ...all }, dtype);
      }
    });

    const cases: [string, AttentionSizes][] = [
      ["all rules", sized(70, { dim: 64, starts: [0, 30, 70], ...all })],
      ["both sides", sized(70, { dim: 64, starts: [0, 30, 70], ...all, causal: false })],
      ["tokens of no sample", sized(90, { dim: 16, starts: [3, 20, 20, 77], heads: 6, kvHeads: 1 })],
      ["a window over wide heads", sized(100, { dim: 128, window: 30 })],
      ["sinks", sized(20, { dim: 72, batch: 2, sinks })],
    ];
    it.each(cases)("gradients: %s", (_, sizes) => {
      const bound = sizes.sinks && tensor(Float32Array.from(sizes.sinks), { device });
      const tensors = [...inputs(sizes, dtype), ...(bound ? [bound] : [])];
      for (const t of tensors) t.requiresGrad = true;
      const y = attention(tensors[0]!, tensors[1]!, tensors[2]!, options(sizes, tensors[3]));
      const dy = tensor(noise(y.size, 5), { shape: y.shape, dtype, device });
      backward(y, dy);
      // The float32 gradients at the same (rounded) point; those are checked by differences above.
      const exact = tensors.map((t) => tensor(t.floatsSync(), { shape: t.shape, device, requiresGrad: true }));
      const same = attention(exact[0]!, exact[1]!, exact[2]!, options(sizes, exact[3]));
      backward(same, tensor(dy.floatsSync(), { shape: y.shape, device }));
      tensors.forEach((t, i) => {
        const [actual, expected] = [t.grad!.floatsSync(), exact[i]!.grad!.floatsSync()];
        // A sink's gradient is a sum over all rows, of which y is rounded.
        const sum = tolerance(dtype, "gradient").atol as number;
        const bounds = i < 3 ? tolerance(dtype, "gradient") : { atol: sum * Math.sqrt(sizes.queries), rtol: sum };
        expectClose(actual, expected, bounds);
      });
    });
  });

  it.each([32, 64, 80, 96, 128, 256])("heads of %s", (dim) => {
    for (const dtype of ["float32", "bfloat16"] as const) {
      check(sized(20, { dim, window: 7, sinks }), dtype);
      check({ ...base, queries: 1, keys: 30, dim, window: 7, softcap: 3 }, dtype);
    }
  });

  it("errors", () => {
    const [q, k, v] = inputs(sized(9));
    const starts = (...values: number[]): Tensor => tensor(values, { dtype: "int32", device });
    expect(() => attention(q, k, v, { window: 0 })).toThrow(
      "attention: window must be an integer of at least 1, got 0",
    );
    expect(() => attention(q, k, v, { softcap: -1 })).toThrow(
      "attention: softcap must be a finite number above 0, got -1",
    );
    expect(() => attention(q, k, v, { sinks: zeros([2], { device }) })).toThrow(
      "attention: sinks must have shape [4], got [2]",
    );
    expect(() => attention(q, k, v, { starts: zeros([2], { device }) })).toThrow(
      "attention: starts must be int32, got float32",
    );
    const [q2, k2, v2] = inputs(sized(4, { batch: 2 }));
    expect(() => attention(q2, k2, v2, { starts: starts(0, 4) })).toThrow(
      "attention: with starts, q and k must be one batch entry of as many queries as keys, got [2, 4, 4, 8]",
    );
    const says = (y: Tensor, message: string): void => expect(() => y.floatsSync()).toThrow(`attention: ${message}`);
    says(attention(q, k, v, { starts: starts(0, 10) }), "index 10 is out of range, it must be in [0, 10)");
    says(attention(q, k, v, { starts: starts(-1, 9) }), "index -1 is out of range, it must be in [0, 10)");
    says(attention(q, k, v, { starts: starts(0, 6, 4, 9) }), "index -2 is out of range, it must be in [0, 10)");
  });
});
