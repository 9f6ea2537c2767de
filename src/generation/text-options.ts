// What people say of a text to be generated, and the checks of it.
import { types } from "node:util";
import type { ModelConfig } from "../models/index.js";
import { aBoolean, aFunction, anAbortSignal, anInteger, arrayOf, either } from "../tensor/checks.js";
import { describe } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import type { DrawOptions } from "./sampling.js";
import { drawChecks } from "./sampling.js";

/** Options of one text. */
export interface TextOptions extends DrawOptions {
  /** Tokens to make at most; the model's `maxPositionEmbeddings` bounds it too. Default 128. */
  maxNewTokens?: number;
  /** Ends the text: token ids, which are still yielded, or a claim about the tokens made so far. */
  stop?: readonly number[] | ((tokens: readonly number[]) => boolean);
  /** Ends the generation with `ERR_BNB_ABORTED`. */
  signal?: AbortSignal;
  /**
   * Whether tokens are guessed from what followed the same tokens earlier in the text, and several verified in one step:
   * worth it where answers repeat their prompt. The text is the same; where guesses do not pay, none are made.
   * Default false.
   */
  promptLookup?: boolean;
}

/** @internal */
export const textChecks = {
  ...drawChecks,
  maxNewTokens: anInteger(0),
  stop: either(arrayOf(anInteger(0), "an array of token ids"), aFunction),
  signal: anAbortSignal,
  promptLookup: aBoolean,
};

/** Token ids in JavaScript's memory; int64 ids are taken where they fit. */
export type Prompt = readonly number[] | Int32Array | Uint8Array | BigInt64Array;

/** A checked copy. Throws ERR_BNB_ARGUMENT. */
export function promptIds(prompt: Prompt, { maxPositionEmbeddings: most, vocabSize }: ModelConfig): Int32Array {
  if (!Array.isArray(prompt) && !types.isTypedArray(prompt)) {
    const advice = "read a Tensor first: await ids.data()";
    const rule = `generate: prompt must be an array or TypedArray of token ids (${advice})`;
    throw new BnbError("ERR_BNB_ARGUMENT", `${rule}, got ${describe(prompt)}`);
  }
  if (prompt.length === 0 || prompt.length > most) {
    const range = `between 1 and ${most} tokens`;
    throw new BnbError("ERR_BNB_ARGUMENT", `generate: the prompt must have ${range}, got ${prompt.length}`);
  }
  return Int32Array.from(prompt as ArrayLike<number | bigint>, (given) => {
    const id = typeof given === "bigint" ? Number(given) : given;
    if (Number.isInteger(id) && id >= 0 && id < vocabSize) return id;
    throw new BnbError(
      "ERR_BNB_ARGUMENT",
      `generate: a token id must lie in 0..${vocabSize - 1}, got ${typeof given === "bigint" ? given : describe(given)}`,
    );
  });
}

/** How many tokens follow a prompt at most. The last one is never fed back, so it needs no position. */
export function newTokens(prompt: number, maxNewTokens: number, maxLength: number): number {
  return Math.max(0, Math.min(maxNewTokens, maxLength - prompt + 1));
}

export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (!signal?.aborted) return;
  throw new BnbError("ERR_BNB_ABORTED", "generate: aborted by its signal", { cause: signal.reason });
}
