// Sampling by its definition, in float64: everything sorted, nothing skipped.
import { philox } from "./random.js";

export interface Sampling {
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  typicalP?: number;
}

interface Weighted {
  token: number;
  logit: number;
  weight: number;
}

const sumOf = (list: readonly { weight: number }[]): number => list.reduce((sum, { weight }) => sum + weight, 0);

/** The first of a list whose weights reach a part of the whole. */
function nucleus<T extends { weight: number }>(list: readonly T[], part: number): T[] {
  const wanted = part * sumOf(list);
  let mass = 0;
  return list.filter(({ weight }, i) => {
    const isIn = i === 0 || mass < wanted;
    mass += weight;
    return isIn;
  });
}

/** Those nearest to the mean surprise whose weights reach a part of the whole, and all as near as the last of them. */
function typical(list: readonly Weighted[], part: number): Weighted[] {
  const total = sumOf(list);
  const surprise = ({ weight }: Weighted) => -Math.log(weight / total);
  const entropy = list.reduce((sum, one) => sum + (one.weight / total) * surprise(one), 0);
  const off = (one: Weighted) => Math.abs(surprise(one) - entropy);
  const last = nucleus(
    [...list].sort((a, b) => off(a) - off(b)),
    part,
  ).at(-1) as Weighted;
  return list.filter((one) => off(one) <= off(last));
}

/** Tokens that may be drawn, most likely first, with their probabilities; -Infinity never is. */
export function distribution(logits: readonly number[], sampling: Sampling) {
  const { temperature = 1, topK = 0, topP = 1, minP = 0, typicalP = 1 } = sampling;
  const ranked = logits
    .map((logit, token) => ({ token, logit }))
    .sort((a, b) => b.logit - a.logit || a.token - b.token);
  const largest = ranked[0]!.logit;
  let kept = ranked.map((one) => ({ ...one, weight: Math.exp((one.logit - largest) / temperature) }));
  const least = kept[topK - 1];
  if (least) kept = kept.filter(({ logit }) => logit >= least.logit);
  if (topP < 1) kept = nucleus(kept, topP);
  kept = kept.filter(({ weight }) => weight >= minP && weight > 0);
  if (typicalP < 1) kept = typical(kept, typicalP);
  const sum = sumOf(kept);
  return kept.map(({ token, weight }) => ({ token, probability: weight / sum }));
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
