// Reshapes, permutations, slices, joins and repeats against index arithmetic in plain TypeScript.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { DType } from "../../src/index.js";
import {
  broadcastTo,
  concat,
  copyInto,
  full,
  memory,
  permute,
  reshape,
  slice,
  tensor,
  tidy,
  transpose,
  zeros,
} from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { sizeOfShape, values } from "../helpers/values.js";
import { broadcastIndices } from "../reference/elementwise.js";
import { concatReference, permuteReference, sliceReference } from "../reference/shape.js";

const dtypes: DType[] = ["float32", "float16", "bfloat16", "int8", "uint8", "int32", "float64"];
const iota = (shape: readonly number[]) => Float32Array.from({ length: sizeOfShape(shape) }, (_, i) => i);

describe.each(testDevices())("shape ops on %s", (device) => {
  const counted = (shape: readonly number[], dtype: DType = "float32") => tensor(iota(shape), { shape, dtype, device });

  describe("values", () => {
    it("reshape shares the elements", () => {
      const x = counted([4, 6]);
      expect(reshape(x, [3, -1]).shape).toEqual([3, 8]);
      expect(reshape(x, [24]).floatsSync()).toEqual(iota([24]));
      expect(x.reshape([2, 2, 6]).shape).toEqual([2, 2, 6]);
    });

    it("permute, for any shape and order", () => {
      const order = fc.integer({ min: 1, max: 5 }).chain((n) =>
        fc.record({
          shape: fc.array(fc.oneof(fc.integer({ min: 1, max: 6 }), fc.constant(37)), { minLength: n, maxLength: n }),
          axes: fc.shuffledSubarray([...Array(n).keys()], { minLength: n }),
        }),
      );
      fc.assert(
        fc.property(order, ({ shape, axes }) => {
          fc.pre(sizeOfShape(shape) < 50_000);
          tidy(() => {
            const expected = permuteReference(iota(shape), shape, axes);
            const y = permute(counted(shape), axes);
            expect(y.shape).toEqual(axes.map((axis) => shape[axis]));
            expect([...y.floatsSync()]).toEqual(expected);
          });
        }),
        { numRuns: 150, seed: 1 },
      );
    });

    it("transpose exchanges two axes, the last two by default", () => {
      const x = counted([2, 3, 5]);
      expect([...transpose(x).floatsSync()]).toEqual(permuteReference(iota([2, 3, 5]), [2, 3, 5], [0, 2, 1]));
      expect([...x.transpose(0, -1).floatsSync()]).toEqual(permuteReference(iota([2, 3, 5]), [2, 3, 5], [2, 1, 0]));
    });

    it("slice, on every axis", () => {
      const shape = [4, 5, 6];
      for (const axis of [0, 1, 2, -1]) {
        for (const [start, end] of [
          [0, 4],
          [1, 3],
          [2, 2],
          [3, 4],
        ] as const) {
          const y = slice(counted(shape), axis, start, end);
          expect([...y.floatsSync()]).toEqual(sliceReference(iota(shape), shape, axis, start, end));
        }
      }
      expect(counted([5]).slice(0, 2).floatsSync()).toEqual(new Float32Array([2, 3, 4]));
    });

    it("a slice of a slice of leading rows starts where it should", () => {
      const y = slice(slice(counted([6, 4]), 0, 2, 6), 0, 1, 3);
      expect([...y.floatsSync()]).toEqual([12, 13, 14, 15, 16, 17, 18, 19]);
      expect([...slice(y, 1, 1, 3).floatsSync()]).toEqual([13, 14, 17, 18]);
    });

    it("concat, on every axis", () => {
      for (const axis of [0, 1, 2, -2]) {
        const at = axis < 0 ? axis + 3 : axis;
        const shapes = [1, 3, 0, 2].map((n) => [2, 3, 4].map((dim, i) => (i === at ? n : dim)));
        const y = concat(
          shapes.map((shape) => counted(shape)),
          axis,
        );
        const expected = concatReference(
          shapes.map((shape) => [iota(shape), shape]),
          at,
        );
        expect([...y.floatsSync()]).toEqual(expected);
      }
    });

    it("broadcastTo repeats", () => {
      const cases: [number[], number[]][] = [
        [[3], [2, 3]],
        [
          [3, 1],
          [3, 4],
        ],
        [
          [2, 1, 3],
          [2, 5, 3],
        ],
        [[1], [4, 4]],
        [[], [3]],
        [
          [1, 2, 1],
          [3, 2, 50],
        ],
      ];
      for (const [from, to] of cases) {
        const y = broadcastTo(counted(from), to);
        expect(y.shape).toEqual(to);
        expect([...y.floatsSync()]).toEqual(broadcastIndices(from, to));
      }
    });

    it("copyInto writes a part, in place", () => {
      const cache = zeros([2, 5, 3], { device });
      copyInto(cache, counted([2, 2, 3]), { axis: 1, start: 2 });
      const expected = new Float32Array(30);
      for (let b = 0; b < 2; b++) for (let i = 0; i < 6; i++) expected[b * 15 + 6 + i] = b * 6 + i;
      expect(cache.floatsSync()).toEqual(expected);
      const rows = zeros([4, 2], { device });
      copyInto(rows, counted([1, 2]), { start: 3 });
      expect([...rows.floatsSync()]).toEqual([0, 0, 0, 0, 0, 0, 0, 1]);
      const shared = slice(rows, 0, 3, 4);
      copyInto(rows, tensor([7, 8], { shape: [1, 2], device }), { start: 3 });
      expect([...shared.floatsSync()]).toEqual([7, 8]);
    });

    it("full, of every dtype", () => {
      for (const dtype of dtypes) {
        expect([...full([3], 7, { dtype, device }).floatsSync()]).toEqual([7, 7, 7]);
      }
      expect(full([], 0.1, { dtype: "float64", device }).dataSync()[0]).toBe(0.1);
      expect([...full([70_000], -2.5, { dtype: "bfloat16", device }).floatsSync()].every((v) => v === -2.5)).toBe(true);
    });
  });

  describe("gradients", () => {
    const data = values(24);
    const shape = [2, 3, 4];
    const input = [{ data, shape }];

    it("reshape", () => {
      gradcheck((x) => reshape(x, [4, -1]), input, { device, reference: (x) => x });
    });

    it("permute", () => {
      for (const axes of [
        [2, 0, 1],
        [1, 0, 2],
        [0, -1, 1],
        [0, 1, 2],
      ]) {
        const positive = axes.map((axis) => (axis + 3) % 3);
        const reference = (x: Float64Array) => permuteReference(x, shape, positive);
        gradcheck((x) => permute(x, axes), input, { device, reference });
      }
    });

    it("slice", () => {
      for (const axis of [0, 1, -1]) {
        const reference = (x: Float64Array) => sliceReference(x, shape, axis, 1, 2);
        gradcheck((x) => slice(x, axis, 1, 2), input, { device, reference });
      }
    });

    it("concat", () => {
      const two = [...input, { data: values(16, -1, 1, 4), shape: [2, 2, 4] }];
      const reference = (a: Float64Array, b: Float64Array) =>
        concatReference(
          [
            [a, shape],
            [b, [2, 2, 4]],
          ],
          1,
        );
      gradcheck((a, b) => concat([a, b], 1), two, { device, reference });
      gradcheck((a, b) => concat([a, b], 1), two, { device, reference, inputs: [1] });
    });

    it("broadcastTo", () => {
      const to = [5, 2, 3, 4];
      const reference = (x: Float64Array) => broadcastIndices(shape, to).map((i) => x[i] as number);
      gradcheck((x) => broadcastTo(x, to), input, { device, reference });
      const column = [{ data: values(3), shape: [3, 1] }];
      const spread = (x: Float64Array) => broadcastIndices([3, 1], [2, 3, 4]).map((i) => x[i] as number);
      gradcheck((x) => broadcastTo(x, [2, 3, 4]), column, { device, reference: spread });
    });
  });

  describe("dtypes", () => {
    it.each(dtypes)("%s moves unchanged", (dtype) => {
      const shape = [3, 4, 5];
      const x = counted(shape, dtype);
      expect(permute(x, [2, 0, 1]).dtype).toBe(dtype);
      expect([...permute(x, [2, 0, 1]).floatsSync()]).toEqual(permuteReference(iota(shape), shape, [2, 0, 1]));
      expect([...slice(x, 1, 1, 3).floatsSync()]).toEqual(sliceReference(iota(shape), shape, 1, 1, 3));
      expect([...concat([x, x], 2).floatsSync()]).toEqual(
        concatReference(
          [
            [iota(shape), shape],
            [iota(shape), shape],
          ],
          2,
        ),
      );
    });
  });

  describe("shapes", () => {
    it("empty tensors", () => {
      const x = zeros([0, 3], { device });
      expect(permute(x, [1, 0]).shape).toEqual([3, 0]);
      expect(slice(x, 1, 0, 2).shape).toEqual([0, 2]);
      expect(concat([x, counted([2, 3])]).shape).toEqual([2, 3]);
      expect(broadcastTo(zeros([1, 3], { device }), [0, 3]).shape).toEqual([0, 3]);
      expect(reshape(x, [3, 0]).shape).toEqual([3, 0]);
    });

    it("a large transposition", () => {
      const [rows, cols] = [300, 517];
      const y = transpose(counted([rows, cols])).floatsSync();
      expect(y[5 * rows + 7]).toBe(7 * cols + 5);
      expect([...y]).toEqual(permuteReference(iota([rows, cols]), [rows, cols], [1, 0]));
    });

    it.each(dtypes)("transpositions among other axes, and moves of whole vectors, of %s", (dtype) => {
      const cases: [number[], number[]][] = [
        [
          [2, 35, 3, 40],
          [0, 3, 2, 1],
        ],
        [
          [33, 2, 34],
          [2, 1, 0],
        ],
        [
          [3, 4, 32],
          [1, 0, 2],
        ],
        [
          [9, 40],
          [1, 0],
        ],
      ];
      for (const [shape, axes] of cases) {
        const data = iota(shape).map((v) => v % 127);
        const y = permute(tensor(data, { shape, dtype, device }), axes);
        expect([...y.floatsSync()]).toEqual(permuteReference(data, shape, axes));
      }
    });

    it.each(["uint8", "float16", "float32", "float64"] as const)("views of %s that start anywhere", (dtype) => {
      const data = iota([131]).map((v) => v % 127);
      for (const start of [1, 2, 3, 5]) {
        const x = slice(tensor(data, { dtype, device }), 0, start, start + 120).reshape([3, 40]);
        const rest = data.slice(start, start + 120);
        expect([...permute(x, [1, 0]).floatsSync()]).toEqual(permuteReference(rest, [3, 40], [1, 0]));
        expect([...slice(x, 1, 1, 33).floatsSync()]).toEqual(sliceReference(rest, [3, 40], 1, 1, 33));
        expect([...broadcastTo(x, [2, 3, 40]).floatsSync()]).toEqual([...rest, ...rest]);
      }
    });

    it("copyInto at a position on the device", async () => {
      const at = (position: number) => tensor([position], { dtype: "int32", device });
      const cache = zeros([2, 5, 3], { device });
      copyInto(cache, counted([2, 2, 3]), { axis: 1, start: at(3) });
      const expected = new Float32Array(30);
      for (let b = 0; b < 2; b++) for (let i = 0; i < 6; i++) expected[b * 15 + 9 + i] = b * 6 + i;
      expect(cache.floatsSync()).toEqual(expected);
      copyInto(cache, counted([2, 2, 3]), { axis: 1, start: at(4) });
      await expect(cache.data()).rejects.toThrow("index 4 is out of range, it must be in [0, 4)");
      expect(cache.floatsSync()).toEqual(expected);
    });

    it("views take no memory", () => {
      const x = counted([100, 100]);
      const before = memory().liveBytes;
      tidy(() => {
        reshape(x, [10, -1]);
        slice(x, 0, 10, 90);
        permute(reshape(x, [1, 100, 1, 100]), [1, 0, 3, 2]);
        expect(memory().liveBytes).toBe(before);
      });
    });
  });

  describe("errors", () => {
    const x = zeros([2, 3], { device });

    it("sizes that do not agree", () => {
      expect(() => reshape(x, [4])).toThrow("reshape: shape must hold 6 elements, got [4]");
      expect(() => reshape(x, [-1, 4])).toThrow("reshape: shape must hold 6 elements, got [-1, 4]");
      expect(() => reshape(x, [-1, -1])).toThrow("reshape: at most one size may be -1, got [-1, -1]");
      expect(() => broadcastTo(x, [2, 4])).toThrow("broadcastTo: shapes must broadcast, got [2, 3] and [2, 4]");
      expect(() => broadcastTo(x, [3])).toThrow("broadcastTo: x must broadcast to [3], got [2, 3]");
    });

    it("axes", () => {
      expect(() => permute(x, [0, 0])).toThrow("permute: axes must name each of 2 axes once, got [0, 0]");
      expect(() => permute(x, [0])).toThrow("permute: axes must name each of 2 axes once, got [0]");
      expect(() => transpose(x, 0, 2)).toThrow("transpose: axes 0 and 2 must exist in [2, 3]");
      expect(() => slice(x, 2, 0, 1)).toThrow("slice: axis must be in [-2, 2), got 2");
    });

    it("bounds", () => {
      expect(() => slice(x, 1, 2, 1)).toThrow("slice: start and end must satisfy 0 <= start <= end <= 3, got 2 and 1");
      expect(() => slice(x, 0, -1, 1)).toThrow(
        "slice: start and end must satisfy 0 <= start <= end <= 2, got -1 and 1",
      );
      expect(() => copyInto(x, zeros([2, 3], { device }), { start: 1 })).toThrow(
        "copyInto: src must fit into dst [2, 3] along axis 0 from 1, got [2, 3]",
      );
      expect(() => copyInto(x, zeros([1, 4], { device }))).toThrow("copyInto: src must fit into dst");
    });

    it("mixed inputs", () => {
      expect(() => concat([])).toThrow("concat: needs at least one tensor");
      expect(() => concat([x, zeros([2, 3], { dtype: "int32", device })])).toThrow(
        "concat: all tensors must have one dtype, got float32 and int32",
      );
      expect(() => concat([x, zeros([2, 2], { device })])).toThrow("concat: shapes must agree but for axis 0");
    });

    it("values that a dtype cannot hold", () => {
      expect(() => full([1], 256, { dtype: "uint8", device })).toThrow(
        "full: the value must be a whole number that fits uint8, got 256",
      );
      expect(() => full([1], 0.5, { dtype: "int32", device })).toThrow("full: the value must be a whole number");
    });
  });
});
