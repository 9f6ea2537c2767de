// int8DoubleQuant: a matrix quantized twice, by rows and by columns, as the first LLM.int8() kernels wanted it.
import { noGrad } from "../autograd/no-grad.js";
import type { Owner } from "../tensor/scope.js";
import { owned, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { cast } from "./cast.js";
import { clamp } from "./clamp.js";
import { abs, add, mul, neg, relu, sign } from "./elementwise.js";
import type { Int8QuantOptions } from "./int8.js";
import { int8VectorwiseQuant, markedColumns } from "./int8.js";
import { permute, reshape } from "./shape.js";

/** The codes of a matrix by rows and by columns, each with their scales; dispose it when no `tidy` does. */
export class Int8DoubleQuant implements Owner {
  /** int8 [..., K], `rne(a * 127 / rowStats)`, zero in outlier columns. */
  readonly rowCodes: Tensor;
  /** int8 [..., K], `rne(a * 127 / colStats)`, zero where an element is an outlier. */
  readonly colCodes: Tensor;
  /** float32 [rows], absmax of each row without outliers. */
  readonly rowStats: Tensor;
  /** float32 [K], absmax of each column without outliers. */
  readonly colStats: Tensor;
  /** uint8 [K], 1 in outlier columns; null when the threshold was 0. */
  readonly outlierMask: Tensor | null;

  /** @internal */
  constructor(rowCodes: Tensor, colCodes: Tensor, rowStats: Tensor, colStats: Tensor, outlierMask: Tensor | null) {
    this.rowCodes = rowCodes;
    this.colCodes = colCodes;
    this.rowStats = rowStats;
    this.colStats = colStats;
    this.outlierMask = outlierMask;
  }

  /** Indices of the outlier columns, ascending; null when the threshold was 0. Reading them waits for the device. */
  async outlierCols(): Promise<Int32Array | null> {
    return this.outlierMask && markedColumns(await this.outlierMask.data());
  }

  dispose(): void {
    for (const part of this[owned]()) part?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal */
  [owned](): (Tensor | null)[] {
    return [this.rowCodes, this.colCodes, this.rowStats, this.colStats, this.outlierMask];
  }
}

/**
 * Quantizes A [..., K] (float32, float16 or bfloat16; leading axes are rows) to int8 by rows, as `int8VectorwiseQuant`
 * does, and by columns. With `threshold` > 0, elements of at least that magnitude count for no scale; they are 0 in the
 * codes by columns, their whole column is in those by rows. Kept for compatibility; it makes several passes.
 */
export function int8DoubleQuant(A: Tensor, options: Int8QuantOptions = {}): Int8DoubleQuant {
  return tidy(() =>
    noGrad(() => {
      const rows = int8VectorwiseQuant(A, options);
      const matrix = reshape(A, [rows.stats.size, A.shape[A.ndim - 1] as number]);
      const inliers = withoutOutliers(cast(matrix, "float32"), options.threshold ?? 0);
      const columns = int8VectorwiseQuant(permute(inliers, [1, 0]));
      const colCodes = reshape(permute(columns.codes, [1, 0]), A.shape);
      return new Int8DoubleQuant(rows.codes, colCodes, rows.stats, columns.stats, rows.outlierMask);
    }),
  );
}

// Outliers as 0, NaN as it is. The difference of two float32 is exactly 0 only where they are equal.
function withoutOutliers(a: Tensor, threshold: number): Tensor {
  if (threshold === 0) return a;
  const isInlier = relu(sign(add(neg(abs(a)), threshold)));
  return mul(clamp(a, -threshold, threshold), isInlier);
}
