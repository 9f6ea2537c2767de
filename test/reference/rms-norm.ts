// rmsNorm in float64: y = x / sqrt(mean(x^2) + eps) * weight per row.

export function rmsNormReference(x: ArrayLike<number>, weight: ArrayLike<number>, eps: number): Float64Array {
  const cols = weight.length;
  const y = new Float64Array(x.length);
  for (let start = 0; start < x.length; start += cols) {
    let squares = 0;
    for (let c = 0; c < cols; c++) squares += x[start + c]! ** 2;
    const rstd = 1 / Math.sqrt(squares / cols + eps);
    for (let c = 0; c < cols; c++) y[start + c] = x[start + c]! * rstd * weight[c]!;
  }
  return y;
}

/** The gradients of sum(dy * rmsNorm(x, weight)). */
export function rmsNormGradients(
  dy: ArrayLike<number>,
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  eps: number,
): { dx: Float64Array; dweight: Float64Array } {
  const cols = weight.length;
  const [dx, dweight] = [new Float64Array(x.length), new Float64Array(cols)];
  for (let start = 0; start < x.length; start += cols) {
    let squares = 0;
    for (let c = 0; c < cols; c++) squares += x[start + c]! ** 2;
    const rstd = 1 / Math.sqrt(squares / cols + eps);
    let dot = 0;
    for (let c = 0; c < cols; c++) {
      dot += dy[start + c]! * weight[c]! * x[start + c]!;
      dweight[c]! += dy[start + c]! * x[start + c]! * rstd;
    }
    for (let c = 0; c < cols; c++) {
      dx[start + c] = rstd * dy[start + c]! * weight[c]! - (x[start + c]! * dot * rstd ** 3) / cols;
    }
  }
  return { dx, dweight };
}
