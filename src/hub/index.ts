// The public names of bitsandbytes-node/hub: what lies on disk.
export {
  BitsAndBytesConfig,
  type BitsAndBytesConfigOptions,
  type QuantizationConfigJson,
} from "./bits-and-bytes-config.js";
export { openCheckpoint } from "./checkpoint.js";
export { type FileDType, fileTypes } from "./file-dtype.js";
export type { GenerationConfig } from "./generation-config.js";
export type { ResponseFormat } from "./grammars.js";
export { type LoadCheckpointOptions, type LoadProgress, loadCheckpoint } from "./load-checkpoint.js";
export type { QuantizationLoss } from "./quantization-loss.js";
export {
  type FileTensor,
  type SaveOptions,
  saveSafetensors,
  type WritableTensor,
  type WritableTensors,
} from "./safetensors-writer.js";
export { type SaveCheckpointOptions, saveCheckpoint } from "./save-checkpoint.js";
export type { LoadOptions, TensorInfo, TensorSource } from "./source.js";
export {
  AutoTokenizer,
  type ChatMessage,
  type ChatTemplateOptions,
  type DecodeOptions,
  type EncodeOptions,
  type Tokenizer,
  type TokenizerOptions,
} from "./tokenizer.js";
