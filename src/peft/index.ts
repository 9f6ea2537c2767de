// The public names of adapters (LoRA as Python's peft does it).
export type { MergeLoss } from "./adapter-layer.js";
export type { CombinationType } from "./combine.js";
export { type InitLoraWeights, LoraConfig, type LoraConfigOptions } from "./config.js";
export {
  type ApplyLoraOptions,
  applyLora,
  type GetPeftModelOptions,
  getPeftModel,
  prepareModelForKbitTraining,
} from "./get-peft-model.js";
export type { LoraOptions } from "./lora-adapter.js";
export { type LinearLike, LoraLinear } from "./lora-linear.js";
export {
  type AddAdapterOptions,
  type LoadAdapterOptions,
  type MergeOptions,
  type ParameterCount,
  type PeftFromPretrainedOptions,
  PeftModel,
  type SavePeftOptions,
  type WeightedOptions,
} from "./peft-model.js";
