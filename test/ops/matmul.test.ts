// matmul and linear against their definition in float64.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import { devices, tensor, zeros } from "../../src/index.js";
import { fmaPeak, linear, matmul } from "../../src/ops/matmul.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { noise } from "../helpers/noise.js";
import type { FloatDType } from "../helpers/tolerance.js";
import { errorOfSum, roundoff, sumError, tolerance } from "../helpers/tolerance.js";
import type { ProductSizes } from "../reference/matmul.js";
import { linearReference, matmulReference } from "../reference/matmul.js";

const floats: FloatDType[] = ["float32", "float16", "bfloat16"];
const flags = [false, true];

describe.each(testDevices())("matmul on %s", (device) => {
  function operands(sizes: ProductSizes, dtype: FloatDType) {
    const { batch, m, n, k, transposeA, transposeB, sharedB } = sizes;
    const lead = batch === 1 && !sharedB ? [] : [batch];
    const a = tensor(noise(batch * m * k, 1), { shape: [...lead, ...(transposeA ? [k, m] : [m, k])], dtype, device });
    const b = tensor(noise((sharedB ? 1 : batch) * n * k, 2), {
      shape: [...(sharedB ? [] : lead), ...(transposeB ? [n, k] : [k, n])],
      dtype,
      device,
    });
    return { a, b };
  }

  function check(sizes: ProductSizes, dtype: FloatDType = "float32"): void {
    const { a, b } = operands(sizes, dtype);
    const y = matmul(a, b, { transposeA: sizes.transposeA ?? false, transposeB: sizes.transposeB ?? false });
    expect(y.dtype).toBe(dtype);
    // The reference sees the values after rounding to dtype, so only the sum and the last rounding differ.
    const [av, bv] = [a.floatsSync(), b.floatsSync()];
    const expected = matmulReference(av, bv, sizes);
    const squared = matmulReference(
      av.map((v) => v * v),
      bv.map((v) => v * v),
      sizes,
    );
    const atol = expected.map((sum, i) => errorOfSum(sizes.k, sum, Math.sqrt(squared[i]!)));
    expectClose(y.floatsSync(), expected, { atol, rtol: roundoff[dtype] });
    for (const t of [a, b, y]) t.dispose();
  }

  describe("values", () => {
    it("multiplies a small example", () => {
      const a = tensor(
        [
          [1, 2],
          [3, 4],
          [5, 6],
        ],
        { device },
      );
      const b = tensor(
        [
          [1, -1, 0],
          [2, 0.5, 10],
        ],
        { device },
      );
      const y = matmul(a, b);
      expect(y.shape).toEqual([3, 3]);
      expect([...y.floatsSync()]).toEqual([5, 0, 20, 11, -1, 40, 17, -2, 60]);
    });

    it.each(flags.flatMap((transposeA) => flags.map((transposeB) => ({ transposeA, transposeB }))))(
      "agrees with the definition over small and large sizes, %o",
      (transposed) => {
        for (const m of [1, 3, 8, 9, 14, 15, 29, 65])
          for (const n of [1, 7, 16, 33, 100]) for (const k of [1, 4, 37]) check({ batch: 1, m, n, k, ...transposed });
        check({ batch: 1, m: 70, n: 90, k: 600, ...transposed });
        check({ batch: 1, m: 5, n: 1030, k: 300, ...transposed });
        check({ batch: 1, m: 1030, n: 5, k: 300, ...transposed });
        check({ batch: 1, m: 40, n: 700, k: 130, ...transposed });
        check({ batch: 2, m: 200, n: 13, k: 70, ...transposed }, "bfloat16");
      },
    );

    it("sums a long axis in blocks: 1100 x 40 x 530", () => check({ batch: 1, m: 1100, n: 40, k: 530 }));

    it("spreads NaN and infinity to their row only", () => {
      const a = tensor(
        [
          [1, NaN],
          [1, 1],
          [Infinity, 1],
        ],
        { device },
      );
      const b = tensor(
        [
          [1, 2],
          [3, 4],
        ],
        { device },
      );
      expect([...matmul(a, b).floatsSync()]).toEqual([NaN, NaN, 4, 6, Infinity, Infinity]);
    });

    it.each(floats)("few columns take the bias, too: %s", (dtype) => {
      const [m, n, k] = [200, 5, 96];
      const x = tensor(noise(m * k, 1), { shape: [m, k], dtype, device });
      const w = tensor(noise(n * k, 2), { shape: [n, k], dtype, device });
      const bias = tensor(noise(n, 3), { dtype, device });
      const [xv, wv, bv] = [x, w, bias].map((t) => t.floatsSync()) as [Float32Array, Float32Array, Float32Array];
      const sizes = { batch: 1, m, n, k, transposeB: true };
      const squared = matmulReference(
        xv.map((v) => v * v),
        wv.map((v) => v * v),
        sizes,
      );
      const expected = matmulReference(xv, wv, sizes).map((sum, i) => sum + bv[i % n]!);
      const atol = expected.map((sum, i) => errorOfSum(k + 1, sum, Math.sqrt(squared[i]! + bv[i % n]! ** 2)));
      expectClose(linear(x, w, bias).floatsSync(), expected, { atol, rtol: roundoff[dtype] });
      for (const t of [x, w, bias]) t.dispose();
    });

    it("linear adds the bias", () => {
      for (const rows of [1, 4, 9, 40]) {
        const x = noise(rows * 37, 1);
        const w = noise(21 * 37, 2);
        const bias = noise(21, 3);
        const y = linear(
          tensor(x, { shape: [rows, 37], device }),
          tensor(w, { shape: [21, 37], device }),
          tensor(bias, { device }),
        );
        expectClose(y.floatsSync(), linearReference(x, w, bias, rows, 21, 37), tolerance("float32", "reduction"));
      }
    });
  });

  describe("gradients", () => {
    it.each(flags.flatMap((transposeA) => flags.map((transposeB) => ({ transposeA, transposeB }))))(
      "matmul, %o",
      (transposed) => {
        const cases: ProductSizes[] = [
          { batch: 1, m: 3, n: 4, k: 5, ...transposed },
          { batch: 2, m: 4, n: 3, k: 2, ...transposed },
          { batch: 3, m: 2, n: 3, k: 4, sharedB: true, ...transposed },
        ];
        for (const sizes of cases) {
          const { a, b } = operands(sizes, "float32");
          gradcheck(
            (x, y) => matmul(x, y, transposed),
            [
              { data: a.floatsSync(), shape: a.shape },
              { data: b.floatsSync(), shape: b.shape },
            ],
            { device, reference: (x, y) => matmulReference(x!, y!, sizes) },
          );
        }
      },
    );

    it("linear, with and without bias", () => {
      const x = { data: noise(12 * 5, 1), shape: [3, 4, 5] };
      const w = { data: noise(7 * 5, 2), shape: [7, 5] };
      const bias = { data: noise(7, 3), shape: [7] };
      gradcheck((a, b, c) => linear(a, b, c), [x, w, bias], {
        device,
        reference: (a, b, c) => linearReference(a!, b!, c!, 12, 7, 5),
      });
      gradcheck((a, b) => linear(a, b, null), [x, w], {
        device,
        reference: (a, b) => linearReference(a!, b!, null, 12, 7, 5),
      });
    });

    it("computes only what is wanted", () => {
      const x = tensor(noise(6), { shape: [2, 3], device });
      const w = tensor(noise(12), { shape: [4, 3], device, requiresGrad: true });
      const y = linear(x, w, null);
      backward(y, tensor(noise(8), { shape: [2, 4], device }));
      expect(x.grad).toBeNull();
      expect(w.grad?.shape).toEqual([4, 3]);
    });

    it("the bias gradient sums many rows accurately", () => {
      const rows = 3001;
      const dy = noise(rows * 5, 4).map((v) => v + 1);
      const bias = zeros([5], { device });
      bias.requiresGrad = true;
      const y = linear(zeros([rows, 2], { device }), zeros([5, 2], { device }), bias);
      backward(y, tensor(dy, { shape: [rows, 5], device }));
      const columns = [0, 1, 2, 3, 4].map((j) => dy.filter((_, i) => i % 5 === j));
      const expected = columns.map((column) => Float64Array.from(column).reduce((a, b) => a + b, 0));
      expectClose(bias.grad!.floatsSync(), expected, { atol: columns.map(sumError), rtol: 2 ** -24 });
    });
  });

  describe("dtypes", () => {
    it.each(floats)("%s sums in float32 and rounds once", (dtype) => {
      for (const m of [1, 6, 31])
        for (const transposeA of flags)
          for (const transposeB of flags) check({ batch: 1, m, n: 45, k: 700, transposeA, transposeB }, dtype);
      // 4096 ones: a 16-bit sum would stop growing at 2048 or 256.
      const ones = tensor(new Float32Array(4096).fill(1), { shape: [1, 4096], dtype, device });
      expect(matmul(ones, ones, { transposeB: true }).floatsSync()[0]).toBe(4096);
    });

    it.each(floats)("gradients have dtype %s", (dtype) => {
      const x = tensor(noise(20 * 6), { shape: [20, 6], dtype, device, requiresGrad: true });
      const w = tensor(noise(9 * 6, 2), { shape: [9, 6], dtype, device, requiresGrad: true });
      const bias = tensor(noise(9, 3), { dtype, device, requiresGrad: true });
      const dy = tensor(noise(180, 4), { shape: [20, 9], dtype, device });
      backward(linear(x, w, bias), dy);
      const g = dy.floatsSync();
      const sizes = { batch: 1, m: 20, n: 6, k: 9 };
      expectClose(x.grad!.floatsSync(), matmulReference(g, w.floatsSync(), sizes), tolerance(dtype, "gradient"));
      const dw = matmulReference(g, x.floatsSync(), { batch: 1, m: 9, n: 6, k: 20, transposeA: true });
      expectClose(w.grad!.floatsSync(), dw, tolerance(dtype, "gradient"));
      expect([x.grad, w.grad, bias.grad].map((t) => t?.dtype)).toEqual([dtype, dtype, dtype]);
    });
  });

  describe("shapes", () => {
    it("runs batches, of many small and of few large matrices", () => {
      for (const transposeB of flags) {
        check({ batch: 33, m: 5, n: 6, k: 7, transposeB });
        check({ batch: 2, m: 1, n: 30, k: 20, transposeB });
        check({ batch: 2, m: 110, n: 120, k: 130, transposeB });
        check({ batch: 3, m: 11, n: 9, k: 8, sharedB: true, transposeB });
        check({ batch: 3, m: 11, n: 9, k: 8, sharedB: true, transposeA: true, transposeB });
      }
    });

    it("keeps leading axes", () => {
      const a = zeros([2, 3, 4, 5], { device });
      expect(matmul(a, zeros([2, 3, 5, 6], { device })).shape).toEqual([2, 3, 4, 6]);
      expect(matmul(a, zeros([5, 6], { device })).shape).toEqual([2, 3, 4, 6]);
      expect(matmul(a, zeros([2, 3, 6, 4], { device }), { transposeA: true, transposeB: true }).shape).toEqual([
        2, 3, 5, 6,
      ]);
      expect(linear(zeros([5], { device }), zeros([7, 5], { device }), null).shape).toEqual([7]);
    });

    it("handles empty axes: no rows give nothing, no terms give zero or the bias", () => {
      expect(matmul(zeros([0, 3], { device }), zeros([3, 4], { device })).shape).toEqual([0, 4]);
      expect(matmul(zeros([2, 3], { device }), zeros([3, 0], { device })).shape).toEqual([2, 0]);
      expect([...matmul(zeros([2, 0], { device }), zeros([0, 2], { device })).floatsSync()]).toEqual([0, 0, 0, 0]);
      expect([...matmul(zeros([9, 0], { device }), zeros([0, 1], { device })).floatsSync()]).toEqual(
        new Array(9).fill(0),
      );
      const bias = tensor([1, 2], { device });
      expect([...linear(zeros([1, 0], { device }), zeros([2, 0], { device }), bias).floatsSync()]).toEqual([1, 2]);
    });

    it("gives zero gradients for an empty batch", () => {
      const b = tensor(noise(6), { shape: [2, 3], device, requiresGrad: true });
      backward(matmul(zeros([0, 2, 4], { device }), b, { transposeA: true }), zeros([0, 4, 3], { device }));
      expect([...b.grad!.floatsSync()]).toEqual(new Array(6).fill(0));
    });
  });

  describe("errors", () => {
    it("names what does not fit", () => {
      const a = zeros([2, 3], { device });
      expect(() => matmul(a, zeros([4, 2], { device }))).toThrow(
        "matmul: the inner sizes must agree, got 3 of [2, 3] and 4",
      );
      expect(() => matmul(zeros([3], { device }), a)).toThrow("at least two axes");
      expect(() => matmul(zeros([2, 2, 3], { device }), zeros([3, 3, 2], { device }))).toThrow("leading axes");
      expect(() => matmul(a, zeros([3, 2], { device, dtype: "float16" }))).toThrow("one dtype");
      expect(() => matmul(zeros([2, 3], { device, dtype: "int32" }), a)).toThrow(
        "a must be float32, float16 or bfloat16",
      );
      expect(() => linear(a, zeros([4, 2], { device }), null)).toThrow(
        "linear: the last axis of x must be 2, got [2, 3]",
      );
      expect(() => linear(a, zeros([4, 3], { device }), zeros([3], { device }))).toThrow("bias must have shape [4]");
    });
  });

  it("fmaPeak counts its multiply-adds", () => {
    const on = devices().find((d) => String(d) === device)!;
    const [count, sum] = fmaPeak(1000, on).dataSync() as Float64Array;
    expect(count).toBeGreaterThanOrEqual(1000 * on.processors);
    expect(sum).toBeGreaterThan(0);
    expect(() => fmaPeak(0, on)).toThrow("iterations must be at least 1");
  });
});
