// How an engine, and a text in one, is opened.

import type { GrammarSource } from "../hub/grammars.js";
import { aBoolean, aFunction, anInteger, anObject, anObjectWith, aString, orNull } from "../tensor/checks.js";
import { optionTable } from "../tensor/options.js";
import type { Branch, Telling } from "./branch.js";
import type { KvDType } from "./kv-pages.js";
import { kvDtypeCheck } from "./kv-pages.js";
import type { RulesOf } from "./row-rules.js";
import type { DrawOptions } from "./sampling.js";
import { drawChecks } from "./sampling.js";
import type { TextOptions } from "./settings.js";
import { textChecks } from "./settings.js";
import type { StepAdapters } from "./step-adapters.js";

/** @internal Their places are int32. */
export const someKvTokens = anInteger(1, 2 ** 31 - 1);

/** Sizes of an engine. */
export interface EngineOptions {
  /** Tokens whose keys and values have room, of all texts together; no text becomes longer. Default: those of one text. */
  kvTokens?: number;
  /** What keys and values are stored as. Default: the dtype of the model. */
  kvDtype?: KvDType;
  /** Tokens of a text, its last one not counted. Default: the model's `maxPositionEmbeddings`. */
  maxLength?: number;
  /** Texts in one step; others wait. Default 64. */
  maxSequences?: number;
  /** Tokens of one step at most. Default 512. */
  stepTokens?: number;
  /**
   * Milliseconds that a step should take at most: how much of a prompt is computed before others have their next token, by
   * what steps have taken so far. Default 50 on a GPU, 200 on a CPU; Infinity: as much as `stepTokens` says.
   */
  stepMs?: number;
  /** Whether texts that begin alike share what has been computed of it. Default true. */
  sharePrefixes?: boolean;
  /**
   * Whether the numbers of a text are the same to the bit whatever else the engine computes. Then texts of a step are
   * computed one by one and prompts a page at a time, which is slow; guesses are not made. Default false: sums may go in
   * another order, so that another token follows where the best two are as good as equal.
   */
  deterministic?: boolean;
  /** Whether steps of one token a text are recorded and replayed as graphs. Default: on a GPU. */
  graph?: boolean;
  /** Adapters over the model, by whose names texts may ask for one: an `AdapterSet`, which stays the caller's. */
  adapters?: StepAdapters;
}

/** What an engine has done, and does. */
export interface EngineStats {
  /** Texts that have keys and values. */
  readonly running: number;
  /** Open texts that have none. */
  readonly waiting: number;
  readonly pages: number;
  readonly freePages: number;
  /** Tokens of all prompts. */
  readonly prefixQueries: number;
  /** Of those, how many earlier texts had computed. */
  readonly prefixHits: number;
  /** How often a text lost its pages to another. */
  readonly preemptions: number;
}

/** What a text is besides its settings. */
export interface RunOptions {
  wantsText?: boolean;
  telling?: Telling;
  salt?: string;
  adapter?: string | undefined;
  /** What it must be, instead of the `responseFormat` of its settings. */
  grammar?: GrammarSource | undefined;
  /** Special tokens that its text has, though others are left out. */
  markers?: ReadonlyMap<number, string> | undefined;
  /** Is told its branch when it is opened. */
  watch?: (branch: Branch) => void;
}

/** A wanted draft leaves at least as much of a step to prompts. */
const leastStep = 64;

export const engineOptions = optionTable<EngineOptions>({
  kvTokens: someKvTokens,
  kvDtype: kvDtypeCheck,
  maxLength: anInteger(1),
  maxSequences: anInteger(1, 1024),
  stepTokens: anInteger(leastStep),
  stepMs: { rule: "a number above 0", holds: (v) => typeof v === "number" && v > 0 },
  sharePrefixes: aBoolean,
  deterministic: aBoolean,
  graph: aBoolean,
  adapters: anObjectWith("an AdapterSet", "use", "during"),
});

/** How a text is opened. */
export interface OpenOptions extends DrawOptions {
  /** Tokens it may have, its last one not counted. Default: the engine's `maxLength`. */
  maxLength?: number;
  /** Default: no log-probabilities. */
  telling?: Telling;
  /** What may not come next, or is made more or less likely, by the tokens so far. Default: no rules. */
  rules?: RulesOf | null;
  /** Only texts of one salt share what has been computed. */
  salt?: string;
  /** One of the engine's adapters. Default: the base alone. */
  adapter?: string;
}

export const openOptions = optionTable<OpenOptions>({
  ...drawChecks,
  maxLength: anInteger(1),
  telling: anObject,
  rules: orNull(aFunction),
  salt: aString,
  adapter: aString,
});

/** Options of `Engine.submit`. */
export interface SubmitOptions extends TextOptions, Pick<OpenOptions, "adapter"> {}
export const submitOptions = optionTable<SubmitOptions>({ ...textChecks, adapter: aString });
