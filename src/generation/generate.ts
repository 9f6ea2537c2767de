// Text generation as an async iterator: one forward pass and one awaited read per token, so that the event loop
// turns between tokens however long the text becomes.
import { types } from "node:util";
import type { SamplingOptions } from "../ops/index.js";
import { samplingChecks } from "../ops/sample-token.js";
import {
  aBoolean,
  aFunction,
  anAbortSignal,
  anInteger,
  anObjectWith,
  arrayOf,
  checkArgument,
  either,
} from "../tensor/checks.js";
import { describe } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { CausalLM } from "./causal-lm.js";
import { Decoder } from "./decoder.js";

/** Options of `generate`. */
export interface GenerateOptions extends SamplingOptions {
  /** Tokens to make at most; the model's `maxPositionEmbeddings` bounds it too. Default 128. */
  maxNewTokens?: number;
  /** Seed of the draws; the same seed gives the same text. Default 0. */
  seed?: number;
  /** Ends the text: token ids, which are still yielded, or a claim about the tokens made so far. */
  stop?: readonly number[] | ((tokens: readonly number[]) => boolean);
  /** Ends the generation with `ERR_BNB_ABORTED`. */
  signal?: AbortSignal;
  /**
   * Whether the step of one token is recorded and replayed as a graph, where the model does nothing but call ops; the
   * tokens are the same. Default: on a GPU.
   */
  graph?: boolean;
}

const generateOptions = optionTable<GenerateOptions>({
  ...samplingChecks,
  maxNewTokens: anInteger(0),
  seed: anInteger(0),
  stop: either(arrayOf(anInteger(0), "an array of token ids"), aFunction),
  signal: anAbortSignal,
  graph: aBoolean,
});

/** Token ids in JavaScript's memory; int64 ids are taken where they fit. */
export type Prompt = readonly number[] | Int32Array | Uint8Array | BigInt64Array;

/**
 * Yields the tokens that follow `prompt`, one by one.
 *
 * Put the model in `eval()` first: dropout stays as it is. All memory of a generation is freed when it ends,
 * is aborted or is left early (`break`).
 *
 * @example
 * for await (const token of generate(model, [72, 105], { temperature: 0.8, topP: 0.9, seed: 1 })) print(token);
 */
export async function* generate(
  model: CausalLM,
  prompt: Prompt,
  options: GenerateOptions = {},
): AsyncGenerator<number, void, undefined> {
  checkArgument("generate", "model", model, anObjectWith("a language model", "forward", "createCache"));
  checkOptions("generate", options, generateOptions);
  const { maxNewTokens = 128, seed = 0, stop = [], signal, graph = model.device.type === "cuda" } = options;
  const { maxPositionEmbeddings, vocabSize } = model.config;
  const ids = promptIds(prompt, maxPositionEmbeddings, vocabSize);
  throwIfAborted(signal);

  const made: number[] = [];
  const isEnd = typeof stop === "function" ? () => stop(made) : () => stop.includes(made.at(-1) as number);
  // The last token made is never fed back, so it needs no position.
  const count = Math.min(maxNewTokens, maxPositionEmbeddings - ids.length + 1);
  if (count === 0) return;

  const cache = model.createCache(1, ids.length + count - 1);
  const { temperature, topK, topP } = options;
  const decoder = new Decoder(model, cache, { temperature, topK, topP, seed, graph });
  try {
    while (made.length < count) {
      const token = await (made.length === 0 ? decoder.start(ids) : decoder.next());
      throwIfAborted(signal);
      made.push(token);
      yield token;
      if (isEnd()) return;
      throwIfAborted(signal);
    }
  } finally {
    decoder.dispose();
    cache.dispose();
  }
}

/** A checked copy. Throws ERR_BNB_ARGUMENT. */
function promptIds(prompt: Prompt, most: number, vocabSize: number): Int32Array {
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

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (!signal?.aborted) return;
  throw new BnbError("ERR_BNB_ABORTED", "generate: aborted by its signal", { cause: signal.reason });
}
