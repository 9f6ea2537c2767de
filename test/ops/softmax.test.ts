// softmax and logSoftmax against float64.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import { tensor, zeros } from "../../src/index.js";
import { logSoftmax, softmax } from "../../src/ops/softmax.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { noise } from "../helpers/noise.js";
import type { FloatDType, Tolerance } from "../helpers/tolerance.js";
import { roundoff, sumError, tolerance } from "../helpers/tolerance.js";
import { unaligned } from "../helpers/unaligned.js";
import { softmaxReference } from "../reference/softmax.js";

/**
 * Bounds of a row: its sum of exponentials is off by sumError, which softmax divides by and logSoftmax takes the
 * logarithm of; x - max is rounded before exp, which makes a relative error of |x - max| units; then the result's rounding.
 */
function rowBound(x: Float32Array, cols: number, log: boolean, dtype: FloatDType = "float32"): Tolerance {
  const atol = new Float64Array(x.length);
  for (let start = 0; start < x.length; start += cols) {
    const row = x.subarray(start, start + cols);
    const top = row.reduce((a, b) => Math.max(a, b), -Infinity);
    const terms = Array.from(row, (v) => Math.exp(v - top));
    const sum = terms.reduce((a, b) => a + b, 0);
    const ofSum = sumError(terms) / sum;
    row.forEach((v, j) => {
      const relative = ofSum + roundoff.float32 * (4 + 2 * (top - v));
      const subnormal = dtype === "float16" ? 2 ** -25 : 0;
      atol[start + j] = (log ? relative : (relative * terms[j]!) / sum) + subnormal;
    });
  }
  return { atol, rtol: roundoff[dtype] };
}

describe.each(testDevices())("softmax on %s", (device) => {
  describe.each([
    { name: "softmax", fn: softmax, log: false },
    { name: "logSoftmax", fn: logSoftmax, log: true },
  ])("$name", ({ fn, log }) => {
    describe("values", () => {
      it("agrees with float64 over many widths", () => {
        for (const cols of [1, 2, 7, 8, 15, 16, 17, 33, 257, 4099]) {
          const x = noise(5 * cols, cols).map((v) => 4 * v);
          const y = fn(tensor(x, { shape: [5, cols], device }));
          expectClose(y.floatsSync(), softmaxReference(x, cols, log), rowBound(x, cols, log));
        }
      });

      it("does not overflow, and takes -Infinity as absent", () => {
        const x = tensor(
          [
            [1e30, 1e30, -1e30],
            [-3e38, -3e38, -Infinity],
          ],
          { device },
        );
        const half = log ? Math.log(0.5) : 0.5;
        const none = log ? -Infinity : 0;
        const y = fn(x).floatsSync();
        expectClose([y[0]!, y[1]!, y[3]!, y[4]!], [half, half, half, half]);
        expect(y[5]).toBe(none);
      });

      it("a row without any finite value, or with NaN, gives NaN and leaves the others alone", () => {
        const x = tensor(
          [
            [-Infinity, -Infinity],
            [NaN, 1],
            [0, 0],
          ],
          { device },
        );
        const half = log ? Math.log(0.5) : 0.5;
        expectClose(fn(x).floatsSync(), [NaN, NaN, NaN, NaN, half, half]);
      });
    });

    it("gradients", () => {
      for (const cols of [1, 5, 19]) {
        gradcheck((x) => fn(x), [{ data: noise(3 * cols), shape: [3, cols] }], {
          device,
          reference: (x) => softmaxReference(x!, cols, log),
        });
      }
    });

    it.each(["float32", "float16", "bfloat16"] as const)("dtypes: %s", (dtype) => {
      const x = tensor(noise(6 * 45), { shape: [2, 3, 45], dtype, device, requiresGrad: true });
      const y = fn(x);
      expect([y.dtype, y.shape]).toEqual([dtype, [2, 3, 45]]);
      const expected = softmaxReference(x.floatsSync(), 45, log);
      expectClose(y.floatsSync(), expected, rowBound(x.floatsSync(), 45, log, dtype));
      const dy = tensor(noise(6 * 45, 2), { shape: [2, 3, 45], dtype, device });
      backward(y, dy);
      const g = dy.floatsSync();
      const dx = expected.map((_, i) => {
        const start = i - (i % 45);
        let sum = 0;
        for (let j = start; j < start + 45; j++) sum += log ? g[j]! : g[j]! * expected[j]!;
        return log ? g[i]! - Math.exp(expected[i]!) * sum : expected[i]! * (g[i]! - sum);
      });
      expectClose(x.grad!.floatsSync(), dx, tolerance(dtype, "gradient"));
    });

    // Beyond what a GPU holds in registers, rows that begin anywhere, and more rows than a block has warps.
    it.each([
      { rows: 2, cols: 8200, dtype: "float32", at: "aligned" },
      { rows: 2, cols: 16_392, dtype: "bfloat16", at: "aligned" },
      { rows: 3, cols: 1029, dtype: "float16", at: "aligned" },
      { rows: 3, cols: 2056, dtype: "float32", at: "unaligned" },
      { rows: 2, cols: 16_400, dtype: "float16", at: "unaligned" },
      { rows: 40, cols: 24, dtype: "bfloat16", at: "aligned" },
    ] as const)("rows and gradients of [$rows, $cols] $dtype, $at", ({ rows, cols, dtype, at }) => {
      const shape = [rows, cols];
      const make = (values: Float32Array) =>
        at === "aligned" ? tensor(values, { shape, dtype, device }) : unaligned(values, shape, { dtype, device });
      const x = make(noise(rows * cols, cols).map((v) => 3 * v));
      x.requiresGrad = true;
      const y = fn(x);
      const expected = softmaxReference(x.floatsSync(), cols, log);
      expectClose(y.floatsSync(), expected, rowBound(x.floatsSync(), cols, log, dtype));
      const dy = make(noise(rows * cols, cols + 1));
      backward(y, dy);
      const [g, saved] = [dy.floatsSync(), y.floatsSync()];
      const [dx, atol] = [new Float64Array(rows * cols), new Float64Array(rows * cols)];
      for (let start = 0; start < rows * cols; start += cols) {
        const terms = Array.from(g.subarray(start, start + cols), (v, j) => (log ? v : v * saved[start + j]!));
        const sum = terms.reduce((a, b) => a + b, 0);
        const error = sumError(terms);
        for (let j = start; j < start + cols; j++) {
          const p = log ? Math.exp(saved[j]!) : saved[j]!;
          dx[j] = log ? g[j]! - p * sum : p * (g[j]! - sum);
          // The difference cancels: what is rounded are its two sides, e^y to about 2 units.
          const sides = log ? Math.abs(g[j]!) + p * Math.abs(sum) : p * (Math.abs(g[j]!) + Math.abs(sum));
          atol[j] = p * error + 4 * roundoff.float32 * sides;
        }
      }
      // Half a subnormal of float16, the smallest step that it has.
      if (dtype === "float16") for (let j = 0; j < atol.length; j++) atol[j]! += 2 ** -25;
      expectClose(x.grad!.floatsSync(), dx, { atol, rtol: roundoff[dtype] });
    });

    it("shapes: vectors, no rows, no columns", () => {
      expectClose(fn(tensor([0, 0], { device })).floatsSync(), log ? [Math.log(0.5), Math.log(0.5)] : [0.5, 0.5]);
      expect(fn(zeros([0, 4], { device })).shape).toEqual([0, 4]);
      expect(fn(zeros([4, 0], { device })).shape).toEqual([4, 0]);
    });

    it("errors", () => {
      expect(() => fn(zeros([2], { dtype: "int32", device }))).toThrow(
        "x must be float32, float16 or bfloat16, got int32",
      );
      expect(() => fn(zeros([], { device }))).toThrow("at least one axis");
    });
  });
});
