// The public names of bitsandbytes-node/nn.

export { uninitialized } from "../tensor/placeholder.js";
export * from "./activations.js";
export * from "./containers.js";
export * from "./dropout.js";
export * from "./embedding.js";
export * from "./embedding-4bit.js";
export * from "./embedding-8bit.js";
export * as init from "./init.js";
export * from "./int8-params.js";
export * from "./layer-norm.js";
export * from "./linear.js";
export * from "./linear-4bit.js";
export * from "./linear-8bit.js";
export {
  type LoadResult,
  type Member,
  Module,
  type StateDict,
  type StateSource,
  snakeCase,
} from "./module.js";
export * from "./outliers.js";
export * from "./parameter.js";
export * from "./parametrize.js";
export { Params4bit, type Params4bitOptions, type Quantization, type WeightHolder } from "./params-4bit.js";
export * from "./replace.js";
export * from "./rms-norm.js";
export * from "./together.js";
