// Where tensors come from, one by one: a file, a folder of files, a state dict. A model asks for what it needs and
// quantizes as it goes, so that a checkpoint is never in memory as a whole.
import { aDevice, aFloatDType } from "../tensor/checks.js";
import type { DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import type { FileDType } from "./file-dtype.js";

/** A stored tensor as the head of its file describes it; nothing of its elements has been read. */
export interface TensorInfo {
  readonly dtype: FileDType;
  readonly shape: readonly number[];
  readonly nbytes: number;
  /** The file that holds it, as in error messages. */
  readonly file: string;
}

/** Where a stored tensor goes, and as what. */
export interface LoadOptions {
  /** Default: the default device. */
  readonly device?: DeviceLike;
  /** float32, float16 or bfloat16, to which floats are converted; other types refuse it. Default: that of the file. */
  readonly dtype?: DType;
}

/** @internal For every `load`. */
export const loadChecks = optionTable<LoadOptions>({ device: aDevice, dtype: aFloatDType });

/** A lazy source of tensors by name. */
export interface TensorSource {
  names(): IterableIterator<string>;
  has(name: string): boolean;
  /** Type, shape and place of a tensor, without reading it. Throws ERR_BNB_FORMAT for an unknown name. */
  info(name: string): TensorInfo;
  /**
   * The tensor, read off the JavaScript thread straight into the memory of `device`; the caller disposes it. BOOL
   * becomes uint8, I64 int32 (values must fit), F8_E4M3 and F8_E5M2 are widened to `dtype`, or float32. Rejects with ERR_BNB_DTYPE
   * for a type that tensors do not have, ERR_BNB_FILE when the file changed or cannot be read.
   */
  load(name: string, options?: LoadOptions): Promise<Tensor>;
  /** The bytes of a tensor of any type, or those from `begin` to before `end`, in memory of JavaScript. */
  bytes(name: string, begin?: number, end?: number): Promise<Uint8Array>;
  close(): Promise<void>;
}
