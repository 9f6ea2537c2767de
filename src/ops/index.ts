// The differentiable functions and their relatives, one line per family, and the methods they give to Tensor.
import "./methods.js";

export type { ActivationQuant } from "./activation-quant.js";
export * from "./attention.js";
export * from "./cast.js";
export { type ChooseExpertsOptions, chooseExperts, type ExpertChoice } from "./choose-experts.js";
export * from "./clamp.js";
export {
  createDynamicMap,
  createFp8Map,
  createLinearMap,
  createNormalMap,
  get4bitType,
  type QuantType,
  quantTypes,
} from "./codebooks.js";
export * from "./cross-entropy.js";
export * from "./dropout.js";
export * from "./elementwise.js";
export * from "./embedding.js";
export { embedding4bit } from "./embedding-4bit.js";
export { expertsSwiglu, expertWeights } from "./experts-swiglu.js";
export {
  embedding8bit,
  type Int8MmDequantOptions,
  type Int8QuantOptions,
  Int8Rows,
  int8LinearMatmul,
  int8MmDequant,
  int8VectorwiseDequant,
  int8VectorwiseQuant,
  type Matmul8bitOptions,
  matmul8bit,
} from "./int8.js";
export * from "./int8-double-quant.js";
export { type KvLayer, kvAppend, type TokenRotary } from "./kv-append.js";
export * from "./layer-norm.js";
export {
  gemv4bit,
  linear4bit,
  linear4bitEach,
  linear4bitSwiglu,
  type Matmul4bitOptions,
  matmul4bit,
} from "./linear-4bit.js";
export { loraRows } from "./lora-rows.js";
export { bceWithLogitsLoss, type LossOptions, l1Loss, mseLoss } from "./losses.js";
export * from "./matmul.js";
export { type MatmulLtOptions, MatmulLtState } from "./matmul-lt.js";
export * from "./packed-dict.js";
export * from "./paged-attention.js";
export { type PackedQuantState, QuantState, type QuantStateDict, type QuantStateInit } from "./quant-state.js";
export {
  type Dequantize4bitOptions,
  dequantize4bit,
  dequantizeFp4,
  dequantizeNf4,
  type Quantize4bitOptions,
  type QuantStorage,
  quantize4bit,
  quantizeFp4,
  quantizeNf4,
} from "./quantize-4bit.js";
export {
  type DequantizeBlockwiseOptions,
  dequantizeBlockwise,
  expandAbsmax,
  type QuantizeBlockwiseOptions,
  quantizeBlockwise,
} from "./quantize-blockwise.js";
export {
  defaultGenerator,
  Generator,
  type GeneratorState,
  manualSeed,
  type RandomOptions,
  rand,
  randint,
  randn,
} from "./random.js";
export * from "./reduce.js";
export * from "./rms-norm.js";
export * from "./rope.js";
export { type SampleTokenOptions, type SamplingOptions, sampleToken } from "./sample-token.js";
export * from "./sample-tokens.js";
export * from "./shape.js";
export * from "./softmax.js";
export * from "./softplus.js";
export * from "./swiglu.js";
export * from "./to-device.js";
