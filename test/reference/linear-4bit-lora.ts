// A linear layer with an adapter, and its gradients, in float64.

/** What the layer is computed from; all matrices by rows. */
export interface LoraInputs {
  x: ArrayLike<number>; // [m, k]
  w: ArrayLike<number>; // [n, k]
  bias: ArrayLike<number>; // [n]
  residual: ArrayLike<number>; // [m, n]
  a: ArrayLike<number>; // [r, k]
  b: ArrayLike<number>; // [n, r]
}

/** Sizes, and what is done to the adapter's product: `mask` has what dropout multiplies x by. */
export interface LoraCase {
  m: number;
  n: number;
  k: number;
  r: number;
  scaling: number;
  mask: ArrayLike<number>; // [m, k]
}

/** [rows, inner] times [inner, cols], each read by a function of its indices. */
function product(
  [rows, inner, cols]: readonly [number, number, number],
  left: (i: number, p: number) => number,
  right: (p: number, j: number) => number,
): Float64Array {
  const out = new Float64Array(rows * cols);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < cols; j++) for (let p = 0; p < inner; p++) out[i * cols + j]! += left(i, p) * right(p, j);
  return out;
}

/** `x w^T + bias + residual + scaling * (mask * x) a^T b^T`. */
export function loraForward(
  { x, w, bias, residual, a, b }: LoraInputs,
  { m, n, k, r, scaling, mask }: LoraCase,
): Float64Array {
  const low = product(
    [m, k, r],
    (i, p) => x[i * k + p]! * mask[i * k + p]!,
    (p, j) => a[j * k + p]!,
  );
  const base = product(
    [m, k, n],
    (i, p) => x[i * k + p]!,
    (p, j) => w[j * k + p]!,
  );
  const own = product(
    [m, r, n],
    (i, p) => low[i * r + p]!,
    (p, j) => b[j * r + p]!,
  );
  return base.map((v, i) => v + bias[i % n]! + residual[i]! + scaling * own[i]!);
}

/** Gradients of the sum of dy * forward. */
export function loraBackward(
  { x, w, a, b }: LoraInputs,
  dy: ArrayLike<number>,
  { m, n, k, r, scaling, mask }: LoraCase,
): Record<"x" | "bias" | "a" | "b", Float64Array> {
  const dropped = Float64Array.from(x, (v, i) => v * mask[i]!);
  const low = product(
    [m, k, r],
    (i, p) => dropped[i * k + p]!,
    (p, j) => a[j * k + p]!,
  );
  const dlow = product(
    [m, n, r],
    (i, p) => scaling * dy[i * n + p]!,
    (p, j) => b[p * r + j]!,
  );
  const through = product(
    [m, n, k],
    (i, p) => dy[i * n + p]!,
    (p, j) => w[p * k + j]!,
  );
  const around = product(
    [m, r, k],
    (i, p) => dlow[i * r + p]!,
    (p, j) => a[p * k + j]!,
  );
  return {
    x: through.map((v, i) => v + around[i]! * mask[i]!),
    bias: product(
      [1, m, n],
      () => 1,
      (p, j) => dy[p * n + j]!,
    ),
    a: product(
      [r, m, k],
      (i, p) => dlow[p * r + i]!,
      (p, j) => dropped[p * k + j]!,
    ),
    b: product(
      [n, m, r],
      (i, p) => scaling * dy[p * n + i]!,
      (p, j) => low[p * r + j]!,
    ),
  };
}
