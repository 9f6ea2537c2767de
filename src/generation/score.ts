// How likely a model finds a text: the log-probability of each token behind those before it, and the perplexity.
import { noGrad } from "../autograd/no-grad.js";
import type { CausalLM } from "../models/index.js";
import { pageSize } from "../models/step-plan.js";
import { cast, embedding, logSoftmax, reshape } from "../ops/index.js";
import { anAbortSignal, anInteger, checkArgument } from "../tensor/checks.js";
import { tensor } from "../tensor/create.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { aModel } from "./engine.js";
import type { KvDType } from "./kv-pages.js";
import { KvPages } from "./kv-pages.js";
import type { Prompt } from "./prompt.js";
import { encodeText } from "./prompt.js";
import { throwIfAborted } from "./settings.js";
import type { SequenceRows } from "./step-inputs.js";
import { StepInputs, sizesOf } from "./step-inputs.js";

/** Options of `score`. */
export interface ScoreOptions {
  /** Tokens that the model sees at once. Default: its `maxPositionEmbeddings`. */
  window?: number;
  /** How far the window moves over a longer text; all but the first `window - stride` of its tokens are scored there. Default: half of it. */
  stride?: number;
  /** Ends the work with `ERR_BNB_ABORTED`. */
  signal?: AbortSignal;
}
const scoreTable = optionTable<ScoreOptions>({ window: anInteger(2), stride: anInteger(1), signal: anAbortSignal });

/** How likely a text is. */
export interface Score {
  readonly tokens: Int32Array;
  /** Natural log-probability of each token but the first, float32 [tokens - 1]. */
  readonly logprobs: Float32Array;
  readonly meanLogprob: number;
  /** `exp(-meanLogprob)`. */
  readonly perplexity: number;
}

/** Elements of the logits of one step. */
const mostLogits = 2 ** 24;

/**
 * How likely the model finds a text or token ids, of at least two tokens. A text that is longer than `window` is
 * seen through windows that overlap, so that each token but those of the first window has at least `window - stride` before it.
 *
 * @example
 * const { perplexity } = await score(model, "The quick brown fox jumps over the lazy dog.");
 */
export async function score(model: CausalLM, text: string | Prompt, options: ScoreOptions = {}): Promise<Score> {
  checkArgument(op, "model", model, aModel);
  checkOptions(op, options, scoreTable);
  const most = model.config.maxPositionEmbeddings;
  const window = Math.min(options.window ?? most, most);
  const { stride = Math.max(1, Math.floor(window / 2)), signal } = options;
  if (stride >= window) {
    throw new BnbError("ERR_BNB_OPTION", `${op}: stride must be below the window of ${window} tokens, got ${stride}`);
  }
  const tokens = await encodeText(op, model, text, Number.MAX_SAFE_INTEGER);
  if (tokens.length < 2) {
    throw new BnbError("ERR_BNB_ARGUMENT", `${op}: the text must have at least 2 tokens, got ${tokens.length}`);
  }
  const logprobs = new Float32Array(tokens.length - 1);
  const pages = Math.ceil(Math.min(window, tokens.length) / pageSize);
  using kv = new KvPages(model.kvLayout(), { pages, dtype: model.dtype as KvDType, device: model.device });
  let scored = 1; // tokens from the start that need no more
  for (let start = 0; scored < tokens.length; start += stride) {
    const end = Math.min(start + window, tokens.length);
    const inWindow = tokens.subarray(start, end);
    await scoreWindow(model, kv, inWindow, scored - start, logprobs.subarray(scored - 1, end - 1), signal);
    scored = end;
  }
  const sum = logprobs.reduce((total, logprob) => total + logprob, 0);
  const meanLogprob = sum / logprobs.length;
  return { tokens, logprobs, meanLogprob, perplexity: Math.exp(-meanLogprob) };
}

const op = "score";

/** The log-probabilities of the tokens from `first` on. */
async function scoreWindow(
  model: CausalLM,
  kv: KvPages,
  tokens: Int32Array,
  first: number,
  into: Float32Array,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { vocabSize } = model.config;
  const chunk = Math.max(1, Math.min(512, Math.floor(mostLogits / vocabSize)));
  // The last token has none behind it.
  const length = tokens.length - 1;
  for (let at = 0; at < length; at += chunk) {
    throwIfAborted(op, signal);
    const end = Math.min(at + chunk, length);
    // Rows from here on say how likely the token behind them is.
    const from = Math.min(Math.max(at, first - 1), end);
    const part = rowsOf(tokens, at, end, end - from);
    const result = tidy(() => noGrad(() => logprobsOf(model, kv, part, tokens.subarray(from + 1, end + 1))));
    try {
      if (from < end) into.set(await result.floats(), from + 1 - first);
    } finally {
      result.dispose();
    }
  }
}

/** Tokens `at` to `end` of a sequence whose pages follow one another, of which the last `wanted` are asked. */
function rowsOf(tokens: Int32Array, at: number, end: number, wanted: number): SequenceRows {
  const slots = Array.from({ length: end - at }, (_, i) => at + i);
  const pages = Array.from({ length: Math.ceil(end / pageSize) }, (_, i) => i);
  const draw = { options: {}, slot: -1 };
  return {
    ids: [...tokens.subarray(at, end)],
    slots,
    length: end,
    total: tokens.length,
    pages,
    wanted,
    draw,
    rules: [],
    adapter: -1,
  };
}

/** Log-probabilities [rows] float32 of the tokens behind the wanted rows. */
function logprobsOf(model: CausalLM, kv: KvPages, part: SequenceRows, next: Int32Array): Tensor {
  const { vocabSize } = model.config;
  const { device } = model;
  using inputs = new StepInputs([part], sizesOf([part]), null, device);
  const logits = model.step(inputs.plan, kv);
  const all = reshape(logSoftmax(cast(logits, "float32")), [-1, 1]);
  const at = Int32Array.from(next, (id, row) => row * vocabSize + id);
  return reshape(embedding(tensor(at, { device }), all), [-1]);
}
