// int8DoubleQuant against the row quantizer's reference, applied to rows and to columns.
import { describe, expect, it } from "vitest";
import { int8DoubleQuant } from "../../src/ops/index.js";
import { tensor } from "../../src/tensor/create.js";
import { memory } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";
import { normals } from "../helpers/random.js";
import { readSafetensors } from "../helpers/safetensors.js";
import { quantizeRows } from "../reference/int8.js";

/** The codes by columns: the rule for rows on the transposed matrix, its outliers set to 0. */
function quantizeColumns(a: ArrayLike<number>, rows: number, cols: number, threshold: number) {
  const inlier = (x: number): number => (threshold > 0 && Math.abs(x) >= threshold ? 0 : x);
  const transposed = Float32Array.from({ length: rows * cols }, (_, at) =>
    inlier(a[(at % rows) * cols + Math.floor(at / rows)] as number),
  );
  const { codes, stats } = quantizeRows(transposed, cols, rows);
  return {
    stats,
    codes: Int8Array.from(codes, (_, at) => codes[(at % cols) * rows + Math.floor(at / cols)] as number),
  };
}

describe.each(testDevices())("on %s", (device) => {
  it.each(["float32", "float16", "bfloat16"] as const)(
    "quantizes rows and columns of %s by one rule",
    async (dtype) => {
      const before = memory().tensors;
      for (const [shape, rows, cols] of [
        [[5, 12], 5, 12],
        [[2, 3, 7], 6, 7],
        [[9], 1, 9],
        [[0, 4], 0, 4],
      ] as const) {
        for (const threshold of [0, 1.25]) {
          using a = tensor(normals(rows * cols, 3), { shape, dtype, device });
          using q = int8DoubleQuant(a, { threshold });
          const values = a.floatsSync();
          const byRows = quantizeRows(values, rows, cols, threshold);
          const byColumns = quantizeColumns(values, rows, cols, threshold);
          expect(q.rowCodes.dataSync()).toEqual(byRows.codes);
          expect(q.rowStats.dataSync()).toEqual(byRows.stats);
          expect(q.colCodes.dataSync()).toEqual(byColumns.codes);
          expect(q.colStats.dataSync()).toEqual(byColumns.stats);
          expect([q.rowCodes.shape, q.colCodes.shape, q.colStats.shape]).toEqual([shape, shape, [cols]]);
          const outliers = await q.outlierCols();
          expect(outliers && [...outliers]).toEqual(threshold > 0 ? byRows.outliers : null);
        }
      }
      expect(memory().tensors).toBe(before);
    },
  );

  it("counts elements at the threshold and infinities as outliers, and shows NaN", () => {
    const put = (values: number[]): Tensor => tensor(values, { shape: [2, 3], device });
    using a = put([2, -1, Infinity, 1, 0.5, 1]);
    using q = int8DoubleQuant(a, { threshold: 2 });
    expect([...q.colCodes.dataSync()]).toEqual([0, -127, 0, 127, 64, 127]);
    expect([...q.colStats.dataSync()]).toEqual([1, 1, 1]);
    using b = put([2, NaN, 1, 1, 0.5, 1]);
    using r = int8DoubleQuant(b);
    expect([...r.colStats.dataSync()]).toEqual([2, NaN, 1]);
    expect([...r.colCodes.dataSync()]).toEqual([127, 0, 127, 64, 0, 127]);
    expect(() => int8DoubleQuant(a, { threshold: -1 })).toThrow("threshold must be at least 0, got -1");
  });

  it("gives the rows that bitsandbytes gives", () => {
    const file = readSafetensors("functional/int8.safetensors");
    const get = (name: string) => file.get(name) as NonNullable<ReturnType<typeof file.get>>;
    for (const name of ["s0", "s1", "s2"]) {
      const A = get(`${name}.A`);
      using a = tensor(A.values as never, { dtype: "float16", shape: A.shape, device });
      using q = int8DoubleQuant(a, { threshold: 6 });
      expect(q.rowCodes.dataSync()).toEqual(get(`${name}.t6.CA`).values);
      expect(q.rowStats.dataSync()).toEqual(get(`${name}.t6.SCA`).values);
    }
  });
});
