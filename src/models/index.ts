// Models: language models, ids to logits, in one piece with gradients or step by step over pages; encoders and classifiers.
export { AutoModelForCausalLM, type CausalLMOptions } from "./auto.js";
export { AutoModel, AutoModelForSequenceClassification } from "./auto-model.js";
export { CausalLM, type ForwardOptions } from "./causal-lm.js";
export type { PlacementOptions } from "./decide-placement.js";
export { type DequantizeOptions, dequantizeModel } from "./dequantize.js";
export type { DeviceMap, Place } from "./device-map.js";
export { type EmbedOptions, Encoder, type EncoderConfig, type WholeTextOptions } from "./encoder.js";
export { LlamaForCausalLM } from "./llama.js";
export { LlamaConfig, type LlamaConfigOptions } from "./llama-config.js";
export type { Family, FromPretrainedOptions, FromPretrainedProgress } from "./load.js";
export type { ModelOptions } from "./parts/model-options.js";
export type { Pass, Rotary, Scores } from "./pass.js";
export type { Pooling } from "./pooling.js";
export type { HeadFormat, OutputProjection } from "./quantized-head.js";
export { type SavePretrainedOptions, savePretrained } from "./save.js";
export { seededRandom, type Uniform } from "./seeded-random.js";
export {
  type Classification,
  type Labels,
  SequenceClassifier,
  type TextPair,
} from "./sequence-classifier.js";
export type { KvStore, LayerLayout, StepPlan } from "./step-plan.js";
export { type ModelConfig, TextModel } from "./text-model.js";
