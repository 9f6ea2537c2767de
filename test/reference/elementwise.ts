// Elementwise functions in float64, and NumPy's rule of broadcasting.

/** erf by its series near 0 and its continued fraction elsewhere; about 1e-15. */
export function erf(x: number): number {
  const a = Math.abs(x);
  if (a < 3) {
    let term = a;
    let total = a;
    for (let n = 1; n < 100; n++) {
      term *= (-a * a) / n;
      total += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * total) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let n = 60; n >= 1; n--) fraction = n / 2 / (a + fraction);
  return Math.sign(x) * (1 - Math.exp(-a * a) / ((a + fraction) * Math.sqrt(Math.PI)));
}

export const unaryReference = {
  neg: (x: number) => -x,
  abs: Math.abs,
  sign: Math.sign,
  square: (x: number) => x * x,
  reciprocal: (x: number) => 1 / x,
  sqrt: Math.sqrt,
  rsqrt: (x: number) => 1 / Math.sqrt(x),
  exp: Math.exp,
  log: Math.log,
  sigmoid: (x: number) => 1 / (1 + Math.exp(-x)),
  tanh: Math.tanh,
  relu: (x: number) => Math.max(x, 0),
  silu: (x: number) => x / (1 + Math.exp(-x)),
  geluTanh: (x: number) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  gelu: (x: number) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
};

export const binaryReference = {
  add: (a: number, b: number) => a + b,
  sub: (a: number, b: number) => a - b,
  mul: (a: number, b: number) => a * b,
  div: (a: number, b: number) => a / b,
  maximum: Math.max,
  minimum: Math.min,
};

/** The shape that two shapes broadcast to. */
export function broadcastShape(a: readonly number[], b: readonly number[]): number[] {
  const n = Math.max(a.length, b.length);
  return Array.from({ length: n }, (_, i) => {
    const da = a[i - n + a.length] ?? 1;
    const db = b[i - n + b.length] ?? 1;
    return da === 1 ? db : da;
  });
}

/** Positions in a tensor of shape `from` of the elements of `to`, in row-major order. */
export function broadcastIndices(from: readonly number[], to: readonly number[]): number[] {
  const size = to.reduce((n, dim) => n * dim, 1);
  return Array.from({ length: size }, (_, flat) => {
    let rest = flat;
    let index = 0;
    let stride = 1;
    for (let i = to.length - 1; i >= 0; i--) {
      const at = rest % (to[i] as number);
      rest = Math.floor(rest / (to[i] as number));
      const dim = from[i - to.length + from.length] ?? 1;
      if (dim !== 1) index += at * stride;
      stride *= dim;
    }
    return index;
  });
}

/** f over two broadcast operands. */
export function broadcastMap(
  f: (a: number, b: number) => number,
  a: ArrayLike<number>,
  aShape: readonly number[],
  b: ArrayLike<number>,
  bShape: readonly number[],
): number[] {
  const shape = broadcastShape(aShape, bShape);
  const ia = broadcastIndices(aShape, shape);
  const ib = broadcastIndices(bShape, shape);
  return ia.map((i, at) => f(a[i] as number, b[ib[at] as number] as number));
}
