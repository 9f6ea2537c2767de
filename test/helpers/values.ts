// Fixed pseudo-random inputs for tests.

/** n numbers in [low, high), the same for the same seed. */
export function values(n: number, low = -2, high = 2, seed = 1): Float32Array {
  let state = seed >>> 0;
  return Float32Array.from({ length: n }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return low + (state / 2 ** 32) * (high - low);
  });
}

/** Number of elements of a shape. */
export const sizeOfShape = (shape: readonly number[]): number => shape.reduce((n, dim) => n * dim, 1);
