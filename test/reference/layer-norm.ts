// layerNorm in float64: y = (x - mean) / sqrt(variance + eps) * weight + bias per row.

export function layerNormReference(
  x: ArrayLike<number>,
  cols: number,
  weight: ArrayLike<number> | null,
  bias: ArrayLike<number> | null,
  eps: number,
): Float64Array {
  const y = new Float64Array(x.length);
  for (let start = 0; start < x.length; start += cols) {
    let mean = 0;
    for (let c = 0; c < cols; c++) mean += x[start + c]! / cols;
    let variance = 0;
    for (let c = 0; c < cols; c++) variance += (x[start + c]! - mean) ** 2 / cols;
    const rstd = 1 / Math.sqrt(variance + eps);
    for (let c = 0; c < cols; c++) {
      y[start + c] = (x[start + c]! - mean) * rstd * (weight?.[c] ?? 1) + (bias?.[c] ?? 0);
    }
  }
  return y;
}
