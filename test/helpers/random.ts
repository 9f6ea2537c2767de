// Reproducible numbers for tests, independent of the library's own generator.

/** A source of uniform numbers in [0, 1) that depends on the seed alone (mulberry32). */
export function uniforms(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Normal numbers with mean 0 and the given standard deviation, rounded to float32. */
export function normals(size: number, seed: number, std = 1): Float32Array {
  const next = uniforms(seed);
  return Float32Array.from(
    { length: size },
    () => std * Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next()),
  );
}

/** Integers in [0, limit). */
export function integers(size: number, limit: number, seed: number): Int32Array {
  const next = uniforms(seed);
  return Int32Array.from({ length: size }, () => Math.floor(next() * limit));
}
