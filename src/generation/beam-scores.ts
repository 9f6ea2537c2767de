// How beams go on: the likeliest tokens after each, and the sums of log-probabilities that they lead to.
import type { GenerationConfig } from "../hub/index.js";
import type { Branch, Next, Telling } from "./branch.js";
import type { RulesOf } from "./row-rules.js";
import { hasPenalties } from "./sampling.js";
import { checkDrawn } from "./text.js";

/** What a beam is here. */
interface Scored {
  readonly branch: Branch;
  readonly sum: number;
}

/** A beam and a token that may follow it. */
export interface Candidate<B> {
  readonly from: B;
  readonly token: number;
  readonly sum: number;
}

/** As many as the kernel tells of a row. */
const mostTold = 20;

/**
 * The `best` candidates of a beam. Penalties and rules act on log-probabilities, which are not normalized again, as in
 * transformers; then, and for more candidates than the kernel tells, the log-probabilities of all tokens are read.
 */
export class BeamScores {
  readonly telling: Telling;
  readonly #op: string;
  readonly #config: GenerationConfig;
  readonly #rules: RulesOf | null;
  readonly #prompt: number;
  readonly #best: number;

  constructor(op: string, config: GenerationConfig, rules: RulesOf | null, prompt: number, best: number) {
    this.#op = op;
    this.#config = config;
    this.#rules = rules;
    this.#prompt = prompt;
    this.#best = best;
    const all = rules !== null || hasPenalties(config) || best > mostTold;
    this.telling = { logprobs: true, best: all ? 0 : best, all };
  }

  candidates<B extends Scored>(from: B, next: Next): Candidate<B>[] {
    checkDrawn(this.#op, next);
    const { bestIds, bestLogprobs, all } = next;
    const told = all ? this.#likeliest(from.branch.ids, all) : [...bestIds].map((id, i) => [id, bestLogprobs[i]]);
    return (told as [number, number][])
      .map(([token, logprob]) => ({ from, token, sum: from.sum + logprob }))
      .filter(({ token, sum }) => token >= 0 && sum > -Infinity);
  }

  #likeliest(ids: readonly number[], logprobs: Float32Array): [id: number, logprob: number][] {
    const scores = Float32Array.from(logprobs);
    const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = this.#config;
    const change = (id: number, value: number) => {
      scores[id] = value;
    };
    for (const id of new Set(ids)) change(id, (scores[id] as number) * repetitionPenalty);
    const made = new Map<number, number>();
    for (const id of ids.slice(this.#prompt)) made.set(id, (made.get(id) ?? 0) + 1);
    for (const [id, times] of made) change(id, (scores[id] as number) - presencePenalty - times * frequencyPenalty);
    const { bias, allowed } = this.#rules?.(ids) ?? {};
    for (const [id, value] of bias ?? []) change(id, (scores[id] as number) + value);
    const isAllowed = (id: number) => !allowed || (((allowed[id >> 5] as number) >> (id & 31)) & 1) === 1;
    return largest(scores, this.#best, isAllowed);
  }
}

/** The `count` largest, best first, equal ones by index. */
function largest(scores: Float32Array, count: number, isAllowed: (id: number) => boolean): [number, number][] {
  const found: [number, number][] = [];
  for (let id = 0; id < scores.length; id++) {
    const score = scores[id] as number;
    const isFull = found.length === count;
    if ((isFull && score <= (found[count - 1] as [number, number])[1]) || !isAllowed(id)) continue;
    let at = found.length;
    while (at > 0 && (found[at - 1] as [number, number])[1] < score) at--;
    found.splice(at, 0, [id, score]);
    if (isFull) found.pop();
  }
  return found;
}
