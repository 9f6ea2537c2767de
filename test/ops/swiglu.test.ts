// swiglu against its float64 oracle.
import { describe, expect, it } from "vitest";
import { slice } from "../../src/ops/shape.js";
import { swiglu } from "../../src/ops/swiglu.js";
import { tensor } from "../../src/tensor/create.js";
import type { DType } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { normals } from "../helpers/random.js";
import { tolerance } from "../helpers/tolerance.js";
import { swigluReference } from "../reference/swiglu.js";

describe.each(testDevices())("swiglu on %s", (device) => {
  const make = (values: Float32Array, shape: number[], dtype: DType = "float32") =>
    tensor(values, { shape, dtype, device });

  describe("values", () => {
    it("agrees with the oracle from the linear part into saturation", () => {
      const [gate, up] = [normals(1000, 1, 10), normals(1000, 2)];
      const y = swiglu(make(gate, [10, 100]), make(up, [10, 100]));
      expectClose(y.floatsSync(), swigluReference(gate, up), tolerance("float32"));
    });

    it("is finite at the ends of the range", () => {
      const gate = Float32Array.of(-1e30, -100, -88, 0, 88, 100, 1e30);
      const y = swiglu(make(gate, [7]), make(new Float32Array(7).fill(1), [7])).floatsSync();
      expectClose(y, [0, 0, 0, 0, 88, 100, 1e30], { atol: 1e-30, rtol: 1e-6 });
    });
  });

  describe("gradients", () => {
    it("of gate and up", () => {
      gradcheck(
        swiglu,
        [
          { data: normals(77, 3, 2), shape: [7, 11] },
          { data: normals(77, 4), shape: [7, 11] },
        ],
        { device, reference: (gate, up) => swigluReference(gate!, up!) },
      );
    });
  });

  describe("dtypes", () => {
    it.each(["float16", "bfloat16"] as const)("%s rounds once", (dtype) => {
      const gate = make(normals(333, 5, 2), [333], dtype);
      const up = make(normals(333, 6), [333], dtype);
      const y = swiglu(gate, up);
      expect(y.dtype).toBe(dtype);
      const half = dtype === "float16" ? 2 ** -11 : 2 ** -8;
      expectClose(y.floatsSync(), swigluReference(gate.floatsSync(), up.floatsSync()), {
        atol: 1e-7,
        rtol: 1.01 * half,
      });
    });
  });

  describe("shapes", () => {
    it.each(["float32", "float16"] as const)("views of %s that start between two vectors", (dtype) => {
      const gate = make(normals(102, 9), [102], dtype);
      const up = make(normals(102, 10), [102], dtype);
      const [whole, part] = [swiglu(gate, up), swiglu(slice(gate, 0, 1, 102), slice(up, 0, 1, 102))];
      expect(part.floatsSync()).toEqual(whole.floatsSync().slice(1));
    });

    it.each([[[0]], [[]], [[1]], [[3, 5, 17]], [[20011]]])("%j", (shape: number[]) => {
      const size = shape.reduce((n, d) => n * d, 1);
      const [gate, up] = [normals(size, 7), normals(size, 8)];
      const y = swiglu(make(gate, shape), make(up, shape));
      expect(y.shape).toEqual(shape);
      expectClose(y.floatsSync(), swigluReference(gate, up), tolerance("float32"));
    });
  });

  describe("errors", () => {
    it("names different shapes and dtypes", () => {
      const gate = make(normals(6, 1), [2, 3]);
      expect(() => swiglu(gate, make(normals(6, 1), [6]))).toThrow("swiglu: up must have shape [2, 3], got [6]");
      expect(() => swiglu(gate, make(normals(6, 1), [2, 3], "float16"))).toThrow(
        "swiglu: gate and up must have one dtype, got float32 and float16",
      );
    });
  });
});
