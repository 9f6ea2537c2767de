// Plain evaluation of LLM.int8(): the row quantizer with float32 roundings where the definition has them, products
// in exact integers, the rest in float64.

const f = Math.fround;

/** Rounds to the nearest integer, ties to even. */
function roundToEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

export interface ReferenceRows {
  codes: Int8Array;
  stats: Float32Array;
  outliers: number[];
}

export function quantizeRows(a: ArrayLike<number>, rows: number, cols: number, threshold = 0): ReferenceRows {
  const isOutlier = (x: number): boolean => threshold > 0 && Math.abs(x) >= threshold;
  const outliers = [...Array(cols).keys()].filter((j) =>
    [...Array(rows).keys()].some((i) => isOutlier(a[i * cols + j] as number)),
  );
  const codes = new Int8Array(rows * cols);
  const stats = new Float32Array(rows);
  for (let i = 0; i < rows; i++) {
    let absmax = 0;
    for (let j = 0; j < cols; j++) {
      const x = a[i * cols + j] as number;
      if (isOutlier(x)) continue;
      if (!Number.isFinite(x)) absmax = NaN;
      else if (!Number.isNaN(absmax)) absmax = Math.max(absmax, Math.abs(x));
    }
    stats[i] = absmax;
    if (!(absmax > 0)) continue;
    const scale = f(127 * f(1 / absmax));
    for (let j = 0; j < cols; j++) {
      if (outliers.includes(j)) continue;
      const x = a[i * cols + j] as number;
      const y = Number.isFinite(scale) ? f(x * scale) : f(f(x / absmax) * 127);
      codes[i * cols + j] = Math.max(-127, Math.min(127, roundToEven(y)));
    }
  }
  return { codes, stats, outliers };
}

/** a [m, k] @ b [n, k]^T in exact integers. */
export function integerProduct(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  m: number,
  n: number,
  k: number,
): Float64Array {
  const c = new Float64Array(m * n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++)
      for (let p = 0; p < k; p++) c[i * n + j]! += (a[i * k + p] as number) * (b[j * k + p] as number);
  return c;
}

export interface MixedProduct {
  y: Float64Array;
  /** Sum of |a * w| over outlier columns plus |y| and |bias|: what the error bound is measured by. */
  magnitude: Float64Array;
}

/** The mixed product in float64 from the same codes. `weight` replaces the dequantized codes in outlier columns. */
export function mixedLinear(
  x: ArrayLike<number>,
  weightCodes: ArrayLike<number>,
  weightStats: ArrayLike<number>,
  [m, n, k]: [number, number, number],
  { threshold = 0, bias, weight }: { threshold?: number; bias?: ArrayLike<number>; weight?: ArrayLike<number> } = {},
): MixedProduct {
  const { codes, stats, outliers } = quantizeRows(x, m, k, threshold);
  const product = integerProduct(codes, weightCodes, m, n, k);
  const y = new Float64Array(m * n);
  const magnitude = new Float64Array(m * n);
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let value = ((product[i * n + j] as number) * (stats[i] as number) * (weightStats[j] as number)) / 127 ** 2;
      let size = Math.abs(bias?.[j] ?? 0);
      for (const p of outliers) {
        const at = j * k + p;
        const w = weight ? (weight[at] as number) : ((weightCodes[at] as number) * (weightStats[j] as number)) / 127;
        value += (x[i * k + p] as number) * w;
        size += Math.abs((x[i * k + p] as number) * w);
      }
      value += bias?.[j] ?? 0;
      y[i * n + j] = value;
      magnitude[i * n + j] = Math.abs(value) + size;
    }
  }
  return { y, magnitude };
}
