// rope in float64, as a product of complex numbers: pair (i, i + R/2) times cos + i sin of its position.

export function ropeReference(
  x: ArrayLike<number>,
  shape: readonly [batch: number, length: number, heads: number, dim: number],
  cos: ArrayLike<number>,
  sin: ArrayLike<number>,
  /** Of the first token of each batch entry, or of every token. */
  positions: number | readonly number[],
  /** R/2. */
  pairs = shape[3] / 2,
): Float64Array {
  const [batch, length, heads, dim] = shape;
  const y = Float64Array.from(x);
  for (let b = 0; b < batch; b++) {
    for (let t = 0; t < length; t++) {
      const position = typeof positions === "number" ? positions + t : positions[b * length + t]!;
      for (let h = 0; h < heads; h++) {
        const at = ((b * length + t) * heads + h) * dim;
        for (let i = 0; i < pairs; i++) {
          const c = cos[position * pairs + i]!;
          const s = sin[position * pairs + i]!;
          const real = x[at + i]!;
          const imaginary = x[at + pairs + i]!;
          y[at + i] = real * c - imaginary * s;
          y[at + pairs + i] = real * s + imaginary * c;
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
