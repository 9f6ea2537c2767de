// softplus in float64.

export function softplusReference(x: ArrayLike<number>, beta = 1, threshold = 20): Float64Array {
  return Float64Array.from(x, (v) => {
    const t = beta * v;
    return t > threshold ? v : (Math.max(t, 0) + Math.log1p(Math.exp(-Math.abs(t)))) / beta;
  });
}
