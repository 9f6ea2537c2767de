// rope in float64, as a product of complex numbers: pair (i, i + D/2) times cos + i sin of its position.

export function ropeReference(
  x: ArrayLike<number>,
  shape: readonly [batch: number, length: number, heads: number, dim: number],
  cos: ArrayLike<number>,
  sin: ArrayLike<number>,
  offset: number,
): Float64Array {
  const [batch, length, heads, dim] = shape;
  const half = dim / 2;
  const y = new Float64Array(x.length);
  for (let b = 0; b < batch; b++) {
    for (let t = 0; t < length; t++) {
      for (let h = 0; h < heads; h++) {
        const at = ((b * length + t) * heads + h) * dim;
        for (let i = 0; i < half; i++) {
          const c = cos[(offset + t) * half + i]!;
          const s = sin[(offset + t) * half + i]!;
          const real = x[at + i]!;
          const imaginary = x[at + half + i]!;
          y[at + i] = real * c - imaginary * s;
          y[at + half + i] = real * s + imaginary * c;
        }
      }
    }
  }
  return y;
}

/** cos and sin tables [positions, half] of the usual frequencies base^(-i / half), rounded to float32. */
export function ropeTables(positions: number, half: number, base = 10000): { cos: Float32Array; sin: Float32Array } {
  const angle = (at: number): number => Math.floor(at / half) * base ** (-(at % half) / half);
  return {
    cos: Float32Array.from({ length: positions * half }, (_, at) => Math.cos(angle(at))),
    sin: Float32Array.from({ length: positions * half }, (_, at) => Math.sin(angle(at))),
  };
}
