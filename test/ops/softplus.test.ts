// softplus against its float64 oracle.
import { describe, expect, it } from "vitest";
import { softplus } from "../../src/ops/softplus.js";
import { tensor } from "../../src/tensor/create.js";
import type { DType } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { normals } from "../helpers/random.js";
import { softplusReference } from "../reference/softplus.js";

describe.each(testDevices())("softplus on %s", (device) => {
  const make = (values: ArrayLike<number>, shape: number[], dtype: DType = "float32") =>
    tensor(Float32Array.from(values), { shape, dtype, device });

  describe("values", () => {
    it.each([
      [1, 20],
      [0.5, 20],
      [-2, 20],
      [3, 1.5],
      [1, Infinity],
      [1, -Infinity],
    ])("beta %d, threshold %d", (beta, threshold) => {
      const x = normals(1000, 1, 6);
      const y = softplus(make(x, [10, 100]), { beta, threshold });
      expect(y).toBeCloseToTensor(softplusReference(x, beta, threshold));
    });

    it("keeps its digits where the exponential is small, and does not overflow where it is large", () => {
      // From the smallest normal result to far beyond exp's range.
      const x = Float32Array.from({ length: 4000 }, (_, i) => -87 + i * 0.05);
      const y = softplus(make(x, [4000]), { threshold: Infinity }).floatsSync();
      const expected = softplusReference(x, 1, Infinity);
      const errors = y.map((v, i) => Math.abs(v - expected[i]!) / expected[i]!);
      // exp, log and one sum: a few roundings of 2^-24 each.
      expect(Math.max(...errors)).toBeLessThan(6 * 2 ** -23);
    });

    it("of NaN and infinity", () => {
      expect([...softplus(make([NaN, Infinity, -Infinity, 0], [4])).floatsSync()]).toEqual([
        NaN,
        Infinity,
        0,
        Math.fround(Math.log(2)),
      ]);
      expect([...softplus(make([NaN, 30], [2]), { threshold: Infinity }).floatsSync()]).toEqual([NaN, 30]);
    });
  });

  describe("gradients", () => {
    it.each([
      [1, 20],
      [2.5, 20],
      [-1, 20],
      [1, 0.5],
    ])("beta %d, threshold %d", (beta, threshold) => {
      gradcheck((x) => softplus(x, { beta, threshold }), [{ data: normals(77, 3, 2), shape: [7, 11] }], {
        device,
        reference: (x) => softplusReference(x!, beta, threshold),
      });
    });
  });

  describe("dtypes", () => {
    it.each(["float16", "bfloat16"] as const)("%s", (dtype) => {
      const x = make(normals(333, 5, 4), [333], dtype);
      const y = softplus(x);
      expect(y.dtype).toBe(dtype);
      expect(y).toBeCloseToTensor(softplusReference(x.floatsSync()));
    });
  });

  describe("shapes", () => {
    it.each([[[0]], [[]], [[1]], [[3, 5, 17]], [[40009]]])("%j", (shape: number[]) => {
      const x = normals(
        shape.reduce((n, d) => n * d, 1),
        7,
      );
      const y = softplus(make(x, shape));
      expect(y.shape).toEqual(shape);
      expect(y).toBeCloseToTensor(softplusReference(x));
    });
  });

  describe("errors", () => {
    it("names a beta that divides by nothing, unknown options, and integers", () => {
      const x = make([1], [1]);
      for (const beta of [0, 1e-60, Infinity]) {
        expect(() => softplus(x, { beta })).toThrow(
          `softplus: beta must be finite and not 0, got ${beta === 1e-60 ? "1e-60" : beta === 0 ? "0" : "inf"}`,
        );
      }
      expect(() => softplus(x, { threshhold: 2 } as never)).toThrow("(did you mean threshold?)");
      expect(() => softplus(tensor([1], { dtype: "int32", device }))).toThrow(
        "softplus: x must be float32, float16 or bfloat16, got int32",
      );
    });
  });
});
