// Whole texts: of one prompt or of many, one each or several, computed together in one engine.
import { setMaxListeners } from "node:events";
import type { CausalLM } from "../models/index.js";
import { pageSize } from "../models/step-plan.js";
import { checkArgument } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { searchBeams } from "./beam-search.js";
import type { Next, Telling } from "./branch.js";
import { aModel, Engine } from "./engine.js";
import { someKvTokens } from "./engine-options.js";
import type { GenerateOptions } from "./generate.js";
import { generateChecks } from "./generate.js";
import type { Prompt, TextPrompt } from "./prompt.js";
import { encodePrompt, isPrompts } from "./prompt.js";
import type { Settings } from "./settings.js";
import { newTokens, settingsOf } from "./settings.js";
import type { FinishReason } from "./text.js";

/** Options of `complete`. */
export interface CompleteOptions extends GenerateOptions {
  /** Tokens whose keys and values have room, of all texts together: with less some wait, and none becomes longer. Default: room for 64 texts. */
  kvTokens?: number;
}

const completeTable = optionTable<CompleteOptions>({ ...generateChecks, kvTokens: someKvTokens });

/** A token and its natural log-probability, after penalties and rules and before temperature and cuts. */
export interface TokenLogprob {
  readonly id: number;
  readonly logprob: number;
}

/** What followed a prompt. */
export interface Completion {
  /** Without special tokens, the end and the stop string; null where the model has no tokenizer. */
  readonly text: string | null;
  /** New tokens, with the one that ended them. */
  readonly tokens: Int32Array;
  /** "stop": by the end of the text or a stop string; "length": it may not be longer. */
  readonly finishReason: FinishReason;
  /** Of each token, where `logprobs` was asked for; `best`: the likeliest in its place, as many as asked for. */
  readonly logprobs?: readonly (TokenLogprob & { readonly best: readonly TokenLogprob[] })[];
  /** Of a beam: the sum of log-probabilities / tokens ^ lengthPenalty. */
  readonly score?: number;
}

/**
 * What follows a prompt (a text, the messages of a conversation, or token ids), in whole: a list of `numReturnSequences`
 * completions, of beams the best first. For a list of prompts a list of such lists, computed together; each text is what it is
 * alone, up to rounding (`deterministic: true`: to the bit).
 *
 * @example
 * const [answer] = await complete(model, "Once upon a time", { numBeams: 4 });
 * const [[yes], [no]] = await complete(model, ["Is it?", "Or not?"], { maxNewTokens: 8, logprobs: 3 });
 */
export function complete(
  model: CausalLM,
  prompt: Prompt | TextPrompt,
  options?: CompleteOptions,
): Promise<Completion[]>;
export function complete(
  model: CausalLM,
  prompts: readonly (Prompt | TextPrompt)[],
  options?: CompleteOptions,
): Promise<Completion[][]>;
export async function complete(
  model: CausalLM,
  input: Prompt | TextPrompt | readonly (Prompt | TextPrompt)[],
  options: CompleteOptions = {},
): Promise<Completion[] | Completion[][]> {
  checkArgument(op, "model", model, aModel);
  checkOptions(op, options, completeTable);
  const { graph, kvDtype, deterministic, kvTokens, ...text } = options;
  using shared = shareSignal(text.signal);
  const settings = settingsOf(op, model, { ...text, ...shared.options });
  const { numBeams = 1, logprobs } = settings.config;
  if (numBeams > 1 && logprobs !== undefined) {
    throw new BnbError("ERR_BNB_OPTION", `${op}: logprobs must come without beams, got numBeams: ${numBeams}`);
  }
  const isBatch = isPrompts(input);
  const prompts = isBatch ? input : [input];
  const ids = await Promise.all(prompts.map((prompt) => encodePrompt(op, model, prompt)));
  if (ids.length === 0) return [];
  const engineOptions = {
    ...sizesOf(model, settings, ids),
    // Nobody reads along.
    stepMs: Infinity,
    ...(kvTokens !== undefined && { kvTokens }),
    ...(graph !== undefined && { graph }),
    ...(kvDtype !== undefined && { kvDtype }),
    ...(deterministic !== undefined && { deterministic }),
  };
  using engine = new Engine(model, engineOptions);
  const one = numBeams > 1 ? beams : draws;
  const all = await Promise.all(ids.map((prompt) => one(engine, prompt, settings)));
  return isBatch ? all : (all[0] as Completion[]);
}

const op = "complete";
/** Texts that an engine computes in one step. */
const together = 64;

/** A signal with as many listeners as there are texts: Node takes more than ten on one for a mistake. */
function shareSignal(signal: AbortSignal | undefined): Disposable & { readonly options: { signal?: AbortSignal } } {
  if (typeof signal?.addEventListener !== "function") return { options: {}, [Symbol.dispose]: () => {} };
  const own = new AbortController();
  setMaxListeners(0, own.signal);
  const abort = () => own.abort(signal.reason);
  if (signal.aborted) abort();
  else signal.addEventListener("abort", abort, { once: true });
  return { options: { signal: own.signal }, [Symbol.dispose]: () => signal.removeEventListener("abort", abort) };
}

/** The longest text, and room for as many of the longest as are computed together. */
function sizesOf(model: CausalLM, settings: Settings, prompts: readonly Int32Array[]) {
  const { numBeams = 1, numReturnSequences = 1 } = settings.config;
  const most = model.config.maxPositionEmbeddings;
  const lengths = prompts.map(({ length }) => Math.max(1, length + newTokens(op, length, settings, most) - 1));
  const perPrompt = Math.max(numBeams, numReturnSequences);
  lengths.sort((a, b) => b - a);
  const tokens = lengths
    .slice(0, together)
    .flatMap((length) => new Array<number>(Math.min(perPrompt, together)).fill(Math.ceil(length / pageSize) * pageSize))
    .slice(0, together);
  return { maxLength: lengths[0] as number, kvTokens: tokens.reduce((sum, length) => sum + length, 0) };
}

async function beams(engine: Engine, prompt: Int32Array, settings: Settings): Promise<Completion[]> {
  const found = await searchBeams(op, engine, prompt, settings);
  return Promise.all(
    found.map(async ({ tokens, score, finishReason }) => {
      const text = await textOf(engine.model, finishReason === "stop" ? tokens.slice(0, -1) : tokens);
      return { text, tokens: Int32Array.from(tokens), finishReason, score };
    }),
  );
}

async function draws(engine: Engine, prompt: Int32Array, settings: Settings): Promise<Completion[]> {
  const { numReturnSequences = 1 } = settings.config;
  return Promise.all(
    Array.from({ length: numReturnSequences }, (_, i) => {
      const { seed } = settings.draw;
      const own = seed === undefined ? settings.draw : { ...settings.draw, seed: (seed + i) % Number.MAX_SAFE_INTEGER };
      return draw(engine, prompt, { ...settings, draw: own });
    }),
  );
}

async function draw(engine: Engine, prompt: Int32Array, settings: Settings): Promise<Completion> {
  const { stopStrings, config, ends } = settings;
  const { logprobs: best } = config;
  const telling: Telling = { logprobs: best !== undefined, best: best ?? 0 };
  const made: Next[] = [];
  let text = "";
  const pieces = engine.run(op, prompt, settings, { telling });
  let result = await pieces.next();
  for (; !result.done; result = await pieces.next()) {
    if (result.value.next) made.push(result.value.next);
    text += result.value.text ?? "";
  }
  const tokens = Int32Array.from(made, ({ id }) => id);
  const isEnded = ends.includes(tokens.at(-1) as number);
  return {
    text: stopStrings.length > 0 ? text : await textOf(engine.model, isEnded ? tokens.subarray(0, -1) : tokens),
    tokens,
    finishReason: result.value,
    ...(best !== undefined && { logprobs: made.map((next) => told(next, best)) }),
  };
}

/** A row may tell of more than was asked for here, where others asked for more. */
function told({ id, logprob, bestIds, bestLogprobs }: Next, best: number) {
  const others = Array.from(bestIds.subarray(0, best), (other, i) => ({
    id: other,
    logprob: bestLogprobs[i] as number,
  }));
  return { id, logprob, best: others.filter((other) => other.id >= 0) };
}

async function textOf({ tokenizer }: CausalLM, tokens: Int32Array | readonly number[]): Promise<string | null> {
  if (!tokenizer) return null;
  // A model may have more tokens than its tokenizer: they stand for no text.
  const known = [...tokens].filter((id) => id < tokenizer.vocabSize);
  return tokenizer.decode(known, { skipSpecialTokens: true });
}
