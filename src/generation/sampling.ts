// How the tokens of one text are drawn, as a row of `sampleTokens` takes it, and the checks of it.

import { generationChecks } from "../hub/generation-config.js";
import type { SamplingOptions } from "../ops/index.js";

/** How the tokens of a text are drawn. What is left out does nothing; a temperature of 0, the default, takes the likeliest. */
export interface DrawOptions extends SamplingOptions {
  /** See `GenerationConfig`, these too. */
  minP?: number;
  typicalP?: number;
  repetitionPenalty?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  seed?: number;
}

const { temperature, topK, topP, minP, typicalP, seed, ...others } = generationChecks;
const { repetitionPenalty, presencePenalty, frequencyPenalty } = others;
const penalties = { repetitionPenalty, presencePenalty, frequencyPenalty };
/** @internal */
export const drawChecks = { temperature, topK, topP, minP, typicalP, seed, ...penalties };

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
