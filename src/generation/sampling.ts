// How the tokens of one text are drawn: the options people give, and their checks.
import type { SamplingOptions } from "../ops/index.js";
import { aFiniteNumber, aNumberAbove, aNumberIn, anInteger } from "../tensor/checks.js";

/** How the tokens of a text are drawn. */
export interface DrawOptions extends SamplingOptions {
  /** Only tokens with at least this part of the largest probability; 0 keeps all. Default 0. */
  minP?: number;
  /** Locally typical sampling (Meister et al., 2022): the mass that stays; 1 keeps all. Default 1. */
  typicalP?: number;
  /** Divides positive logits of tokens in the prompt or the text, multiplies negative ones. Default 1. */
  repetitionPenalty?: number;
  /** Is taken off the logits of tokens in the text. Default 0. */
  presencePenalty?: number;
  /** Is taken off the logits for each time that a token is in the text. Default 0. */
  frequencyPenalty?: number;
  /** Seed of the draws; the same seed gives the same text. Default 0. */
  seed?: number;
}

/** @internal */
export const drawChecks = {
  temperature: aNumberIn(0),
  topK: anInteger(0),
  topP: { rule: "above 0 and at most 1", holds: (v: unknown) => typeof v === "number" && v > 0 && v <= 1 },
  minP: aNumberIn(0, 1),
  typicalP: { rule: "above 0 and at most 1", holds: (v: unknown) => typeof v === "number" && v > 0 && v <= 1 },
  repetitionPenalty: aNumberAbove(0),
  presencePenalty: aFiniteNumber,
  frequencyPenalty: aFiniteNumber,
  seed: anInteger(0),
};

/** What becomes a row of `SamplingRows`, and the row of the table of counts, if there is one. */
export interface RowDraw {
  readonly options: DrawOptions;
  /** -1: no penalties. */
  readonly slot: number;
}

/** @internal */
export function hasPenalties(options: DrawOptions): boolean {
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = options;
  return repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0;
}
