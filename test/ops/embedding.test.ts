// embedding, its gradient and embeddingRenorm against their oracles.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import type { EmbeddingOpOptions } from "../../src/ops/embedding.js";
import { embedding, embeddingRenorm } from "../../src/ops/embedding.js";
import { tensor } from "../../src/tensor/create.js";
import type { DType } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { integers, normals } from "../helpers/random.js";
import { errorOfSum, tolerance } from "../helpers/tolerance.js";
import { embeddingGradReference, embeddingReference, renormReference } from "../reference/embedding.js";

describe.each(testDevices())("embedding on %s", (device) => {
  const make = (values: Float32Array | Int32Array, shape: number[], dtype?: DType) =>
    tensor(values, { shape, device, ...(dtype && { dtype }) });

  /** The gradient of the table for the given dy. */
  function gradient(ids: Int32Array, rows: number, dy: Float32Array, options: EmbeddingOpOptions = {}): Float32Array {
    const dim = dy.length / ids.length;
    const weight = make(new Float32Array(rows * dim), [rows, dim]);
    weight.requiresGrad = true;
    backward(embedding(make(ids, [ids.length]), weight, options), make(dy, [ids.length, dim]));
    return weight.grad!.floatsSync();
  }

  describe("values", () => {
    it("copies the rows, bit for bit", () => {
      const [ids, weight] = [integers(12, 7, 1), normals(7 * 5, 2)];
      const y = embedding(make(ids, [3, 4]), make(weight, [7, 5]));
      expect(y.shape).toEqual([3, 4, 5]);
      expect(Float64Array.from(y.floatsSync())).toEqual(embeddingReference(ids, weight, 5));
    });
  });

  describe("gradients", () => {
    it("of the weight, by differences", () => {
      const ids = Int32Array.of(2, 0, 2, 2, 3);
      gradcheck((weight) => embedding(make(ids, [5]), weight), [{ data: normals(15, 3), shape: [5, 3] }], {
        device,
        reference: (weight) => embeddingReference(ids, weight!, 3),
      });
    });

    it.each([{}, { paddingIdx: 4 }, { scaleGradByFreq: true }, { paddingIdx: 0, scaleGradByFreq: true }])(
      "with the options %j and many repeats",
      (options) => {
        const [ids, dy] = [integers(3000, 11, 4), normals(3000 * 37, 5)];
        const expected = embeddingGradReference(dy, ids, 11, 37, options);
        const squares = embeddingGradReference(
          dy.map((v) => v * v),
          ids,
          11,
          37,
        );
        const counts = embeddingGradReference(new Float32Array(dy.length).fill(1), ids, 11, 37);
        // A sum divided by the number of its terms is off by its error divided by it.
        const atol = expected.map((v, i) => {
          const divisor = options.scaleGradByFreq ? counts[i]! : 1;
          return errorOfSum(counts[i]!, v * divisor, Math.sqrt(squares[i]!)) / divisor;
        });
        expectClose(gradient(ids, 11, dy, options), expected, { atol, rtol: 2 ** -22 });
      },
    );

    it.each([16, 21])("sums in the order of the ids, in float32: rows of %i", (dim) => {
      const [ids, dy] = [integers(700, 40, 14), normals(700 * dim, 15)];
      const expected = new Float32Array(60 * dim);
      ids.forEach((id, i) => {
        for (let c = 0; c < dim; c++) expected[id * dim + c]! += dy[i * dim + c]!;
      });
      expect(gradient(ids, 60, dy)).toEqual(expected);
    });

    it("has the same bits every time", () => {
      const [ids, dy] = [integers(5000, 300, 6), normals(5000 * 16, 7)];
      expect(gradient(ids, 300, dy)).toEqual(gradient(ids, 300, dy));
    });
  });

  describe("dtypes", () => {
    it.each(["float16", "bfloat16"] as const)("%s sums in float32", (dtype) => {
      const weight = make(normals(4 * 6, 8), [4, 6], dtype);
      weight.requiresGrad = true;
      const ids = new Int32Array(1000).fill(3);
      const y = embedding(make(ids, [1000]), weight);
      expect(y.dtype).toBe(dtype);
      expect(y.floatsSync().slice(0, 6)).toEqual(weight.floatsSync().slice(18));
      backward(y, make(new Float32Array(6000).fill(1), [1000, 6], dtype));
      // A running sum in 16 bits would stop growing at 2048 ulps, far below 1000 for bfloat16.
      expect([...weight.grad!.floatsSync().slice(18)]).toEqual(new Array(6).fill(1000));
    });
  });

  describe("shapes", () => {
    it.each([
      { ids: [0], table: [4, 3] },
      { ids: [], table: [4, 3] },
      { ids: [2, 3], table: [4, 0] },
      { ids: [2, 1, 3], table: [1, 131] },
    ])("ids $ids of a table $table", ({ ids: shape, table }) => {
      const count = shape.reduce((n, d) => n * d, 1);
      const [rows, dim] = table as [number, number];
      const [ids, weight] = [integers(count, rows, 9), normals(rows * dim, 10)];
      const y = embedding(make(ids, shape), make(weight, table));
      expect(y.shape).toEqual([...shape, dim]);
      expect(Float64Array.from(y.floatsSync())).toEqual(embeddingReference(ids, weight, dim));
    });

    it("gives a gradient of zeros for no ids", () => {
      const weight = make(normals(12, 11), [4, 3]);
      weight.requiresGrad = true;
      backward(embedding(make(new Int32Array(0), [0]), weight), make(new Float32Array(0), [0, 3]));
      expect([...weight.grad!.floatsSync()]).toEqual(new Array(12).fill(0));
    });
  });

  describe("renorm", () => {
    it.each([1, 2, 3.5, Infinity])("scales only the named rows, to at most the %d-norm", (p) => {
      const [ids, weight] = [Int32Array.of(5, 1, 5, 2), normals(6 * 19, 12, 2)];
      weight.fill(0.001, 2 * 19, 3 * 19);
      const table = make(weight, [6, 19]);
      embeddingRenorm(make(ids, [4]), table, 1.5, p);
      expectClose(table.floatsSync(), renormReference(weight, 19, ids, 1.5, p), { atol: 1e-6, rtol: 1e-5 });
    });

    it("of long rows that many ids name", () => {
      const [ids, weight] = [integers(100, 9, 16), normals(20 * 150, 17, 3)];
      const table = make(weight, [20, 150]);
      embeddingRenorm(make(ids, [100]), table, 2, 2);
      expectClose(table.floatsSync(), renormReference(weight, 150, ids, 2, 2), { atol: 1e-6, rtol: 1e-5 });
    });

    it("rejects bad options", () => {
      const [ids, table] = [make(Int32Array.of(0), [1]), make(normals(4, 1), [2, 2])];
      expect(() => embeddingRenorm(ids, table, -1)).toThrow("embeddingRenorm: maxNorm must not be negative, got -1");
      expect(() => embeddingRenorm(ids, table, 1, 0)).toThrow("embeddingRenorm: normType must be positive, got 0");
    });
  });

  describe("errors", () => {
    it.each([-1, 7, 2 ** 31 - 1])("reports the id %i at the next read, and recovers", async (id) => {
      const weight = make(normals(7 * 5, 13), [7, 5]);
      const y = embedding(make(Int32Array.of(1, id), [2]), weight);
      await expect(y.data()).rejects.toThrow(new RegExp(`${id}\\b.*\\b7\\b`));
      expect((await embedding(make(Int32Array.of(1), [1]), weight).data()).length).toBe(5);
    });
    it("wants int32 ids and a table", () => {
      const weight = make(normals(6, 1), [2, 3]);
      expect(() => embedding(weight, weight)).toThrow("embedding: ids must be int32, got float32");
      const ids = make(Int32Array.of(0), [1]);
      expect(() => embedding(ids, make(normals(6, 1), [6]))).toThrow("embedding: weight must have two axes, got [6]");
    });
  });

  it("adds no error to the tolerance of a sum of two", () => {
    expectClose(gradient(Int32Array.of(1, 1), 2, Float32Array.of(0.25, 0.5)), [0, 0.75], tolerance("float32", "exact"));
  });
});
