// clamp against its float64 oracle.
import { describe, expect, it } from "vitest";
import { clamp } from "../../src/ops/clamp.js";
import { tensor } from "../../src/tensor/create.js";
import type { DType } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { normals } from "../helpers/random.js";
import { clampReference } from "../reference/clamp.js";

describe.each(testDevices())("clamp on %s", (device) => {
  const make = (values: ArrayLike<number>, shape: number[], dtype: DType = "float32") =>
    tensor(Float32Array.from(values), { shape, dtype, device });

  describe("values", () => {
    it("limits on both sides, on one, and nowhere", () => {
      const x = normals(1000, 1, 2);
      for (const [low, high] of [
        [-1, 0.5],
        [0, Infinity],
        [-Infinity, Infinity],
        [0.25, 0.25],
      ] as const) {
        expect(clamp(make(x, [10, 100]), low, high)).toBeCloseToTensor(clampReference(x, low, high));
      }
    });

    it("keeps NaN and limits infinity", () => {
      expect([...clamp(make([NaN, Infinity, -Infinity], [3]), -2, 3).floatsSync()]).toEqual([NaN, 3, -2]);
    });
  });

  describe("gradients", () => {
    it("pass between the limits", () => {
      gradcheck((x) => clamp(x, -0.5, 0.75), [{ data: normals(77, 3), shape: [7, 11] }], {
        device,
        reference: (x) => clampReference(x!, -0.5, 0.75),
      });
    });
  });

  describe("dtypes", () => {
    it.each(["float16", "bfloat16"] as const)("%s", (dtype) => {
      const x = make(normals(333, 5, 2), [333], dtype);
      const y = clamp(x, -1, 0.1);
      expect(y.dtype).toBe(dtype);
      expect(y).toBeCloseToTensor(clampReference(x.floatsSync(), -1, 0.1));
    });
  });

  describe("shapes", () => {
    it.each([[[0]], [[]], [[1]], [[3, 5, 17]], [[40009]]])("%j", (shape: number[]) => {
      const x = normals(
        shape.reduce((n, d) => n * d, 1),
        7,
      );
      const y = clamp(make(x, shape), -1, 1);
      expect(y.shape).toEqual(shape);
      expect(y).toBeCloseToTensor(clampReference(x, -1, 1));
    });
  });

  describe("errors", () => {
    it("names limits in the wrong order, and integers", () => {
      const x = make([1], [1]);
      expect(() => clamp(x, 2, 1)).toThrow("clamp: low must be at most high, got 2 and 1");
      expect(() => clamp(x, NaN, 1)).toThrow("clamp: low must be at most high, got nan and 1");
      expect(() => clamp(tensor([1], { dtype: "int32", device }), 0, 1)).toThrow(
        "clamp: x must be float32, float16 or bfloat16, got int32",
      );
    });
  });
});
