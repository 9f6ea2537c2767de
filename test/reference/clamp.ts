// clamp in float64.

export function clampReference(x: ArrayLike<number>, low: number, high: number): Float64Array {
  return Float64Array.from(x, (v) => Math.min(Math.max(v, low), high));
}
