// Reproducible numbers for tests, independent of the library's own generator.

/** n standard normal values, rounded to float32: Box-Muller over a 32-bit mixer. */
export function normals(n: number, seed: number): number[] {
  let state = (seed * 0x9e3779b9 + 0x7f4a7c15) >>> 0;
  const uniform = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return Array.from({ length: n }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    return Math.fround(radius * Math.cos(2 * Math.PI * uniform()));
  });
}
