// Low-rank adapters over frozen layers.
export { type ApplyLoraOptions, applyLora } from "./inject.js";
export { type LinearLike, LoraLinear, type LoraOptions } from "./lora-linear.js";
