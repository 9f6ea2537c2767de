// softmax and logSoftmax of rows in float64.

export function softmaxReference(x: ArrayLike<number>, cols: number, log = false): Float64Array {
  const y = new Float64Array(x.length);
  for (let start = 0; start < x.length; start += cols) {
    let top = -Infinity;
    for (let j = 0; j < cols; j++) top = Math.max(top, x[start + j] as number);
    let sum = 0;
    for (let j = 0; j < cols; j++) sum += Math.exp((x[start + j] as number) - top);
    for (let j = 0; j < cols; j++) {
      const shifted = (x[start + j] as number) - top;
      y[start + j] = log ? shifted - Math.log(sum) : Math.exp(shifted) / sum;
    }
  }
  return y;
}
