// layerNorm against its float64 oracle.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import { layerNorm } from "../../src/ops/layer-norm.js";
import { ones, tensor } from "../../src/tensor/create.js";
import type { DType } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { normals } from "../helpers/random.js";
import { tolerance } from "../helpers/tolerance.js";
import { unaligned } from "../helpers/unaligned.js";
import { layerNormGradients, layerNormReference } from "../reference/layer-norm.js";

describe.each(testDevices())("layerNorm on %s", (device) => {
  const make = (values: Float32Array, shape: number[], dtype: DType = "float32") =>
    tensor(values, { shape, dtype, device });

  describe("values", () => {
    const [x, weight, bias] = [normals(6 * 40, 1, 3), normals(40, 2), normals(40, 3)];
    it.each([
      [true, true],
      [true, false],
      [false, true],
      [false, false],
    ])("with weight %s and bias %s", (hasWeight, hasBias) => {
      const [w, b] = [hasWeight ? weight : null, hasBias ? bias : null];
      const y = layerNorm(make(x, [2, 3, 40]), w && make(w, [40]), b && make(b, [40]), 1e-4);
      expectClose(y.floatsSync(), layerNormReference(x, 40, w, b, 1e-4), tolerance("float32", "reduction"));
    });

    it("keeps its digits where the mean is a thousand times the spread", () => {
      const far = normals(128, 4).map((v) => v + 1000);
      const y = layerNorm(make(far, [128]));
      expectClose(y.floatsSync(), layerNormReference(far, 128, null, null, 1e-5), { atol: 2e-4, rtol: 1e-4 });
    });
  });

  describe("gradients", () => {
    it.each([
      [3, 7],
      [5, 33],
      [200, 5],
    ])("of x, weight and bias for [%i, %i]", (rows, cols) => {
      gradcheck(
        (x, weight, bias) => layerNorm(x, weight, bias, 1e-3),
        [
          { data: normals(rows * cols, 5), shape: [rows, cols] },
          { data: normals(cols, 6), shape: [cols] },
          { data: normals(cols, 7), shape: [cols] },
        ],
        { device, reference: (x, weight, bias) => layerNormReference(x!, cols, weight!, bias!, 1e-3) },
      );
    });

    it("of x alone without weight and bias", () => {
      gradcheck((x) => layerNorm(x, null, null, 1e-3), [{ data: normals(60, 8), shape: [4, 15] }], {
        device,
        reference: (x) => layerNormReference(x!, 15, null, null, 1e-3),
      });
    });

    it("of bias alone", () => {
      gradcheck(
        (x, bias) => layerNorm(x, null, bias, 1e-3),
        [
          { data: normals(60, 9), shape: [4, 15] },
          { data: normals(15, 10), shape: [15] },
        ],
        { device, inputs: [1], reference: (x, bias) => layerNormReference(x!, 15, null, bias!, 1e-3) },
      );
    });
  });

  describe("dtypes", () => {
    it.each(["float16", "bfloat16"] as const)("%s forward and backward", (dtype) => {
      const x = make(normals(4 * 100, 11), [4, 100], dtype);
      const weight = make(normals(100, 12), [100], dtype);
      const bias = make(normals(100, 13), [100], dtype);
      for (const t of [x, weight, bias]) t.requiresGrad = true;
      const y = layerNorm(x, weight, bias);
      expect(y.dtype).toBe(dtype);
      const oracle = layerNormReference(x.floatsSync(), 100, weight.floatsSync(), bias.floatsSync(), 1e-5);
      expectClose(y.floatsSync(), oracle, tolerance(dtype, "reduction"));
      backward(y, ones([4, 100], { dtype, device }));
      expect(weight.grad!.dtype).toBe(dtype);
      expectClose(bias.grad!.floatsSync(), new Float32Array(100).fill(4), tolerance(dtype));
    });
  });

  describe("shapes", () => {
    it.each([[[0, 8]], [[3, 0]], [[1]], [[2, 1, 131]]])("%j", (shape) => {
      const size = shape.reduce((n, d) => n * d, 1);
      const x = normals(size, 14);
      const y = layerNorm(make(x, shape));
      expect(y.shape).toEqual(shape);
      const expected = size === 0 ? [] : layerNormReference(x, shape.at(-1)!, null, null, 1e-5);
      expectClose(y.floatsSync(), expected, tolerance("float32", "reduction"));
    });

    it("gives zero gradients of weight and bias for no rows", () => {
      const [x, weight, bias] = [make(new Float32Array(0), [0, 8]), ones([8], { device }), ones([8], { device })];
      for (const t of [x, weight, bias]) t.requiresGrad = true;
      backward(layerNorm(x, weight, bias), make(new Float32Array(0), [0, 8]));
      expect([...weight.grad!.floatsSync(), ...bias.grad!.floatsSync()]).toEqual(new Array(16).fill(0));
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
      const bias = tensorOf(normals(cols, 24), [cols]);
      const dy = tensorOf(normals(rows * cols, 23), [rows, cols]);
      [x, weight, bias].forEach((t) => {
        t.requiresGrad = true;
      });
      const y = layerNorm(x, weight, bias, 1e-5);
      const [xs, ws, bs] = [x.floatsSync(), weight.floatsSync(), bias.floatsSync()];
      expectClose(y.floatsSync(), layerNormReference(xs, cols, ws, bs, 1e-5), tolerance(dtype, "reduction"));
      backward(y, dy);
      const expected = layerNormGradients(dy.floatsSync(), xs, ws, 1e-5);
      const close = tolerance(dtype, "gradient");
      expectClose(x.grad!.floatsSync(), expected.dx, close);
      expectClose(weight.grad!.floatsSync(), expected.dweight, close);
      expectClose(bias.grad!.floatsSync(), expected.dbias, close);
    });
  });

  describe("errors", () => {
    const x = () => make(normals(6, 15), [2, 3]);
    it("names a weight or bias of the wrong shape", () => {
      expect(() => layerNorm(x(), make(normals(2, 1), [2]))).toThrow("layerNorm: weight must have shape [3], got [2]");
      expect(() => layerNorm(x(), null, make(normals(3, 1), [1, 3]))).toThrow(
        "layerNorm: bias must have shape [3], got [1, 3]",
      );
    });
    it("names different dtypes", () => {
      const bias = make(normals(3, 1), [3], "bfloat16");
      expect(() => layerNorm(x(), null, bias)).toThrow(
        "layerNorm: x and bias must have one dtype, got float32 and bfloat16",
      );
    });
    it("needs an axis", () => {
      expect(() => layerNorm(make(normals(1, 1), []))).toThrow("layerNorm: x must have at least one axis, got []");
    });
  });
});
