// How a model's texts are generated, in transformers' words: what generation_config.json says, and what callers say over it.
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Check } from "../tensor/checks.js";
import {
  aBoolean,
  aFiniteNumber,
  aNumberAbove,
  aNumberIn,
  anInteger,
  arrayOf,
  either,
  oneOf,
  orNull,
} from "../tensor/checks.js";
import { describe, isPlainObject } from "../tensor/describe.js";
import { optionTable } from "../tensor/options.js";
import type { JsonObject } from "./config-text.js";
import { parseConfig } from "./config-text.js";
import { formatError } from "./safetensors-header.js";

/** How texts are generated. What is left out is as the model's `generationConfig` says, then as the defaults here. */
export interface GenerationConfig {
  /** Whether tokens are drawn; else the likeliest is taken. Default false. */
  doSample?: boolean;
  /** Divides the logits; 0 takes the likeliest. Default 1. */
  temperature?: number;
  /** Only the k likeliest tokens; 0 keeps all. Default 50. */
  topK?: number;
  /** Only the smallest set of likely tokens whose probabilities reach p; 1 keeps all. Default 1. */
  topP?: number;
  /** Only tokens with at least this part of the largest probability; 0 keeps all. Default 0. */
  minP?: number;
  /** Locally typical sampling (Meister et al., 2022): the mass that stays; 1 keeps all. Default 1. */
  typicalP?: number;
  /** Of the draws; the same seed gives the same text. Text i of several from one prompt has seed + i. Default: another each time, from the default generator (see manualSeed). */
  seed?: number;
  /** Texts kept at each step of a beam search; 1 is none. Default 1. */
  numBeams?: number;
  /**
   * When a beam search ends. true: when `numBeams` texts have ended; false: when the best that goes on could not become better
   * now; "never": when it could not by the maximal length. Default false.
   */
  earlyStopping?: boolean | "never";
  /** Scores of beams are divided by the number of new tokens to this power. Default 1. */
  lengthPenalty?: number;
  /** Texts from each prompt: draws, or the best beams. Default 1. */
  numReturnSequences?: number;
  /** Tokens to make at most; the model's `maxPositionEmbeddings` bounds it too. Default 128. */
  maxNewTokens?: number;
  /** The same with the tokens of the prompt. */
  maxLength?: number;
  /** Tokens before which the text does not end. Default 0. */
  minNewTokens?: number;
  /** The same with the tokens of the prompt. Default 0. */
  minLength?: number;
  /** Ends the text: one token or several; null for none. It is among the tokens, and not in the text. */
  eosTokenId?: number | readonly number[] | null;
  /** End the text where one of them would begin. Need a tokenizer. */
  stopStrings?: string | readonly string[];
  /** Divides positive logits of tokens in the prompt or the text, multiplies negative ones. Default 1. */
  repetitionPenalty?: number;
  /** Is taken off the logits of tokens in the text. Default 0. */
  presencePenalty?: number;
  /** Is taken off the logits for each time that a token is in the text. Default 0. */
  frequencyPenalty?: number;
  /** No sequence of so many tokens comes twice, those of the prompt included; 0 allows all. Default 0. */
  noRepeatNgramSize?: number;
  /** Sequences of tokens that do not come. */
  badWordsIds?: readonly (readonly number[])[];
  /** Tokens that do not come. */
  suppressTokens?: readonly number[];
  /** Tokens that do not come first. */
  beginSuppressTokens?: readonly number[];
  /** What is added to the logits of tokens, by their ids; -Infinity forbids one. */
  logitBias?: Readonly<Record<number, number>>;
  /** How many of the likeliest tokens to tell beside each token with its log-probability, 0 to 20. Default: none is told. */
  logprobs?: number;
  /**
   * Whether tokens are guessed from what followed the same tokens earlier in the text, and several verified in one step:
   * worth it where answers repeat their prompt. The text is the same; where guesses do not pay, none are made.
   * Default false.
   */
  promptLookup?: boolean;
}

const tokenIds = arrayOf(anInteger(0), "an array of token ids");
const aPart: Check = { rule: "above 0 and at most 1", holds: (v) => typeof v === "number" && v > 0 && v <= 1 };
const aText: Check = { rule: "a text that is not empty", holds: (v) => typeof v === "string" && v !== "" };
const aWord: Check = {
  rule: "a list of token ids that is not empty",
  holds: (v) => tokenIds.holds(v) && (v as number[]).length > 0,
};
const aBias: Check = {
  rule: "an object of finite numbers, or -Infinity, by token id",
  holds: (v) =>
    isPlainObject(v) &&
    Object.entries(v).every(([id, value]) => /^\d+$/.test(id) && (Number.isFinite(value) || value === -Infinity)),
};

/** @internal */
export const generationChecks = {
  doSample: aBoolean,
  temperature: aNumberIn(0),
  topK: anInteger(0),
  topP: aPart,
  minP: aNumberIn(0, 1),
  typicalP: aPart,
  seed: anInteger(0),
  numBeams: anInteger(1),
  earlyStopping: either(aBoolean, oneOf(["never"])),
  lengthPenalty: aFiniteNumber,
  numReturnSequences: anInteger(1),
  maxNewTokens: anInteger(0),
  maxLength: anInteger(1),
  minNewTokens: anInteger(0),
  minLength: anInteger(0),
  eosTokenId: orNull(either(anInteger(0), tokenIds)),
  stopStrings: either(aText, arrayOf(aText, "an array of texts")),
  repetitionPenalty: aNumberAbove(0),
  presencePenalty: aFiniteNumber,
  frequencyPenalty: aFiniteNumber,
  noRepeatNgramSize: anInteger(0),
  badWordsIds: arrayOf(aWord, "an array of sequences"),
  suppressTokens: tokenIds,
  beginSuppressTokens: tokenIds,
  logitBias: aBias,
  logprobs: anInteger(0, 20),
  promptLookup: aBoolean,
};

/** @internal */
export const generationTable = optionTable<GenerationConfig>(generationChecks);

/** What a file may say: all but what is this package's own. */
const own = new Set(["seed", "presencePenalty", "frequencyPenalty", "logitBias", "logprobs", "promptLookup"]);
const fileKeys = new Map(
  Object.keys(generationChecks).flatMap((key) =>
    own.has(key) ? [] : [[key.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`), key] as const],
  ),
);

/** What transformers does and this package does not, with the values that mean nothing. */
const unsupported: Readonly<Record<string, readonly unknown[]>> = {
  constraints: [],
  diversity_penalty: [0],
  dola_layers: [],
  encoder_no_repeat_ngram_size: [0],
  encoder_repetition_penalty: [1],
  epsilon_cutoff: [0],
  eta_cutoff: [0],
  exponential_decay_length_penalty: [],
  force_words_ids: [],
  forced_bos_token_id: [],
  forced_eos_token_id: [],
  guidance_scale: [1],
  max_time: [],
  num_beam_groups: [1],
  penalty_alpha: [0],
  renormalize_logits: [false],
  sequence_bias: [],
  token_healing: [false],
  top_h: [],
  watermarking_config: [],
};
const warned = new Set<string>();

const FILE = "generation_config.json";
/** What transformers writes where nobody said how long a text may be. */
const UNSAID_LENGTH = 20;

/**
 * @internal The generation_config.json of a folder, and what config.json says of the end of texts where it says nothing.
 * Throws ERR_BNB_FORMAT for values that cannot be. Keys that are not known are ignored, with a warning where they would
 * change texts.
 */
export async function readGenerationConfig(folder: string, config: JsonObject): Promise<GenerationConfig> {
  const path = join(folder, FILE);
  const found = await stat(path).catch(() => undefined);
  if (found && found.size > MAX_BYTES)
    throw formatError(FILE, `must have at most ${MAX_BYTES} bytes, has ${found.size}`);
  const json = found ? parseConfig(await readFile(path, "utf8"), FILE) : {};
  return generationConfigOf({ ...json, eos_token_id: json["eos_token_id"] ?? config["eos_token_id"] });
}
const MAX_BYTES = 16 << 20;

function generationConfigOf(json: JsonObject): GenerationConfig {
  const said: Record<string, unknown> = {};
  for (const [name, key] of fileKeys) {
    const value = name === "eos_token_id" ? endsOf(json[name]) : (json[name] ?? undefined);
    if (value === undefined || (name === "max_length" && value === UNSAID_LENGTH)) continue;
    const check = generationChecks[key as keyof typeof generationChecks];
    if (!check.holds(value)) throw formatError(FILE, `${name} must be ${check.rule}, got ${describe(value)}`);
    said[key] = value;
  }
  const others = Object.entries(unsupported).filter(
    ([name, neutral]) => (json[name] ?? null) !== null && !neutral.includes(json[name]) && !warned.has(name),
  );
  for (const [name] of others) warned.add(name);
  if (others.length > 0) {
    const names = others.map(([name]) => name).join(", ");
    process.emitWarning(`${FILE}: ${names} would change texts in transformers, and does nothing here`, {
      type: "BnbWarning",
      code: "BNB_GENERATION_CONFIG",
    });
  }
  return said;
}

/** Some files have -1 for a model without an end. */
function endsOf(ids: unknown): unknown {
  if (typeof ids === "number") return ids < 0 ? undefined : ids;
  return Array.isArray(ids) ? ids.filter((id) => !(typeof id === "number" && id < 0)) : (ids ?? undefined);
}
