// Texts from models: one after another, many at once, several from one prompt.
import "./methods.js";

export { type Beam, beamSearch } from "./beam-search.js";
export type { Branch, Next, Telling } from "./branch.js";
export { type CompleteOptions, type Completion, complete, type TokenLogprob } from "./complete.js";
export { embed, type PoolOptions } from "./embed.js";
export { Engine } from "./engine.js";
export type { EngineOptions, EngineStats, OpenOptions, SubmitOptions } from "./engine-options.js";
export { type GenerateOptions, generate } from "./generate.js";
export { type KvDType, KvPages, type KvPagesOptions } from "./kv-pages.js";
export type { Prompt, TextPrompt } from "./prompt.js";
export type { RowRules, RulesOf } from "./row-rules.js";
export type { DrawOptions } from "./sampling.js";
export { type Score, type ScoreOptions, score } from "./score.js";
export type { TextOptions } from "./settings.js";
export type { AdapterUse, StepAdapters } from "./step-adapters.js";
