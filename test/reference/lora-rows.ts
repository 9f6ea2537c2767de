// loraRows in float64.

/** Sizes of the tables of adapters. */
export interface LoraSizes {
  rank: number;
  inputs: number;
  outputs: number;
}

/** y + (x a[i]^T) b[i] for the rows of segment i, row by row. */
export function loraRowsReference(
  y: ArrayLike<number>,
  x: ArrayLike<number>,
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  segment: readonly number[],
  { rank, inputs, outputs }: LoraSizes,
): Float64Array {
  const z = Float64Array.from(y);
  for (let i = 0; i + 1 < segment.length; i++) {
    for (let t = segment[i] as number; t < (segment[i + 1] as number); t++) {
      for (let j = 0; j < rank; j++) {
        let h = 0;
        for (let k = 0; k < inputs; k++) h += Number(x[t * inputs + k]) * Number(a[(i * rank + j) * inputs + k]);
        for (let o = 0; o < outputs; o++) {
          z[t * outputs + o] = (z[t * outputs + o] as number) + h * Number(b[(i * rank + j) * outputs + o]);
        }
      }
    }
  }
  return z;
}
