// Sampling by its definition, in float64: everything sorted, nothing skipped.
import { philox } from "./random.js";

export interface Sampling {
  temperature?: number;
  topK?: number;
  topP?: number;
}

/** Tokens that may be drawn, most likely first, with their probabilities. */
export function distribution(logits: readonly number[], { temperature = 1, topK = 0, topP = 1 }: Sampling) {
  const ranked = logits
    .map((logit, token) => ({ token, logit }))
    .sort((a, b) => b.logit - a.logit || a.token - b.token);
  const largest = ranked[0]!.logit;
  const kept = (topK > 0 ? ranked.slice(0, topK) : ranked).map(({ token, logit }) => ({
    token,
    weight: Math.exp((logit - largest) / temperature),
  }));
  const total = kept.reduce((sum, { weight }) => sum + weight, 0);
  let mass = 0;
  const nucleus = kept.filter(({ weight }, i) => {
    const isIn = i === 0 || mass < topP * total;
    mass += weight;
    return isIn;
  });
  const sum = nucleus.reduce((a, { weight }) => a + weight, 0);
  return nucleus.map(({ token, weight }) => ({ token, probability: weight / sum }));
}

/** The uniform number of a draw. */
export function uniformOf(seed: number, step: number, row: number): number {
  const split = (x: number) => [x % 2 ** 32, Math.floor(x / 2 ** 32)];
  return philox([...split(step), row, 1], split(seed))[0]! / 2 ** 32;
}

/** The token drawn, and how close to a boundary between two tokens the draw came. */
export function draw(logits: readonly number[], options: Sampling, uniform: number) {
  let sum = 0;
  let closest = Infinity;
  let drawn = -1;
  for (const { token, probability } of distribution(logits, options)) {
    sum += probability;
    closest = Math.min(closest, Math.abs(sum - uniform));
    if (drawn < 0 && sum > uniform) drawn = token;
  }
  return { token: drawn, closest };
}
