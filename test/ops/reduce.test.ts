// Reductions against float64, along every axis, with gradients.
import { describe, expect, it } from "vitest";
import { argmax, max, mean, min, sum, tensor } from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { sumError, tolerance } from "../helpers/tolerance.js";
import { unaligned } from "../helpers/unaligned.js";
import { sizeOfShape, values } from "../helpers/values.js";
import type { ReduceName } from "../reference/reduce.js";
import { argmaxReference, around, lines, reduceReference } from "../reference/reduce.js";

const ops = { sum, mean, max, min };
const names = Object.keys(ops) as ReduceName[];
const shapes = [[1], [7], [3, 5], [2, 3, 4], [17, 33], [1, 5000], [5000, 3], [2, 700, 5], [600, 520]];

describe.each(testDevices())("reduce on %s", (device) => {
  describe("values", () => {
    describe.each(names)("%s", (name) => {
      it.each(shapes.map((shape) => [shape]))("of %j", (shape) => {
        const data = values(sizeOfShape(shape), -1, 1);
        const x = tensor(data, { shape, device });
        for (const axis of [undefined, ...shape.keys(), -1]) {
          const y = ops[name](x, axis === undefined ? {} : { axis });
          const at = axis === -1 ? shape.length - 1 : axis;
          expect(y.shape).toEqual(axis === undefined ? [] : shape.filter((_, i) => i !== at));
          const [, n] = around(shape, axis);
          const divisor = { sum: 1, mean: n, max: Infinity, min: Infinity }[name];
          const atol = lines(data, shape, axis).map((line) => sumError(line) / divisor);
          expectClose(y.floatsSync(), reduceReference(name, data, shape, axis), { atol, rtol: 2 ** -23 });
        }
      });
    });

    it("argmax, the first of equals", () => {
      for (const shape of shapes) {
        const data = values(sizeOfShape(shape), -1, 1).map((v) => Math.round(v * 50));
        const x = tensor(data, { shape, device });
        for (const axis of [undefined, ...shape.keys()]) {
          const y = argmax(x, axis === undefined ? {} : { axis });
          expect(y.dtype).toBe("int32");
          expect([...y.dataSync()]).toEqual(argmaxReference(data, shape, axis));
        }
      }
    });

    it("a NaN wins", () => {
      const data = [1, NaN, 3, NaN, 5, 6];
      const x = tensor(data, { shape: [3, 2], device });
      expectClose(max(x).floatsSync(), [NaN]);
      expectClose(min(x, { axis: 0 }).floatsSync(), [1, NaN]);
      expectClose(max(x, { axis: 1 }).floatsSync(), [NaN, NaN, 6]);
      expect([...argmax(x, { axis: 0 }).dataSync()]).toEqual([2, 0]);
      expect([...argmax(x).dataSync()]).toEqual([1]);
    });

    it("infinities", () => {
      const x = tensor([-Infinity, -Infinity], { device });
      expect(max(x).itemSync()).toBe(-Infinity);
      expect(argmax(x).itemSync()).toBe(0);
      expect(sum(tensor([Infinity, 1], { device })).itemSync()).toBe(Infinity);
    });

    it("sums of many equal terms do not drift", () => {
      const n = 1 << 20;
      const x = tensor(new Float32Array(n).fill(0.1), { device });
      expectClose(sum(x).floatsSync(), [n * Math.fround(0.1)], { atol: 0, rtol: 1e-6 });
    });
  });

  describe("gradients", () => {
    it.each(names)("%s", (name) => {
      for (const shape of [[1], [7], [3, 5], [2, 3, 4], [5, 40]]) {
        const data = values(sizeOfShape(shape), -1, 1, 5);
        for (const axis of [undefined, ...shape.keys()]) {
          const options = axis === undefined ? {} : { axis };
          const reference = (x: Float64Array) => reduceReference(name, x, shape, axis);
          gradcheck((x) => ops[name](x, options), [{ data, shape }], { device, reference });
          gradcheck((x) => ops[name](x, { ...options, keepDims: true }), [{ data, shape }], { device, reference });
        }
      }
    });

    it("equal maxima share", () => {
      const x = tensor([2, 5, 5, 1, 5, 0], { shape: [2, 3], requiresGrad: true, device });
      max(x).backward();
      expectClose(x.grad!.floatsSync(), [0, 1 / 3, 1 / 3, 0, 1 / 3, 0]);
    });

    it("argmax has none", () => {
      expect(argmax(tensor([1, 2], { requiresGrad: true, device })).requiresGrad).toBe(false);
    });
  });

  describe.each(["float32", "float16", "bfloat16"] as const)("dtypes: %s", (dtype) => {
    it.each(names)("%s", (name) => {
      for (const [shape, axis] of [
        [[9, 130], 0],
        [[9, 130], 1],
        [[1170], undefined],
      ] as const) {
        const x = tensor(values(1170), { shape, dtype, device, requiresGrad: true });
        const y = ops[name](x, axis === undefined ? {} : { axis });
        expect(y.dtype).toBe(dtype);
        expectClose(y.floatsSync(), reduceReference(name, x.floatsSync(), shape, axis), tolerance(dtype, "reduction"));
        sum(y).backward();
        expect(x.grad!.dtype).toBe(dtype);
      }
    });

    it("sums are float32 inside", () => {
      const x = tensor(new Float32Array(3000).fill(1), { dtype, device });
      expectClose(sum(x).floatsSync(), [3000], { atol: 0, rtol: 4e-3 });
    });
  });

  // Lines cut into pieces, vectors of columns, few rows of many columns, rows that begin anywhere.
  describe.each([
    { shape: [3, 30_000], axis: 1, dtype: "float32" },
    { shape: [70_001], axis: 0, dtype: "bfloat16" },
    { shape: [2, 9001], axis: 1, dtype: "float16" },
    { shape: [2, 1500, 24], axis: 1, dtype: "bfloat16" },
    { shape: [900, 64], axis: 0, dtype: "float32" },
    { shape: [3, 2, 1100], axis: 1, dtype: "float16" },
    { shape: [300, 65], axis: 1, dtype: "float32" },
    { shape: [100, 5], axis: 1, dtype: "bfloat16" },
  ] as const)("$dtype $shape along $axis", ({ shape, axis, dtype }) => {
    // Few values of few digits, so that sums are exact in float32 and maxima have equals.
    const data = values(sizeOfShape(shape), -8, 8, 3).map((v) => Math.round(v * 2) / 2);
    describe.each(["aligned", "unaligned"] as const)("%s", (at) => {
      const make = () =>
        at === "aligned" ? tensor(data, { shape, dtype, device }) : unaligned(data, shape, { dtype, device });
      const rounding = { atol: 1e-6, rtol: tolerance(dtype).rtol };

      it.each(names)("%s", (name) => {
        const x = make();
        x.requiresGrad = true;
        const y = ops[name](x, { axis });
        const expected = reduceReference(name, data, shape, axis);
        expectClose(y.floatsSync(), expected, name === "max" || name === "min" ? { atol: 0, rtol: 0 } : rounding);
        sum(y).backward();
        const [outer, n, inner] = around(shape, axis);
        const dx = new Float64Array(data.length);
        for (let line = 0; line < outer * inner; line++) {
          const first = Math.floor(line / inner) * n * inner + (line % inner);
          const has = (i: number) => data[first + i * inner] === expected[line];
          let equal = 0;
          for (let i = 0; i < n; i++) equal += has(i) ? 1 : 0;
          for (let i = 0; i < n; i++) {
            const share = name === "sum" ? 1 : name === "mean" ? 1 / n : has(i) ? 1 / equal : 0;
            dx[first + i * inner] = share;
          }
        }
        expectClose(x.grad!.floatsSync(), dx, rounding);
      });

      it("argmax", () => {
        expect([...argmax(make(), { axis }).dataSync()]).toEqual(argmaxReference(data, shape, axis));
      });
    });
  });

  it("argmax takes -0 and 0 for equals, and the first of many NaN", () => {
    expect(argmax(tensor([-1, -0, 0], { device })).itemSync()).toBe(1);
    const data = new Float32Array(30_000).map((_, i) => i);
    data[20_000] = data[29_999] = Number.NaN;
    expect(argmax(tensor(data, { device })).itemSync()).toBe(20_000);
    expect(max(tensor(data, { device })).itemSync()).toBeNaN();
  });

  describe("shapes", () => {
    it("keepDims", () => {
      const x = tensor(values(24), { shape: [2, 3, 4], device });
      expect(sum(x, { axis: 1, keepDims: true }).shape).toEqual([2, 1, 4]);
      expect(mean(x, { keepDims: true }).shape).toEqual([1, 1, 1]);
      expect(argmax(x, { axis: -1, keepDims: true }).shape).toEqual([2, 3, 1]);
    });

    it("nothing to reduce", () => {
      const x = tensor(new Float32Array(0), { shape: [2, 0], device });
      expect([...sum(x, { axis: 1 }).floatsSync()]).toEqual([0, 0]);
      expect([...sum(x).floatsSync()]).toEqual([0]);
      expect([...mean(x, { axis: 1 }).floatsSync()]).toEqual([NaN, NaN]);
      expect(max(x, { axis: 0 }).shape).toEqual([0]);
      expect(sum(x, { axis: 0 }).shape).toEqual([0]);
    });

    it("scalars", () => {
      const x = tensor(3, { device, requiresGrad: true });
      expect(max(x).itemSync()).toBe(3);
      sum(x).backward();
      expect(x.grad!.itemSync()).toBe(1);
    });
  });

  describe("errors", () => {
    const x = tensor(values(6), { shape: [2, 3], device });

    it("an axis that does not exist", () => {
      expect(() => sum(x, { axis: 2 })).toThrow("sum: axis must be in [-2, 2), got 2");
      expect(() => argmax(x, { axis: -3 })).toThrow("argmax: axis must be in [-2, 2), got -3");
    });

    it("the extreme of nothing", () => {
      const none = tensor(new Float32Array(0), { shape: [2, 0], device });
      expect(() => max(none, { axis: 1 })).toThrow("max: the reduced axis must not be empty, got [2, 0]");
      expect(() => argmax(none)).toThrow("argmax: the reduced axis must not be empty, got [2, 0]");
    });

    it("integers", () => {
      expect(() => sum(tensor([1], { dtype: "int32", device }))).toThrow(
        "sum: x must be float32, float16 or bfloat16, got int32",
      );
    });
  });
});
