// Blockwise 4-bit quantization: quantize4bit and dequantize4bit.
import { addon } from "../tensor/addon.js";
import { aBoolean, aDType, aTensor, checkTensor } from "../tensor/checks.js";
import type { DType } from "../tensor/dtype.js";
import { dtypeCode } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";
import type { QuantType } from "./codebooks.js";
import { quantTypeCode } from "./codebooks.js";
import { aBlocksize, aQuantStorage, aQuantType } from "./quant-checks.js";
import { aQuantState, QuantState } from "./quant-state.js";
import { quantizeScales } from "./quantize-blockwise.js";

/** What the packed bytes are declared as; the bytes are the same. */
export type QuantStorage = "uint8" | "int8" | "float16" | "bfloat16" | "float32" | "float64";

/** Options of `quantize4bit`. */
export interface Quantize4bitOptions {
  /** 32, 64, ... 4096; default 64. */
  blocksize?: number;
  /** Quantizes the scales, too: 4.127 bits a weight instead of 4.5 with blocks of 64. Default false. */
  compressStatistics?: boolean;
  /** Default "fp4". */
  quantType?: QuantType;
  /** Default "uint8". */
  quantStorage?: QuantStorage;
  /** Receives the float32 scales [blocks]. */
  absmax?: Tensor;
  /** Receives the packed bytes; of any storage dtype. */
  out?: Tensor;
}
type TypedQuantizeOptions = Omit<Quantize4bitOptions, "quantType">;
const typedQuantizeChecks = {
  blocksize: aBlocksize,
  compressStatistics: aBoolean,
  quantStorage: aQuantStorage,
  absmax: aTensor,
  out: aTensor,
};
const typedQuantizeOptions = optionTable<TypedQuantizeOptions>(typedQuantizeChecks);
const quantizeOptions = optionTable<Quantize4bitOptions>({ ...typedQuantizeChecks, quantType: aQuantType });

/**
 * Quantizes a tensor to 4 bits in blocks of its flattened elements: each block is divided by its largest magnitude and
 * each element becomes the nearest code of the table.
 *
 * Returns the packed codes, two a byte with the first in the high half, as [bytes / size of quantStorage, 1], and the
 * state that dequantizes them; both belong to the caller. A block with an element that is not finite gets the scale
 * NaN. Not differentiable.
 *
 * @example
 * const [packed, state] = quantize4bit(weight, { quantType: "nf4", compressStatistics: true });
 * const approximation = dequantize4bit(packed, { quantState: state });
 */
export function quantize4bit(A: Tensor, options: Quantize4bitOptions = {}): [packed: Tensor, state: QuantState] {
  checkTensor("quantize4bit", "A", A);
  checkOptions("quantize4bit", options, quantizeOptions);
  const { blocksize = 64, quantType = "fp4", quantStorage = "uint8", compressStatistics = false } = options;
  const type = quantTypeCode("quantize4bit", quantType);
  const storage = options.out?.dtype ?? quantStorage;
  const [packed, absmax] = run(
    addon.quantize4bit,
    A,
    blocksize,
    type,
    dtypeCode(storage),
    options.absmax ?? null,
    options.out ?? null,
  );
  const statistics = compressStatistics ? quantizeScales(absmax, 256) : { absmax };
  const state = new QuantState({ ...statistics, shape: A.shape, blocksize, quantType, dtype: A.dtype });
  if (!options.out) return [packed, state];
  packed.dispose();
  return [options.out, state];
}

/** Options of `dequantize4bit`: a state, or what it would say. */
export interface Dequantize4bitOptions {
  /** As `quantize4bit` returned it. Without it `absmax` and `out` are needed. */
  quantState?: QuantState;
  /** Scales, float32; `out` then says the shape and dtype. */
  absmax?: Tensor;
  /** Receives the result; it has the shape of the unquantized tensor. */
  out?: Tensor;
  /** Used without a state; default 64. */
  blocksize?: number;
  /** Used without a state; default "fp4". */
  quantType?: QuantType;
  /** dtype of the result; default that of the state. */
  dtype?: DType;
}
type TypedDequantizeOptions = Omit<Dequantize4bitOptions, "quantType">;
const typedDequantizeChecks = {
  quantState: aQuantState,
  absmax: aTensor,
  out: aTensor,
  blocksize: aBlocksize,
  dtype: aDType,
};
const typedDequantizeOptions = optionTable<TypedDequantizeOptions>(typedDequantizeChecks);
const dequantizeOptions = optionTable<Dequantize4bitOptions>({ ...typedDequantizeChecks, quantType: aQuantType });

/** The values of a packed 4-bit tensor: `table[code] * scale`, one rounding to the dtype. Not differentiable. */
export function dequantize4bit(A: Tensor, options: Dequantize4bitOptions = {}): Tensor {
  checkTensor("dequantize4bit", "A", A);
  checkOptions("dequantize4bit", options, dequantizeOptions);
  const { quantState, absmax, out } = options;
  let state = quantState;
  if (!state) {
    if (!absmax || !out) {
      throw new BnbError("ERR_BNB_ARGUMENT", "dequantize4bit: quantState, or absmax and out, must be given");
    }
    const { blocksize = 64, quantType = "fp4" } = options;
    quantTypeCode("dequantize4bit", quantType);
    if (quantType === "af4" && blocksize !== 64) {
      throw new BnbError("ERR_BNB_OPTION", `dequantize4bit: af4 needs blocksize 64, got ${blocksize}`);
    }
    state = new QuantState({ absmax: absmax.detach(), shape: out.shape, blocksize, quantType, dtype: out.dtype });
  }
  try {
    const weight = state.quantized(A);
    try {
      const dtype = options.dtype ?? out?.dtype ?? state.dtype;
      const [y] = run(addon.dequantize4bit, weight, dtypeCode(dtype), out ?? null);
      if (!out) return y;
      y.dispose();
      return out;
    } finally {
      weight.dispose();
    }
  } finally {
    if (!quantState) state.dispose();
  }
}

/** `quantize4bit` with the type nf4. */
export function quantizeNf4(A: Tensor, options: TypedQuantizeOptions = {}): [packed: Tensor, state: QuantState] {
  checkOptions("quantizeNf4", options, typedQuantizeOptions);
  return quantize4bit(A, { ...options, quantType: "nf4" });
}

/** `quantize4bit` with the type fp4. */
export function quantizeFp4(A: Tensor, options: TypedQuantizeOptions = {}): [packed: Tensor, state: QuantState] {
  checkOptions("quantizeFp4", options, typedQuantizeOptions);
  return quantize4bit(A, { ...options, quantType: "fp4" });
}

/** `dequantize4bit` with the type nf4. */
export function dequantizeNf4(A: Tensor, options: TypedDequantizeOptions = {}): Tensor {
  return dequantizeTyped("dequantizeNf4", "nf4", A, options);
}

/** `dequantize4bit` with the type fp4. */
export function dequantizeFp4(A: Tensor, options: TypedDequantizeOptions = {}): Tensor {
  return dequantizeTyped("dequantizeFp4", "fp4", A, options);
}

function dequantizeTyped(op: string, quantType: QuantType, A: Tensor, options: TypedDequantizeOptions): Tensor {
  checkOptions(op, options, typedDequantizeOptions);
  const type = options.quantState?.quantType;
  if (type !== undefined && type !== quantType) {
    throw new BnbError("ERR_BNB_ARGUMENT", `${op}: quantState must be of type ${quantType}, got ${type ?? "8 bits"}`);
  }
  return dequantize4bit(A, { ...options, quantType });
}
