// Choosing the next token from one row of logits, in plain TypeScript: temperature, then top-k, then top-p,
// then one draw. The order is the one of transformers, so equal options mean equal distributions.
import { BnbError } from "../tensor/errors.js";
import type { Uniform } from "./seeded-random.js";

/** How a token is drawn. */
export interface SamplingOptions {
  /** Divides the logits; 0 always takes the largest one. Default 0. */
  temperature?: number;
  /** Only the k most likely tokens; 0 keeps all. Default 0. */
  topK?: number;
  /** Only the smallest set of likely tokens whose probabilities reach p; 1 keeps all. Default 1. */
  topP?: number;
}

/** Tokens that may be drawn, most likely first, with probabilities that sum to 1. */
export interface TokenDistribution {
  tokens: Int32Array;
  probabilities: Float64Array;
}

/** Checks the options once, before the first token: throws `ERR_BNB_OPTION`. */
export function checkSamplingOptions({ temperature = 0, topK = 0, topP = 1 }: SamplingOptions): void {
  if (!(temperature >= 0 && temperature < Infinity)) {
    throw new BnbError("ERR_BNB_OPTION", `generate: temperature must be a number of at least 0, got ${temperature}`);
  }
  if (!(Number.isInteger(topK) && topK >= 0)) {
    throw new BnbError("ERR_BNB_OPTION", `generate: topK must be an integer of at least 0, got ${topK}`);
  }
  if (!(topP > 0 && topP <= 1)) {
    throw new BnbError("ERR_BNB_OPTION", `generate: topP must be above 0 and at most 1, got ${topP}`);
  }
}

/** The index of the largest logit, the first of equals. */
export function argmaxToken(logits: Float32Array): number {
  let best = 0;
  for (let i = 0; i < logits.length; i++) {
    if ((logits[i] as number) > (logits[best] as number)) best = i;
  }
  return best;
}

/**
 * The distribution `softmax(logits / temperature)` cut to the top k and then to the nucleus of mass p.
 *
 * Equal logits rank by index. `temperature` must be above 0.
 */
export function tokenDistribution(logits: Float32Array, options: SamplingOptions): TokenDistribution {
  const { temperature = 1, topK = 0, topP = 1 } = options;
  const largest = checkedMaximum(logits);

  // exp of the distance to the largest logit: never overflows, and the largest token has weight 1.
  const weights = Float64Array.from(logits, (logit) => Math.exp((logit - largest) / temperature));
  let candidates = topK > 0 && topK < logits.length ? topIndices(logits, topK) : allIndices(logits.length);

  if (topP < 1) {
    const total = sumOf(weights, candidates);
    // Tokens below this share together hold less than 1 - p: the nucleus is complete without them, and a
    // large vocabulary need not be sorted as a whole.
    const floor = (total * (1 - topP)) / candidates.length;
    candidates = candidates.filter((i) => (weights[i] as number) >= floor);
    sortByLogit(candidates, logits);
    let mass = 0;
    let count = 0;
    while (count < candidates.length && mass < topP * total) mass += weights[candidates[count++] as number] as number;
    candidates = candidates.subarray(0, Math.max(count, 1));
  } else {
    sortByLogit(candidates, logits);
  }

  const total = sumOf(weights, candidates);
  const probabilities = Float64Array.from(candidates, (i) => (weights[i] as number) / total);
  return { tokens: candidates, probabilities };
}

/** Draws the next token. With temperature 0 nothing is drawn and `uniform` is not called. */
export function sampleToken(logits: Float32Array, options: SamplingOptions, uniform: Uniform): number {
  if ((options.temperature ?? 0) === 0) {
    checkedMaximum(logits);
    return argmaxToken(logits);
  }
  const { tokens, probabilities } = tokenDistribution(logits, options);
  let rest = uniform();
  for (let i = 0; i < tokens.length; i++) {
    rest -= probabilities[i] as number;
    if (rest < 0) return tokens[i] as number;
  }
  return tokens[tokens.length - 1] as number; // the probabilities may sum to a hair below 1
}

function checkedMaximum(logits: Float32Array): number {
  let largest = -Infinity;
  for (const logit of logits) {
    if (Number.isNaN(logit) || logit === Infinity) {
      throw new BnbError("ERR_BNB_NONFINITE", `generate: the logits must be finite, got ${logit}`);
    }
    if (logit > largest) largest = logit;
  }
  if (largest === -Infinity) throw new BnbError("ERR_BNB_NONFINITE", "generate: no token has a finite logit");
  return largest;
}

function allIndices(count: number): Int32Array {
  return Int32Array.from({ length: count }, (_, i) => i);
}

/** The k largest by (logit, lower index first), through a heap whose root is the least of those kept. */
function topIndices(logits: Float32Array, k: number): Int32Array {
  const heap = allIndices(k);
  const isLess = (a: number, b: number) => {
    const difference = (logits[a] as number) - (logits[b] as number);
    return difference < 0 || (difference === 0 && a > b);
  };
  const sink = (start: number) => {
    let parent = start;
    for (;;) {
      let child = 2 * parent + 1;
      if (child >= k) return;
      if (child + 1 < k && isLess(heap[child + 1] as number, heap[child] as number)) child++;
      if (!isLess(heap[child] as number, heap[parent] as number)) return;
      const swapped = heap[child] as number;
      heap[child] = heap[parent] as number;
      heap[parent] = swapped;
      parent = child;
    }
  };
  for (let i = Math.floor(k / 2); i >= 0; i--) sink(i);
  for (let i = k; i < logits.length; i++) {
    if (!isLess(heap[0] as number, i)) continue;
    heap[0] = i;
    sink(0);
  }
  return heap;
}

function sortByLogit(indices: Int32Array, logits: Float32Array): void {
  indices.sort((a, b) => (logits[b] as number) - (logits[a] as number) || a - b);
}

function sumOf(weights: Float64Array, indices: Int32Array): number {
  let sum = 0;
  for (const i of indices) sum += weights[i] as number;
  return sum;
}
