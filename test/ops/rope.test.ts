// rope against its float64 oracle.
import { describe, expect, it } from "vitest";
import { rope } from "../../src/ops/rope.js";
import { slice } from "../../src/ops/shape.js";
import { tensor } from "../../src/tensor/create.js";
import type { DType } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { normals } from "../helpers/random.js";
import { tolerance } from "../helpers/tolerance.js";
import { ropeReference, ropeTables } from "../reference/rope.js";

type Shape4 = [number, number, number, number];

describe.each(testDevices())("rope on %s", (device) => {
  const make = (values: Float32Array, shape: number[], dtype: DType = "float32") =>
    tensor(values, { shape, dtype, device });
  const tables = (positions: number, dim: number) => {
    const { cos, sin } = ropeTables(positions, dim / 2);
    return { cos, sin, c: make(cos, [positions, dim / 2]), s: make(sin, [positions, dim / 2]) };
  };
  const sizeOf = (shape: number[]) => shape.reduce((n, d) => n * d, 1);

  describe("values", () => {
    it.each([0, 3])("agrees with the oracle at offset %i", (offset) => {
      const shape: Shape4 = [2, 5, 3, 16];
      const { cos, sin, c, s } = tables(8, 16);
      const x = normals(sizeOf(shape), 1);
      const y = rope(make(x, shape), c, s, offset);
      expectClose(y.floatsSync(), ropeReference(x, shape, cos, sin, offset), tolerance("float32"));
    });

    it("leaves position 0 as it is", () => {
      const { c, s } = tables(1, 8);
      const x = normals(16, 2);
      expect(rope(make(x, [1, 1, 2, 8]), c, s).floatsSync()).toEqual(x);
    });
  });

  describe("gradients", () => {
    it("of x at an offset", () => {
      const shape: Shape4 = [1, 3, 2, 6];
      const { cos, sin, c, s } = tables(7, 6);
      gradcheck((x) => rope(x, c, s, 4), [{ data: normals(sizeOf(shape), 3), shape }], {
        device,
        reference: (x) => ropeReference(x!, shape, cos, sin, 4),
      });
    });
  });

  describe("dtypes", () => {
    const narrow = ["float16", "bfloat16"] as const;
    const cases = narrow.flatMap((dtype) => [10, 32, 48].map((dim) => ({ dtype, dim })));
    it.each(cases)("$dtype in and out, tables float32, heads of $dim", ({ dtype, dim }) => {
      const shape: Shape4 = [2, 4, 2, dim];
      const { cos, sin, c, s } = tables(4, dim);
      const x = make(normals(sizeOf(shape), 4), shape, dtype);
      const y = rope(x, c, s);
      expect(y.dtype).toBe(dtype);
      expectClose(y.floatsSync(), ropeReference(x.floatsSync(), shape, cos, sin, 0), tolerance(dtype));
    });
  });

  describe("positions on the device", () => {
    it("are added to the offset", () => {
      const shape: Shape4 = [2, 3, 2, 8];
      const { cos, sin, c, s } = tables(9, 8);
      const x = normals(sizeOf(shape), 8);
      const y = rope(make(x, shape), c, s, tensor([5], { dtype: "int32", device }));
      expectClose(y.floatsSync(), ropeReference(x, shape, cos, sin, 5), tolerance("float32"));
    });
    it.each([-1, 7])("that do not fit are reported: %i", async (position) => {
      const { c, s } = tables(9, 8);
      const y = rope(make(normals(48, 8), [1, 3, 2, 8]), c, s, tensor([position], { dtype: "int32", device }));
      await expect(y.data()).rejects.toThrow(`rope: index ${position} is out of range, it must be in [0, 7)`);
    });
  });

  describe("a position a token", () => {
    it.each([
      [4, 2, 8],
      [1, 4, 2, 8],
      [2, 2, 2, 8],
    ])("of x [%i, %i, %i, ...]", (...dims) => {
      const shape = dims.filter((n) => n !== undefined);
      const positions = [7, 0, 3, 3];
      const { cos, sin, c, s } = tables(9, 8);
      const x = normals(sizeOf(shape), 8);
      const y = rope(make(x, shape), c, s, tensor(positions, { dtype: "int32", device }));
      expect(y.shape).toEqual(shape);
      expectClose(y.floatsSync(), ropeReference(x, [1, 4, 2, 8], cos, sin, positions), tolerance("float32"));
    });
    it("has a gradient", () => {
      const { cos, sin, c, s } = tables(9, 6);
      const positions = [5, 1, 8];
      gradcheck(
        (x) => rope(x, c, s, tensor(positions, { dtype: "int32", device })),
        [{ data: normals(36, 3), shape: [3, 2, 6] }],
        { device, reference: (x) => ropeReference(x!, [1, 3, 2, 6], cos, sin, positions) },
      );
    });
    it.each([-1, 9])("that is not in the tables is reported: %i", async (position) => {
      const { c, s } = tables(9, 8);
      const y = rope(make(normals(32, 8), [2, 2, 8]), c, s, tensor([1, position], { dtype: "int32", device }));
      await expect(y.data()).rejects.toThrow(`rope: index ${position} is out of range, it must be in [0, 9)`);
    });
    it("there must be as many as tokens", () => {
      const { c, s } = tables(9, 8);
      const positions = tensor([1, 2], { dtype: "int32", device });
      expect(() => rope(make(normals(48, 8), [3, 2, 8]), c, s, positions)).toThrow(
        "rope: positions must have 3 elements, got 2",
      );
    });
  });

  describe("heads that turn in part", () => {
    const dtypes = ["float32", "float16", "bfloat16"] as const;
    const sizes = [
      { dim: 16, turned: 8 },
      { dim: 32, turned: 32 },
      { dim: 64, turned: 16 },
      { dim: 80, turned: 32 },
      { dim: 7, turned: 4 },
      { dim: 9, turned: 0 },
    ];
    it.each(dtypes.flatMap((dtype) => sizes.map((size) => ({ dtype, ...size }))))(
      "$turned of $dim, $dtype",
      ({ dtype, dim, turned }) => {
        const shape: Shape4 = [2, 3, 2, dim];
        const { cos, sin, c, s } = tables(5, turned);
        const x = make(normals(sizeOf(shape), 4), shape, dtype);
        const y = rope(x, c, s, 2).floatsSync();
        expectClose(y, ropeReference(x.floatsSync(), shape, cos, sin, 2, turned / 2), tolerance(dtype));
      },
    );
    it("have a gradient", () => {
      const shape: Shape4 = [1, 3, 2, 7];
      const { cos, sin, c, s } = tables(7, 4);
      gradcheck((x) => rope(x, c, s, 4), [{ data: normals(sizeOf(shape), 3), shape }], {
        device,
        reference: (x) => ropeReference(x!, shape, cos, sin, 4, 2),
      });
    });
  });

  describe("shapes", () => {
    it("a view that starts between two vectors", () => {
      const shape: Shape4 = [1, 2, 3, 16];
      const { cos, sin, c, s } = tables(2, 16);
      const x = normals(97, 9);
      const view = slice(make(x, [97]), 0, 1, 97).reshape(shape);
      expectClose(rope(view, c, s).floatsSync(), ropeReference(x.slice(1), shape, cos, sin, 0), tolerance("float32"));
    });

    it.each<{ shape: Shape4 }>([
      { shape: [1, 1, 1, 2] },
      { shape: [3, 7, 5, 34] },
      { shape: [0, 4, 2, 8] },
      { shape: [2, 0, 2, 8] },
      { shape: [2, 3, 0, 8] },
    ])("$shape", ({ shape }) => {
      const { cos, sin, c, s } = tables(9, shape[3]);
      const x = normals(sizeOf(shape), 5);
      const y = rope(make(x, shape), c, s, 1);
      expect(y.shape).toEqual(shape);
      expectClose(y.floatsSync(), ropeReference(x, shape, cos, sin, 1), tolerance("float32"));
    });
  });

  describe("errors", () => {
    const x = () => make(normals(32, 6), [1, 2, 2, 8]);
    it("keeps the positions within the tables", () => {
      const { c, s } = tables(4, 8);
      expect(() => rope(x(), c, s, 3)).toThrow(
        "offset + length must be within the 4 positions of the tables, got 3 + 2",
      );
      expect(() => rope(x(), c, s, -1)).toThrow("got -1 + 2");
    });
    it("names tables that are too wide, and x of two axes", () => {
      const { c, s } = tables(4, 10);
      expect(() => rope(x(), c, s)).toThrow(
        "rope: cos and sin must have the shape [positions, at most 4], got [4, 5] and [4, 5]",
      );
      expect(() => rope(make(normals(6, 1), [2, 3]), c, s)).toThrow(
        "rope: x must have the shape [batch, length, heads, dim] or [tokens, heads, dim], got [2, 3]",
      );
    });
    it("wants float32 tables", () => {
      const { s } = tables(4, 8);
      expect(() => rope(x(), make(normals(16, 7), [4, 4], "float16"), s)).toThrow(
        "rope: cos must be float32, got float16",
      );
    });
  });
});
