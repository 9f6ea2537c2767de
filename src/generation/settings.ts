// What people say of a text to be generated, with what its model says, and what contradicts itself.

import { generationChecks, generationTable } from "../hub/generation-config.js";
import type { GrammarSource, GrammarText } from "../hub/grammars.js";
import type { GenerationConfig, ResponseFormat } from "../hub/index.js";
import type { CausalLM } from "../models/index.js";
import { defaultGenerator } from "../ops/index.js";
import { aFunction, anAbortSignal, aPlainObject } from "../tensor/checks.js";
import { describe } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { RulesInit, RulesOf } from "./row-rules.js";
import { rulesOf } from "./row-rules.js";
import type { DrawOptions } from "./sampling.js";

/** Options of one text. */
export interface TextOptions extends GenerationConfig {
  /** Ends the generation with `ERR_BNB_ABORTED`. */
  signal?: AbortSignal;
  /** The only tokens that may follow those so far, the prompt included; null: all may. */
  prefixAllowedTokens?: (tokens: readonly number[]) => Iterable<number> | null;
  /**
   * What the text must be: any text (the default), JSON, or what a grammar says. Where the text may not be longer, it ends
   * before it is complete. The model must have a tokenizer.
   */
  responseFormat?: ResponseFormat;
}

/** @internal */
export const textChecks = {
  ...generationChecks,
  signal: anAbortSignal,
  prefixAllowedTokens: aFunction,
  responseFormat: aPlainObject,
};
/** @internal */
export const textTable = optionTable<TextOptions>(textChecks);

/** What was said, with what the model says where nothing was, and without what does nothing. */
export interface Settings {
  readonly config: TextOptions;
  readonly draw: DrawOptions;
  /** Tokens that end a text. */
  readonly ends: readonly number[];
  readonly stopStrings: readonly string[];
}

/** How a text is drawn where it is not greedy, and the values that change nothing. */
const ofSampling = { temperature: 0, topK: 0, topP: 1, minP: 0, typicalP: 1 } as const;
const ofBeams = { earlyStopping: false, lengthPenalty: 1 } as const;
const transformersTopK = 50;

/** `given` were checked against its own table. Throws ERR_BNB_OPTION for what contradicts itself. */
export function settingsOf(op: string, model: CausalLM, given: TextOptions): Settings {
  checkOptions(`${op}: model.generationConfig`, model.generationConfig, generationTable);
  const fromModel = defined(model.generationConfig ?? {});
  const said = defined(given);
  const config: TextOptions = { ...fromModel, ...said };
  const refuse = (rule: string, got: unknown): never => {
    throw new BnbError("ERR_BNB_OPTION", `${op}: ${rule}, got ${describe(got)}`);
  };

  // Of two ways to say one thing, that of the caller counts.
  if (said.maxNewTokens !== undefined && said.maxLength !== undefined) {
    refuse("maxNewTokens and maxLength bound the same length: give one of them", [said.maxNewTokens, said.maxLength]);
  } else if (said.maxLength !== undefined) delete config.maxNewTokens;
  else if (config.maxNewTokens !== undefined) delete config.maxLength;

  if (said.doSample === undefined && (said.numBeams ?? 1) > 1) delete config.doSample;
  if (said.numBeams === undefined && said.doSample === true) delete config.numBeams;
  const { doSample = false, numBeams = 1, numReturnSequences = 1 } = config;
  const onlyWith = (keys: object, isUsed: boolean, rule: string) => {
    if (isUsed) return;
    for (const [key, neutral] of Object.entries(keys) as [keyof typeof ofSampling, number][]) {
      if (said[key] !== undefined && said[key] !== neutral) refuse(`${key} must come with ${rule}`, said[key]);
      delete config[key];
    }
  };
  onlyWith(ofSampling, doSample, "doSample: true");
  onlyWith(ofBeams, numBeams > 1, "numBeams above 1");
  if (numBeams > 1 && doSample) refuse("numBeams must be 1 where tokens are drawn (doSample: true)", numBeams);
  if (numBeams > 1 && numReturnSequences > numBeams) {
    refuse(`numReturnSequences must be at most numBeams, ${numBeams}`, numReturnSequences);
  }
  if (numBeams === 1 && numReturnSequences > 1 && !doSample) {
    refuse(
      "numReturnSequences must be 1 for greedy texts, which are all the same (doSample: true draws)",
      numReturnSequences,
    );
  }
  const bounds = [
    ["minNewTokens", "maxNewTokens"],
    ["minLength", "maxLength"],
  ] as const;
  for (const [least, most] of bounds) {
    const { [least]: atLeast = 0, [most]: atMost = Infinity } = config;
    if (atLeast <= atMost) continue;
    if (said[least] !== undefined) refuse(`${least} must be at most ${most}, ${atMost}`, atLeast);
    // What the model says of all texts gives way to what is said of this one.
    config[least] = atMost;
  }
  const { eosTokenId = null, stopStrings = [] } = config;
  const ends = typeof eosTokenId === "number" ? [eosTokenId] : [...new Set(eosTokenId ?? [])];
  const stops = typeof stopStrings === "string" ? [stopStrings] : stopStrings;
  if (stops.length > 0 && !model.tokenizer) {
    refuse("stopStrings must come with a model that has a tokenizer", stopStrings);
  }
  const { responseFormat } = config;
  if (responseFormat && responseFormat.type !== "text") {
    if (!model.tokenizer) refuse("responseFormat must come with a model that has a tokenizer", responseFormat);
    if (numBeams > 1) refuse("responseFormat must come without beams", numBeams);
  }
  return { config, draw: drawOf(config), ends, stopStrings: stops };
}

/** Throws ERR_BNB_OPTION for what gives more than one text, or more than its tokens. */
export function refuseMany(op: string, { config }: Settings): void {
  const { numBeams = 1, numReturnSequences = 1, logprobs } = config;
  const many = {
    ...(numBeams > 1 && { numBeams }),
    ...(numReturnSequences > 1 && { numReturnSequences }),
    ...(logprobs !== undefined && { logprobs }),
  };
  if (Object.keys(many).length === 0) return;
  const rule = `${op}: options must be those of one text that comes piece by piece (model.complete takes the others)`;
  throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${describe(many)}`);
}

/** The rules of a text of those settings, null where it has none. */
export function rulesOfText(
  op: string,
  { config, ends }: Settings,
  prompt: number,
  vocabSize: number,
  grammar: GrammarText | null = null,
): RulesOf | null {
  const init: RulesInit = { config, allows: config.prefixAllowedTokens, grammar, prompt, ends, vocabSize };
  return rulesOf(op, init);
}

/** The grammar that a text of those settings follows, null where it has none. Dispose it. */
export async function openGrammar(
  op: string,
  model: CausalLM,
  { config, ends }: Settings,
  source: GrammarSource | undefined,
): Promise<GrammarText | null> {
  const { responseFormat = { type: "text" } } = config;
  const wanted = source ?? (responseFormat.type === "text" ? undefined : responseFormat);
  if (wanted === undefined) return null;
  return model.tokenizerFor(op).grammars.open(op, "responseFormat", wanted, ends);
}

/** How many tokens follow a prompt at most. The last one is never fed back, so it needs no position. */
export function newTokens(op: string, prompt: number, { config }: Settings, room: number): number {
  const { maxLength, maxNewTokens = 128 } = config;
  if (maxLength !== undefined && maxLength <= prompt) {
    const rule = `maxLength must be above the ${prompt} tokens of the prompt`;
    throw new BnbError("ERR_BNB_OPTION", `${op}: ${rule}, got ${maxLength}; maxNewTokens does not count them`);
  }
  const asked = maxLength === undefined ? maxNewTokens : maxLength - prompt;
  return Math.max(0, Math.min(asked, room - prompt + 1));
}

export function throwIfAborted(op: string, signal: AbortSignal | undefined): void {
  if (!signal?.aborted) return;
  throw new BnbError("ERR_BNB_ABORTED", `${op}: aborted by its signal`, { cause: signal.reason });
}

/** How a row of logits is drawn from: a temperature of 0 takes the largest. */
function drawOf(config: GenerationConfig): DrawOptions {
  const { doSample = false, temperature = 1, topK = transformersTopK, topP = 1, minP = 0, typicalP = 1 } = config;
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = config;
  const penalties = { repetitionPenalty, presencePenalty, frequencyPenalty };
  if (!doSample) return penalties;
  const { seed = defaultGenerator.nextSeed() } = config;
  return { temperature, topK, topP, minP, typicalP, seed, ...penalties };
}

function defined<T extends object>(options: T): T {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as T;
}
