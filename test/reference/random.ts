// Philox4x32-10 in BigInt arithmetic, and the distributions in float64.

const mask = 0xffffffffn;

/** The four words of a block for a counter and a key of 32-bit words. */
export function philox(counter: readonly number[], key: readonly number[]): number[] {
  let c = counter.map(BigInt);
  let [k0, k1] = key.map(BigInt) as [bigint, bigint];
  for (let round = 0; round < 10; round++) {
    const p0 = 0xd2511f53n * c[0]!;
    const p1 = 0xcd9e8d57n * c[2]!;
    c = [(p1 >> 32n) ^ c[1]! ^ k0, p1 & mask, (p0 >> 32n) ^ c[3]! ^ k1, p0 & mask];
    k0 = (k0 + 0x9e3779b9n) & mask;
    k1 = (k1 + 0xbb67ae85n) & mask;
  }
  return c.map(Number);
}

/** The first n words of the stream of a seed from a block on. */
export function words(seed: number, offset: number, n: number): number[] {
  const split = (x: number) => [x % 2 ** 32, Math.floor(x / 2 ** 32)];
  return Array.from({ length: Math.ceil(n / 4) }, (_, i) => philox([...split(offset + i), 0, 0], split(seed)))
    .flat()
    .slice(0, n);
}

/** Uniform in [0, 1). */
export const uniforms = (seed: number, offset: number, n: number): number[] =>
  words(seed, offset, n).map((word) => Math.floor(word / 256) / 2 ** 24);

/** Standard normal by Box-Muller from pairs of words. */
export function normals(seed: number, offset: number, n: number): number[] {
  const u = words(seed, offset, Math.ceil(n / 4) * 4).map((word) => Math.floor(word / 256));
  return u
    .map((_, i) => {
      const pair = i - (i % 2);
      const radius = Math.sqrt(-2 * Math.log((u[pair]! + 1) / 2 ** 24));
      const angle = (2 * Math.PI * u[pair + 1]!) / 2 ** 24;
      return radius * (i % 2 ? Math.sin(angle) : Math.cos(angle));
    })
    .slice(0, n);
}
