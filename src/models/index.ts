// Language models: ids to logits, in one piece with gradients or step by step over pages.
export { AutoModelForCausalLM } from "./auto.js";
export { CausalLM, type ForwardOptions, type ModelConfig } from "./causal-lm.js";
export { type DequantizeOptions, dequantizeModel } from "./dequantize.js";
export { LlamaForCausalLM } from "./llama.js";
export { LlamaConfig, type LlamaConfigOptions } from "./llama-config.js";
export type { Family, FromPretrainedOptions, FromPretrainedProgress } from "./load.js";
export type { ModelOptions } from "./parts/model-options.js";
export type { Pass, Rotary, Scores } from "./pass.js";
export { type SavePretrainedOptions, savePretrained } from "./save.js";
export { seededRandom, type Uniform } from "./seeded-random.js";
export type { KvStore, LayerLayout, StepPlan } from "./step-plan.js";
