// The next tokens of many texts in one call, each drawn in its own way.
import { addon } from "../tensor/addon.js";
import { aBoolean, anInteger, anObject, aTensor, checkArgument } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/**
 * How each of R rows is drawn. A number out of range does what the nearest in range does: a temperature of 0 takes the
 * largest logit, topK 0 and topP, typicalP 1 and minP 0 keep all.
 */
export interface SamplingRows {
  readonly temperature: Tensor; // [R] float32
  readonly topP: Tensor; // [R] float32
  /** Tokens with less than this part of the largest probability are out; [R] float32. */
  readonly minP: Tensor;
  /** Locally typical sampling (Meister et al., 2022); [R] float32. */
  readonly typicalP: Tensor;
  /** Divides positive logits of tokens in the prompt or generated, multiplies negative ones; 1 does nothing. [R] float32. */
  readonly repetition: Tensor;
  /** Is taken off the logits of tokens generated; [R] float32. */
  readonly presence: Tensor;
  /** Is taken off for each time that a token was generated; [R] float32. */
  readonly frequency: Tensor;
  readonly topK: Tensor; // [R] int32
  readonly seed: Tensor; // [R, 2] int32: low and high word
  /** Which draw of its seed a row is; [R] int32. */
  readonly step: Tensor;
  /**
   * How often tokens were seen, [R, V] int32: times generated in the low 30 bits, bit 30 for those of the prompt. The op
   * adds the token that it draws. Without it there are no penalties.
   */
  readonly counts?: Tensor | undefined;
  /** Which row of `counts` [S, V] belongs to each row of logits, below 0 for none; [R] int32. Default: its own. */
  readonly slots?: Tensor | undefined;
  /** What is added to logits: entries offsets[r] to offsets[r + 1] belong to row r. int32 [R + 1], int32 [n], float32 [n]. */
  readonly bias?: { readonly offsets: Tensor; readonly ids: Tensor; readonly values: Tensor } | undefined;
  /** Tokens allowed, [R, ceil(V / 32)] int32: bit i % 32 of word i / 32 stands for token i. */
  readonly mask?: Tensor | undefined;
}

/** Options of `sampleTokens`. */
export interface SampleTokensOptions {
  /** How many of the most likely tokens to tell of each row, 0 to 20. Default 0. */
  best?: number;
  /** Whether to tell log-probabilities. Default true. */
  logprobs?: boolean;
}
const sampleTokensOptions = optionTable<SampleTokensOptions>({ best: anInteger(0, 20), logprobs: aBoolean });

/** What `sampleTokens` gives; log-probabilities are natural, of the distribution before temperature and cuts. */
export interface SampledTokens {
  ids: Tensor; // [R] int32; -1 where nothing can be drawn
  logprobs: Tensor | null; // [R] float32
  bestIds: Tensor | null; // [R, best] int32, the likeliest first, equal ones by index; -1 beyond V
  bestLogprobs: Tensor | null; // [R, best] float32
}

/**
 * Draws a token per row of `logits [R, V]`. In this order: penalties, biases, mask; then, unless the temperature is 0,
 * temperature, topK, topP, minP and typicalP, as transformers orders them.
 *
 * A row draws what `sampleToken` draws of it alone with the same seed and step. A row with a NaN or +infinity, or with
 * nothing allowed, gives id -1. Everything about the rows is read by the device, so a recorded graph draws anew at each
 * replay.
 */
export function sampleTokens(logits: Tensor, rows: SamplingRows, options: SampleTokensOptions = {}): SampledTokens {
  const op = "sampleTokens";
  checkArgument(op, "rows", rows, anObject);
  checkOptions(op, options, sampleTokensOptions);
  const { temperature, topP, minP, typicalP, repetition, presence, frequency, topK, seed, step } = rows;
  const { counts = null, slots = null, bias = null, mask = null } = rows;
  if (bias !== null) {
    checkArgument(op, "bias", bias, anObject);
    for (const name of ["offsets", "ids", "values"] as const) checkArgument(op, `bias.${name}`, bias[name], aTensor);
  }
  const [ids, logprobs, bestIds, bestLogprobs] = run(
    addon.sampleTokens,
    logits,
    temperature,
    topP,
    minP,
    typicalP,
    repetition,
    presence,
    frequency,
    topK,
    seed,
    step,
    counts,
    slots,
    bias?.offsets ?? null,
    bias?.ids ?? null,
    bias?.values ?? null,
    mask,
    options.logprobs ?? true,
    options.best ?? 0,
  );
  return { ids, logprobs, bestIds, bestLogprobs };
}
