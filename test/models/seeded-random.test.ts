// xoshiro128** seeded by splitmix32, in BigInt arithmetic from the published algorithms.
import { describe, expect, it } from "vitest";
import { seededRandom } from "../../src/models/seeded-random.js";

const mask = 0xffffffffn;

function reference(seed: number, count: number): number[] {
  const rotl = (x: bigint, k: bigint) => ((x << k) | (x >> (32n - k))) & mask;
  let state = BigInt(seed) & mask;
  const high = (BigInt(seed) >> 32n) & mask;
  const s = [0, 1, 2, 3].map((i) => {
    state = (state + 0x9e3779b9n) & mask;
    let z = i === 3 ? state ^ high : state;
    z = ((z ^ (z >> 16n)) * 0x21f0aaadn) & mask;
    z = ((z ^ (z >> 15n)) * 0x735a2d97n) & mask;
    return z ^ (z >> 15n);
  }) as [bigint, bigint, bigint, bigint];
  return Array.from({ length: count }, () => {
    const result = (rotl((s[1] * 5n) & mask, 7n) * 9n) & mask;
    const t = (s[1] << 9n) & mask;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 11n);
    return Number(result) / 2 ** 32;
  });
}

const take = (seed: number, count: number) => {
  const uniform = seededRandom(seed);
  return Array.from({ length: count }, uniform);
};

describe("seededRandom", () => {
  it.each([0, 1, 42, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 40 + 7, 2 ** 53 - 1])("seed %i", (seed) => {
    expect(take(seed, 100)).toEqual(reference(seed, 100));
  });

  it("the upper half of a seed counts", () => {
    const streams = [7, 7 + 2 ** 32, 7 + 2 ** 33, 7 + 2 ** 52].map((seed) => take(seed, 4).join());
    expect(new Set(streams).size).toBe(4);
  });
});
