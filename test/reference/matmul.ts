// Matrix products in float64, written as their definition.

export interface ProductSizes {
  /** Matrices in a; b has as many, or one when `sharedB`. */
  batch: number;
  m: number;
  n: number;
  k: number;
  transposeA?: boolean;
  transposeB?: boolean;
  sharedB?: boolean;
}

export function matmulReference(a: ArrayLike<number>, b: ArrayLike<number>, sizes: ProductSizes): Float64Array {
  const { batch, m, n, k, transposeA = false, transposeB = false, sharedB = false } = sizes;
  const c = new Float64Array(batch * m * n);
  for (let z = 0; z < batch; z++) {
    const aOffset = z * m * k;
    const bOffset = sharedB ? 0 : z * k * n;
    for (let i = 0; i < m; i++) {
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let p = 0; p < k; p++) {
          const x = a[aOffset + (transposeA ? p * m + i : i * k + p)] as number;
          const y = b[bOffset + (transposeB ? j * k + p : p * n + j)] as number;
          sum += x * y;
        }
        c[(z * m + i) * n + j] = sum;
      }
    }
  }
  return c;
}

/** x[rows, k] weight[n, k]^T + bias[n]. */
export function linearReference(
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  bias: ArrayLike<number> | null,
  rows: number,
  n: number,
  k: number,
): Float64Array {
  const y = matmulReference(x, weight, { batch: 1, m: rows, n, k, transposeB: true });
  return bias ? y.map((value, i) => value + (bias[i % n] as number)) : y;
}
