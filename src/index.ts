// The public names of the package.
export { backward } from "./autograd/backward.js";
export { defineOp, type GradsOf, type OpContext, type OpSpec } from "./autograd/define-op.js";
export { isGradEnabled, noGrad } from "./autograd/no-grad.js";
export * as functional from "./functional.js";
export * from "./generation/index.js";
export * as hub from "./hub/index.js";
export {
  AutoTokenizer,
  BitsAndBytesConfig,
  type BitsAndBytesConfigOptions,
  type ChatMessage,
  type GenerationConfig,
  type Tokenizer,
} from "./hub/index.js";
export * from "./models/index.js";
export * as nn from "./nn/index.js";
export * from "./ops/index.js";
export * as optim from "./optim/index.js";
export * from "./peft/index.js";
export {
  arange,
  empty,
  fromBytes,
  full,
  type NestedArray,
  ones,
  type TensorData,
  type TensorOptions,
  tensor,
  zeros,
} from "./tensor/create.js";
export {
  Device,
  type DeviceLike,
  defaultDevice,
  devices,
  gpuStatus,
  setDefaultDevice,
  synchronize,
} from "./tensor/device.js";
export { type DType, dtypes, type TypedArray } from "./tensor/dtype.js";
export { BnbError, type ErrorCode } from "./tensor/errors.js";
export { capture, Graph } from "./tensor/graph.js";
export { ExpertWeights, Quantized4Bit } from "./tensor/quantized.js";
export { type DeviceMemory, emptyCache, keep, type MemoryInfo, memory, tidy } from "./tensor/scope.js";
export { Tensor } from "./tensor/tensor.js";
export { getNumThreads, setNumThreads } from "./tensor/threads.js";
export * as train from "./train/index.js";
