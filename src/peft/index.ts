// The public names of adapters (LoRA as Python's peft does it).
export type { MergeLoss } from "./adapter-layer.js";
export { AdapterSet } from "./adapter-set.js";
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
export { PeftModel } from "./peft-model.js";
export type {
  AddAdapterOptions,
  LoadAdapterOptions,
  MergeOptions,
  ParameterCount,
  PeftFromPretrainedOptions,
  SavePeftOptions,
  WeightedOptions,
} from "./peft-options.js";
