// bitsandbytes.functional: quantization and its parts, and optimizer updates, under their camelCase names.
export {
  createDynamicMap,
  createFp8Map,
  createLinearMap,
  createNormalMap,
  type Dequantize4bitOptions,
  type DequantizeBlockwiseOptions,
  dequantize4bit,
  dequantizeBlockwise,
  dequantizeFp4,
  dequantizeNf4,
  get4bitType,
  type Quantize4bitOptions,
  type QuantizeBlockwiseOptions,
  QuantState,
  type QuantStorage,
  type QuantType,
  quantize4bit,
  quantizeBlockwise,
  quantizeFp4,
  quantizeNf4,
} from "./ops/index.js";
export { type OptimizerUpdateOptions, optimizerUpdate8bitBlockwise, optimizerUpdate32bit } from "./optim/index.js";
