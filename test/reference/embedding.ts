// embedding in float64: rows by id, the gradient of the table, and rows scaled to a maximal p-norm.

export function embeddingReference(ids: ArrayLike<number>, weight: ArrayLike<number>, dim: number): Float64Array {
  return Float64Array.from({ length: ids.length * dim }, (_, at) => {
    const row = ids[Math.floor(at / dim)]!;
    return weight[row * dim + (at % dim)]!;
  });
}

export function embeddingGradReference(
  dy: ArrayLike<number>,
  ids: ArrayLike<number>,
  rows: number,
  dim: number,
  options: { paddingIdx?: number; scaleGradByFreq?: boolean } = {},
): Float64Array {
  const times = new Float64Array(rows);
  for (let i = 0; i < ids.length; i++) times[ids[i]!] = times[ids[i]!]! + 1;
  const grad = new Float64Array(rows * dim);
  for (let i = 0; i < ids.length; i++) {
    const row = ids[i]!;
    if (row === options.paddingIdx) continue;
    const scale = options.scaleGradByFreq ? 1 / times[row]! : 1;
    for (let c = 0; c < dim; c++) grad[row * dim + c] = grad[row * dim + c]! + dy[i * dim + c]! * scale;
  }
  return grad;
}

export function renormReference(
  weight: ArrayLike<number>,
  dim: number,
  ids: ArrayLike<number>,
  maxNorm: number,
  p: number,
): Float64Array {
  const scaled = Float64Array.from(weight);
  for (const row of new Set(Array.from(ids))) {
    const values = scaled.subarray(row * dim, (row + 1) * dim);
    const norm =
      p === Infinity
        ? values.reduce((top, w) => Math.max(top, Math.abs(w)), 0)
        : values.reduce((sum, w) => sum + Math.abs(w) ** p, 0) ** (1 / p);
    if (norm > maxNorm) for (let c = 0; c < dim; c++) values[c] = (values[c]! * maxNorm) / (norm + 1e-7);
  }
  return scaled;
}
