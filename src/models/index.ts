// Language models and their generation of text.
export { AutoModelForCausalLM } from "./auto.js";
export type { CausalLM } from "./causal-lm.js";
export { type DequantizeOptions, dequantizeModel } from "./dequantize.js";
export { type GenerateOptions, generate, type Prompt } from "./generate.js";
export { KvCache, type KvCacheOptions } from "./kv-cache.js";
export {
  LlamaAttention,
  LlamaDecoderLayer,
  LlamaForCausalLM,
  type LlamaForwardOptions,
  LlamaMLP,
  LlamaModel,
  type LlamaOptions,
} from "./llama.js";
export { LlamaConfig, type LlamaConfigOptions } from "./llama-config.js";
export type { Family, FromPretrainedOptions, FromPretrainedProgress } from "./load.js";
export { type SavePretrainedOptions, savePretrained } from "./save.js";
export { seededRandom, type Uniform } from "./seeded-random.js";
