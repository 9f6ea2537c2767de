// A small seeded generator for choices made in JavaScript (which token, which window of a text). Tensors are
// filled by the native Philox generator; this one only serves single numbers that never leave the JS thread.

import { anInteger, checkArgument } from "../tensor/checks.js";

/** Uniform numbers in [0, 1) with 32 random bits each. */
export type Uniform = () => number;

/**
 * xoshiro128** (Blackman and Vigna, 2018), its state filled from `seed` by splitmix32.
 *
 * The same seed gives the same numbers on every machine.
 */
export function seededRandom(seed: number): Uniform {
  checkArgument("seededRandom", "seed", seed, anInteger(-Number.MAX_SAFE_INTEGER));
  let mix = seed | 0;
  const state = new Uint32Array(4);
  // The upper half of a seed beyond 32 bits takes part through a second word.
  const high = Math.floor(seed / 2 ** 32) | 0;
  for (let i = 0; i < 4; i++) {
    mix = (mix + 0x9e3779b9) | 0;
    let z = mix ^ (i === 3 ? high : 0);
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    state[i] = z ^ (z >>> 15);
  }
  let [a, b, c, d] = state as unknown as [number, number, number, number];

  return () => {
    const mixed = Math.imul(b, 5);
    const result = Math.imul((mixed << 7) | (mixed >>> 25), 9) >>> 0;
    const shifted = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= shifted;
    d = (d << 11) | (d >>> 21);
    return result / 2 ** 32;
  };
}
