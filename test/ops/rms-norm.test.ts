// rmsNorm against its float64 oracle.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import { rmsNorm } from "../../src/ops/rms-norm.js";
import { tensor } from "../../src/tensor/create.js";
import type { DType } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { normals } from "../helpers/random.js";
import { tolerance } from "../helpers/tolerance.js";
import { unaligned } from "../helpers/unaligned.js";
import { rmsNormGradients, rmsNormReference } from "../reference/rms-norm.js";

describe.each(testDevices())("rmsNorm on %s", (device) => {
  const make = (values: Float32Array, shape: number[], dtype: DType = "float32") =>
    tensor(values, { shape, dtype, device });

  describe("values", () => {
    it("agrees with the oracle", () => {
      const [x, weight] = [normals(6 * 64, 1, 3), normals(64, 2)];
      const y = rmsNorm(make(x, [2, 3, 64]), make(weight, [64]), 1e-5);
      expect(y.shape).toEqual([2, 3, 64]);
      expectClose(y.floatsSync(), rmsNormReference(x, weight, 1e-5), tolerance("float32", "reduction"));
    });

    it("has eps 1e-6 by default, which decides the scale of tiny rows", () => {
      const x = normals(32, 3, 1e-3);
      const weight = new Float32Array(32).fill(1);
      expectClose(rmsNorm(make(x, [32]), make(weight, [32])).floatsSync(), rmsNormReference(x, weight, 1e-6));
    });
  });

  describe("gradients", () => {
    it.each([
      [1, 1],
      [3, 7],
      [5, 33],
      [200, 5],
    ])("of x and weight for [%i, %i]", (rows, cols) => {
      gradcheck(
        (x, weight) => rmsNorm(x, weight, 1e-3),
        [
          { data: normals(rows * cols, 4), shape: [rows, cols] },
          { data: normals(cols, 5), shape: [cols] },
        ],
        { device, reference: (x, weight) => rmsNormReference(x!, weight!, 1e-3) },
      );
    });

    it("of x alone when the weight is frozen", () => {
      const weight = normals(16, 6);
      gradcheck(
        (x, w) => rmsNorm(x, w, 1e-3),
        [
          { data: normals(48, 7), shape: [3, 16] },
          { data: weight, shape: [16] },
        ],
        { device, inputs: [0], reference: (x, w) => rmsNormReference(x!, w!, 1e-3) },
      );
    });
  });

  describe("dtypes", () => {
    it.each(["float16", "bfloat16"] as const)("%s in and out, statistics in float32", (dtype) => {
      const x = make(normals(4 * 300, 8, 20), [4, 300], dtype);
      const weight = make(normals(300, 9), [300], dtype);
      const y = rmsNorm(x, weight);
      expect(y.dtype).toBe(dtype);
      expectClose(y.floatsSync(), rmsNormReference(x.floatsSync(), weight.floatsSync(), 1e-6), tolerance(dtype));
    });
  });

  describe("shapes", () => {
    it.each([[[0, 8]], [[3, 0]], [[1]], [[17]], [[2, 1, 131]]])("%j", (shape) => {
      const size = shape.reduce((n, d) => n * d, 1);
      const cols = shape.at(-1)!;
      const [x, weight] = [normals(size, 10), normals(cols, 11)];
      const y = rmsNorm(make(x, shape), make(weight, [cols]));
      expect(y.shape).toEqual(shape);
      const expected = size === 0 ? [] : rmsNormReference(x, weight, 1e-6);
      expectClose(y.floatsSync(), expected, tolerance("float32", "reduction"));
    });
  });

  // Beyond what a GPU holds in registers, rows that begin anywhere, rows for several blocks.
  describe("rows", () => {
    it.each([
      { rows: 2, cols: 8200, dtype: "float32", at: "aligned" },
      { rows: 3, cols: 16_392, dtype: "bfloat16", at: "aligned" },
      { rows: 3, cols: 1029, dtype: "float16", at: "aligned" },
      { rows: 5, cols: 1036, dtype: "float32", at: "unaligned" },
      { rows: 150, cols: 40, dtype: "bfloat16", at: "aligned" },
      { rows: 70, cols: 1104, dtype: "float16", at: "aligned" },
    ] as const)("[$rows, $cols] $dtype, $at", ({ rows, cols, dtype, at }) => {
      const tensorOf = (values: Float32Array, shape: number[]) =>
        at === "aligned" ? make(values, shape, dtype) : unaligned(values, shape, { dtype, device });
      const x = tensorOf(normals(rows * cols, 21, 2), [rows, cols]);
      const weight = tensorOf(normals(cols, 22), [cols]);
      const dy = tensorOf(normals(rows * cols, 23), [rows, cols]);
      [x, weight].forEach((t) => {
        t.requiresGrad = true;
      });
      const y = rmsNorm(x, weight, 1e-5);
      const [xs, ws] = [x.floatsSync(), weight.floatsSync()];
      expectClose(y.floatsSync(), rmsNormReference(xs, ws, 1e-5), tolerance(dtype, "reduction"));
      backward(y, dy);
      const expected = rmsNormGradients(dy.floatsSync(), xs, ws, 1e-5);
      const close = tolerance(dtype, "gradient");
      expectClose(x.grad!.floatsSync(), expected.dx, close);
      expectClose(weight.grad!.floatsSync(), expected.dweight, close);
    });
  });

  describe("errors", () => {
    const x = () => make(normals(6, 12), [2, 3]);
    it("names a weight of the wrong shape", () => {
      expect(() => rmsNorm(x(), make(normals(2, 1), [2]))).toThrow("rmsNorm: weight must have shape [3], got [2]");
    });
    it("names different dtypes", () => {
      const weight = make(normals(3, 1), [3], "float16");
      expect(() => rmsNorm(x(), weight)).toThrow("rmsNorm: x and weight must have one dtype, got float32 and float16");
    });
    it("names a dtype that is no float", () => {
      const ids = tensor(new Int32Array(3), { device });
      expect(() => rmsNorm(ids, ids)).toThrow("rmsNorm: x must be float32, float16 or bfloat16, got int32");
    });
    it("names a disposed argument", () => {
      const weight = make(normals(3, 1), [3]);
      weight.dispose();
      expect(() => rmsNorm(x(), weight)).toThrow("rmsNorm: weight was disposed");
    });
    it("rejects a negative eps", () => {
      expect(() => rmsNorm(x(), make(normals(3, 1), [3]), -1)).toThrow("rmsNorm: eps must not be negative, got -1");
    });
  });
});
