// Text generation as an async iterator: one forward pass and one awaited read per token, so that the event loop
// turns between tokens however long the text becomes.
import type { SamplingOptions } from "../ops/index.js";
import { BnbError } from "../tensor/errors.js";
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
  prompt: readonly number[] | Int32Array | Uint8Array,
  options: GenerateOptions = {},
): AsyncGenerator<number, void, undefined> {
  const { maxNewTokens = 128, seed = 0, stop = [], signal, graph = model.device.type === "cuda" } = options;
  const { maxPositionEmbeddings, vocabSize } = model.config;
  if (!(Number.isInteger(maxNewTokens) && maxNewTokens >= 0)) {
    throw new BnbError(
      "ERR_BNB_OPTION",
      `generate: maxNewTokens must be an integer of at least 0, got ${maxNewTokens}`,
    );
  }
  if (prompt.length === 0 || prompt.length > maxPositionEmbeddings) {
    const range = `between 1 and ${maxPositionEmbeddings} tokens`;
    throw new BnbError("ERR_BNB_ARGUMENT", `generate: the prompt must have ${range}, got ${prompt.length}`);
  }
  for (const id of prompt) {
    if (Number.isInteger(id) && id >= 0 && id < vocabSize) continue;
    throw new BnbError("ERR_BNB_ARGUMENT", `generate: a token id must lie in 0..${vocabSize - 1}, got ${id}`);
  }
  throwIfAborted(signal);

  const made: number[] = [];
  const isEnd = typeof stop === "function" ? () => stop(made) : () => stop.includes(made.at(-1) as number);
  // The last token made is never fed back, so it needs no position.
  const count = Math.min(maxNewTokens, maxPositionEmbeddings - prompt.length + 1);
  if (count === 0) return;

  const cache = model.createCache(1, prompt.length + count - 1);
  const { temperature, topK, topP } = options;
  const decoder = new Decoder(model, cache, { temperature, topK, topP, seed, graph });
  try {
    while (made.length < count) {
      const token = await (made.length === 0 ? decoder.start(Int32Array.from(prompt)) : decoder.next());
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

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (!signal?.aborted) return;
  throw new BnbError("ERR_BNB_ABORTED", "generate: aborted by its signal", { cause: signal.reason });
}
