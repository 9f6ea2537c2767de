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

/** The gradients of sum(dy * layerNorm(x, weight, bias)). */
export function layerNormGradients(
  dy: ArrayLike<number>,
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  eps: number,
): { dx: Float64Array; dweight: Float64Array; dbias: Float64Array } {
  const cols = weight.length;
  const [dx, dweight, dbias] = [new Float64Array(x.length), new Float64Array(cols), new Float64Array(cols)];
  for (let start = 0; start < x.length; start += cols) {
    const row = Array.from({ length: cols }, (_, c) => x[start + c]!);
    const mean = row.reduce((sum, v) => sum + v, 0) / cols;
    const rstd = 1 / Math.sqrt(row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / cols + eps);
    let [sum, dot] = [0, 0];
    for (let c = 0; c < cols; c++) {
      const n = (row[c]! - mean) * rstd;
      dweight[c]! += dy[start + c]! * n;
      dbias[c]! += dy[start + c]!;
      sum += dy[start + c]! * weight[c]!;
      dot += dy[start + c]! * weight[c]! * n;
    }
    for (let c = 0; c < cols; c++) {
      const n = (row[c]! - mean) * rstd;
      dx[start + c] = rstd * (dy[start + c]! * weight[c]! - sum / cols - (n * dot) / cols);
    }
  }
  return { dx, dweight, dbias };
}
