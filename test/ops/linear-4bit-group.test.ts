// 4-bit products with what stands next to them in a model: a residual, further weights of the same x, SwiGLU.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import type { DType, Quantized4Bit, Tensor } from "../../src/index.js";
import {
  linear4bit,
  linear4bitEach,
  linear4bitSwiglu,
  memory,
  noGrad,
  quantize4bit,
  tensor,
  tidy,
} from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { relativeError } from "../helpers/expect-close.js";
import { noise } from "../helpers/noise.js";
import { decode4bit, linear } from "../reference/linear-4bit.js";

// Of one rounding of x, of the decoded weight where a kernel does that, and of the result.
const limits = { float32: 2e-6, float16: 1e-3, bfloat16: 8e-3 } as const;

describe.each(testDevices())("on %s", (device) => {
  const make = (values: ArrayLike<number>, shape: readonly number[], dtype: DType = "float32"): Tensor =>
    tensor(Float64Array.from(values), { shape, dtype, device });

  const weightOf = (
    n: number,
    k: number,
    seed: number,
    options = {},
  ): { handle: Quantized4Bit; values: Float64Array } => {
    const w = make(
      noise(n * k, seed).map((v) => v / Math.sqrt(k)),
      [n, k],
    );
    const [packed, state] = quantize4bit(w, { quantType: "nf4", ...options });
    return { handle: state.quantized(packed), values: decode4bit(packed, state) };
  };

  const dtypes = ["float32", "float16", "bfloat16"] as const;
  // Rows of x for each of the kernels, and sizes of which one has no block of whole rows.
  const shapes = [
    { m: 1, k: 128, n: 96 },
    { m: 5, k: 192, n: 40 },
    { m: 17, k: 64, n: 33 },
    { m: 40, k: 128, n: 72 },
    { m: 3, k: 50, n: 10 },
  ];
  const cases = shapes.flatMap((shape) => dtypes.map((dtype) => ({ ...shape, dtype })));

  describe("linear4bit with a residual", () => {
    it.each(cases)("adds it before the rounding: %o", ({ m, k, n, dtype }) =>
      tidy(() => {
        const { handle, values } = weightOf(n, k, 3);
        const x = make(noise(m * k, 5), [m, k], dtype);
        // Large beside the product: added after a rounding, it would lose digits.
        const residual = make(noise(m * n, 6), [m, n], dtype);
        const bias = make(noise(n, 7), [n]);
        const y = linear4bit(x, handle, bias, residual);
        expect(y.dtype).toBe(dtype);
        const product = linear(x.floatsSync(), values, n, k, bias.floatsSync()).y;
        const expected = residual.floatsSync().map((r, i) => r + product[i]!);
        expect(relativeError(y.floatsSync(), expected)).toBeLessThan(limits[dtype]);
      }),
    );

    it("passes the gradient on to it", () =>
      tidy(() => {
        const { handle } = weightOf(24, 64, 3);
        const [x, residual] = [make(noise(2 * 64, 1), [2, 64]), make(noise(2 * 24, 2), [2, 24])];
        for (const t of [x, residual]) t.requiresGrad = true;
        const dy = make(noise(2 * 24, 4), [2, 24]);
        backward(linear4bit(x, handle, null, residual), dy);
        expect([...residual.grad!.floatsSync()]).toEqual([...dy.floatsSync()]);
        const alone = make(noise(2 * 64, 1), [2, 64]);
        alone.requiresGrad = true;
        backward(linear4bit(alone, handle), dy);
        expect([...x.grad!.floatsSync()]).toEqual([...alone.grad!.floatsSync()]);
      }));

    it("names one of another shape, dtype or device", () => {
      const { handle } = weightOf(24, 64, 3);
      const x = make(noise(128, 1), [2, 64]);
      expect(() => linear4bit(x, handle, null, make(noise(24, 1), [1, 24]))).toThrow(
        "linear4bit: residual must have shape [2, 24], got [1, 24]",
      );
      expect(() => linear4bit(x, handle, null, make(noise(48, 1), [2, 24], "bfloat16"))).toThrow(
        "linear4bit: x and residual must have one dtype, got float32 and bfloat16",
      );
    });
  });

  describe("linear4bitEach", () => {
    it.each(cases)("multiplies with each weight: %o", ({ m, k, n, dtype }) =>
      tidy(() => {
        // The nested one has other scales; the last is the largest.
        const weights = [
          weightOf(n, k, 3),
          weightOf(Math.ceil(n / 3), k, 4, { compressStatistics: true }),
          weightOf(n + 70, k, 5, { quantType: "fp4" }),
        ];
        const x = make(noise(m * k, 5), [m, k], dtype);
        for (const some of [weights, weights.slice(0, 2)]) {
          const ys = linear4bitEach(
            x,
            some.map(({ handle }) => handle),
          );
          expect(ys).toHaveLength(some.length);
          for (const [i, { values }] of some.entries()) {
            const rows = values.length / k;
            expect(ys[i]!.shape).toEqual([m, rows]);
            const expected = linear(x.floatsSync(), values, rows, k).y;
            expect(relativeError(ys[i]!.floatsSync(), expected)).toBeLessThan(limits[dtype]);
          }
        }
      }),
    );

    it("takes blocks of other sizes side by side, and no rows at all", () =>
      tidy(() => {
        const weights = [weightOf(40, 256, 1, { blocksize: 32 }), weightOf(24, 256, 2, { blocksize: 256 })];
        const x = make(noise(2 * 256, 5), [2, 256], "bfloat16");
        const ys = linear4bitEach(
          x,
          weights.map(({ handle }) => handle),
        );
        for (const [i, { values }] of weights.entries()) {
          const expected = linear(x.floatsSync(), values, values.length / 256, 256).y;
          expect(relativeError(ys[i]!.floatsSync(), expected)).toBeLessThan(limits.bfloat16);
        }
        const empty = linear4bitEach(
          make([], [0, 256]),
          weights.map(({ handle }) => handle),
        );
        expect(empty.map((y) => y.shape)).toEqual([
          [0, 40],
          [0, 24],
        ]);
      }));

    it("names what does not fit, and leaves nothing behind", () => {
      const [a, b] = [weightOf(24, 64, 3).handle, weightOf(24, 128, 3).handle];
      const x = make(noise(64, 1), [1, 64]);
      const before = memory().tensors;
      expect(() => linear4bitEach(x, [a, b])).toThrow("linear4bitEach: the last axis of x must be 128, got [1, 64]");
      expect(() => linear4bitEach(x, [a])).toThrow("linear4bitEach: weights must be two or three, got 1");
      expect(() => linear4bitEach(x, [a, a, a, a])).toThrow("linear4bitEach: weights must be two or three, got 4");
      x.requiresGrad = true;
      expect(() => linear4bitEach(x, [a, a])).toThrow("linear4bitEach: it has no gradient, call it inside noGrad");
      const ys = noGrad(() => linear4bitEach(x, [a, a]));
      for (const y of ys) y.dispose();
      expect(memory().tensors).toBe(before);
    });
  });

  describe("linear4bitSwiglu", () => {
    it.each(cases)("gates one product with the other: %o", ({ m, k, n, dtype }) =>
      tidy(() => {
        const [gate, up] = [weightOf(n, k, 3), weightOf(n, k, 4, { compressStatistics: true })];
        const x = make(
          noise(m * k, 5).map((v) => 3 * v),
          [m, k],
          dtype,
        );
        const y = linear4bitSwiglu(x, gate.handle, up.handle);
        expect(y.dtype).toBe(dtype);
        const g = linear(x.floatsSync(), gate.values, n, k).y;
        const u = linear(x.floatsSync(), up.values, n, k).y;
        const expected = g.map((v, i) => (v / (1 + Math.exp(-v))) * u[i]!);
        // Three roundings instead of one where the products are stored in between.
        expect(relativeError(y.floatsSync(), expected)).toBeLessThan(2 * limits[dtype]);
      }),
    );

    it("names weights that do not go together", () => {
      const [gate, up] = [weightOf(24, 64, 3).handle, weightOf(25, 64, 3).handle];
      expect(() => linear4bitSwiglu(make(noise(64, 1), [1, 64]), gate, up)).toThrow(
        "linear4bitSwiglu: gate and up must have as many outputs, got [24, 64] and [25, 64]",
      );
    });
  });
});
