// loraRows against its float64 oracle, row by row.
import { describe, expect, it } from "vitest";
import { loraRows } from "../../src/ops/lora-rows.js";
import { tensor } from "../../src/tensor/create.js";
import type { DType } from "../../src/tensor/dtype.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { normals } from "../helpers/random.js";
import type { FloatDType } from "../helpers/tolerance.js";
import { roundoff } from "../helpers/tolerance.js";
import { unaligned } from "../helpers/unaligned.js";
import type { LoraSizes } from "../reference/lora-rows.js";
import { loraRowsReference } from "../reference/lora-rows.js";

describe.each(testDevices())("loraRows on %s", (device) => {
  type Make = (values: ArrayLike<number>, shape: readonly number[], dtype: DType) => Tensor;
  const aligned: Make = (values, shape, dtype) =>
    tensor(Float32Array.from(values), { shape: [...shape], dtype, device });
  const shifted: Make = (values, shape, dtype) => unaligned(values, shape, { dtype, device });
  const int = (values: number[]): Tensor => tensor(values, { dtype: "int32", device });

  function operands(rows: number, adapters: number, own: LoraSizes, dtype: DType, make: Make = aligned) {
    const { rank, inputs, outputs } = own;
    const some = (seed: number, ...shape: number[]): Tensor => {
      const count = shape.reduce((n, d) => n * d, 1);
      return make(normals(count, seed), shape, dtype);
    };
    return {
      y: some(1, rows, outputs),
      x: some(2, rows, inputs),
      a: some(3, adapters, rank, inputs),
      b: some(4, adapters, rank, outputs),
    };
  }

  function check(rows: number, segment: number[], own: LoraSizes, dtype: FloatDType, make: Make = aligned): void {
    const adapters = segment.length - 1;
    const parts = operands(rows, adapters, own, dtype, make);
    const { y, x, a, b } = parts;
    const values = [y, x, a, b].map((one) => one.floatsSync());
    const [vy, vx, va, vb] = values as [Float32Array, Float32Array, Float32Array, Float32Array];
    const want = loraRowsReference(vy, vx, va, vb, segment, own);
    // A sum of n terms in float32 is off by at most n roundings of the sum of their sizes.
    const sizes = values.map((one) => one.map(Math.abs)) as [Float32Array, Float32Array, Float32Array, Float32Array];
    const most = loraRowsReference(...sizes, segment, own);
    const atol = most.map((size, i) => {
      return (own.inputs + own.rank + 2) * 2 ** -24 * size + roundoff[dtype] * Math.abs(want[i] as number);
    });
    const z = loraRows(y, x, a, b, int(segment));
    expect(z.shape).toEqual(y.shape);
    expect(z.dtype).toBe(dtype);
    expectClose(z.floatsSync(), want, { atol, rtol: 0 });
    // Rows without an adapter are what they were, to the bit.
    const [first, end] = [segment[0] as number, segment.at(-1) as number];
    const outside = (flat: Float32Array) => [
      ...flat.subarray(0, first * own.outputs),
      ...flat.subarray(end * own.outputs),
    ];
    expect(outside(z.floatsSync())).toEqual(outside(vy));
  }

  describe("values", () => {
    it.each(["float32", "float16", "bfloat16"] as const)("%s: adapters by their segments", (dtype) => {
      check(9, [1, 4, 4, 8], { rank: 16, inputs: 64, outputs: 48 }, dtype);
      check(3, [0, 1, 3], { rank: 4, inputs: 32, outputs: 1100 }, dtype);
    });

    it("any sizes and addresses", () => {
      check(5, [0, 2, 5], { rank: 7, inputs: 33, outputs: 21 }, "float32");
      check(4, [0, 4], { rank: 1, inputs: 1, outputs: 1 }, "float16");
      check(5, [0, 3, 4], { rank: 8, inputs: 32, outputs: 40 }, "bfloat16", shifted);
      check(5, [2, 3, 5], { rank: 8, inputs: 32, outputs: 40 }, "float32", shifted);
    });

    it("leading axes count as rows", () => {
      const own = { rank: 4, inputs: 8, outputs: 8 };
      const { y, x, a, b } = operands(6, 1, own, "float32");
      const flat = loraRows(y, x, a, b, int([1, 5])).floatsSync();
      const z = loraRows(y.reshape([1, 6, 8]), x.reshape([1, 6, 8]), a, b, int([1, 5]));
      expect(z.shape).toEqual([1, 6, 8]);
      expect(z.floatsSync()).toEqual(flat);
    });

    it("a row is the same to the bit whatever other rows there are", () => {
      const own = { rank: 16, inputs: 70, outputs: 1030 };
      const { y, x, a, b } = operands(40, 2, own, "float32");
      const all = loraRows(y, x, a, b, int([0, 20, 40])).floatsSync();
      const one = (from: Tensor, t: number) => from.slice(0, t, t + 1);
      for (const [t, segment] of [
        [3, [0, 1, 1]],
        [39, [0, 0, 1]],
      ] as const) {
        const z = loraRows(one(y, t), one(x, t), a, b, int([...segment])).floatsSync();
        expect(z).toEqual(all.slice(t * own.outputs, (t + 1) * own.outputs));
      }
    });

    it("segments that make no sense read nothing that is not there", () => {
      const own = { rank: 2, inputs: 4, outputs: 4 };
      const { y, x, a, b } = operands(3, 2, own, "float32");
      expect(loraRows(y, x, a, b, int([-5, -5, -1])).floatsSync()).toEqual(y.floatsSync());
      expect(loraRows(y, x, a, b, int([9, 8, 7])).floatsSync()).toEqual(y.floatsSync());
    });
  });

  describe("empty", () => {
    it.each([
      ["no rows", 0, [0, 0], { rank: 2, inputs: 4, outputs: 4 }],
      ["no adapters", 3, [0], { rank: 2, inputs: 4, outputs: 4 }],
      ["no rank", 3, [0, 2], { rank: 0, inputs: 4, outputs: 4 }],
      ["no inputs", 3, [0, 2], { rank: 2, inputs: 0, outputs: 4 }],
      ["no outputs", 3, [0, 2], { rank: 2, inputs: 4, outputs: 0 }],
    ] as const)("%s", (_, rows, segment, own) => {
      const { y, x, a, b } = operands(rows, segment.length - 1, own, "float32");
      expect(loraRows(y, x, a, b, int([...segment])).floatsSync()).toEqual(y.floatsSync());
    });
  });

  describe("errors", () => {
    it("name what does not fit", () => {
      const { y, x, a, b } = operands(3, 2, { rank: 2, inputs: 4, outputs: 6 }, "float32");
      const segment = int([0, 1, 3]);
      expect(() => loraRows(y, y, a, b, segment)).toThrow("loraRows: x must have shape [3, 4], got [3, 6]");
      expect(() => loraRows(y, x, b, b, segment)).toThrow("loraRows: x must have shape [3, 6], got [3, 4]");
      expect(() => loraRows(y, x, a, a, segment)).toThrow("loraRows: b must have shape [2, 2, 6], got [2, 2, 4]");
      expect(() => loraRows(y, x, a, b, int([0]))).toThrow("loraRows: segment must have shape [3], got [1]");
      expect(() => loraRows(y, x, x, b, segment)).toThrow(
        "loraRows: a must have three axes [adapters, rank, inputs], got [3, 4]",
      );
      expect(() => loraRows(y, x.cast("float16"), a, b, segment)).toThrow(
        "loraRows: y and x must have one dtype, got float32 and float16",
      );
      expect(() => loraRows(y, x, a, b, segment.cast("float32"))).toThrow(
        "loraRows: segment must be int32, got float32",
      );
      x.requiresGrad = true;
      expect(() => loraRows(y, x, a, b, segment)).toThrow("loraRows: it has no gradient, call it inside noGrad");
    });
  });
});
