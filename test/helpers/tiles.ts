/** Elements that a thread block of the GPU quantizes at once; what is no whole tile goes another way. */
export const tile = 4096;

/** At least n numbers, over and over the same. */
export function tiled(x: readonly number[], n: number): number[] {
  return Array.from({ length: Math.ceil(n / x.length) * x.length }, (_, i) => x[i % x.length] as number);
}
