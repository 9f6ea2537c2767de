// Blockwise 8-bit quantization: quantizeBlockwise and dequantizeBlockwise, and the double quantization of scales.
import { addon } from "../tensor/addon.js";
import { aBoolean, aTensor, checkArgument, checkTensor } from "../tensor/checks.js";
import { dtypeCode } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";
import { aliasMap, dynamicMap, mapKind } from "./codebooks.js";
import { aBlocksize } from "./quant-checks.js";
import { aQuantState, QuantState } from "./quant-state.js";

/** Options of `quantizeBlockwise`. */
export interface QuantizeBlockwiseOptions {
  /** float32 [256], finite and ascending; default the signed dynamic map. */
  code?: Tensor;
  /** 64, 128, ... 4096; default 4096. */
  blocksize?: number;
  /** Quantizes the scales, too, with the same blocksize. Default false. */
  nested?: boolean;
  /** Receives the float32 scales [blocks]. */
  absmax?: Tensor;
  /** Receives the codes, uint8 of A's shape. */
  out?: Tensor;
}
const quantizeOptions = optionTable<QuantizeBlockwiseOptions>({
  code: aTensor,
  blocksize: aBlocksize,
  nested: aBoolean,
  absmax: aTensor,
  out: aTensor,
});

/**
 * Quantizes a tensor to 8 bits in blocks of its flattened elements: each block is divided by its largest magnitude and
 * each element becomes the index of the nearest value of the map, a tie going to the even index.
 *
 * Returns the codes, uint8 of A's shape, and the state that dequantizes them; both belong to the caller. A block with
 * an element that is not finite gets the scale NaN. Not differentiable.
 *
 * @example
 * const [codes, state] = quantizeBlockwise(x, { blocksize: 256 });
 * const approximation = dequantizeBlockwise(codes, { quantState: state });
 */
export function quantizeBlockwise(
  A: Tensor,
  options: QuantizeBlockwiseOptions = {},
): [codes: Tensor, state: QuantState] {
  checkTensor("quantizeBlockwise", "A", A);
  checkOptions("quantizeBlockwise", options, quantizeOptions);
  const { blocksize = 4096, nested = false, code } = options;
  const kind = code ? mapKind("quantizeBlockwise", code) : "signed";
  const [codes, absmax] = run(
    addon.quantizeBlockwise,
    A,
    kind === "custom" ? (code as Tensor) : null,
    kind === "signed",
    null,
    blocksize,
    options.absmax ?? null,
    options.out ?? null,
  );
  const statistics = nested ? quantizeScales(absmax, blocksize) : { absmax };
  const map = code ? aliasMap(code) : dynamicMap(true, A.device);
  const state = new QuantState({ ...statistics, code: map, blocksize, dtype: A.dtype });
  if (!options.out) return [codes, state];
  codes.dispose();
  return [options.out, state];
}

/** @internal Double quantization: takes the scales over and gives their codes, offset and second-level state. */
export function quantizeScales(
  scales: Tensor,
  blocksize: number,
): { absmax: Tensor; offset: Tensor; state2: QuantState } {
  const [offset] = run(addon.meanFloat64, scales);
  const [codes, absmax] = run(addon.quantizeBlockwise, scales, null, true, offset, blocksize, null, null);
  const code = dynamicMap(true, scales.device);
  scales.dispose();
  return { absmax: codes, offset, state2: new QuantState({ absmax, code, blocksize, dtype: "float32" }) };
}

/**
 * The float32 scales of a state [blocks]: a new tensor, computed when they are quantized themselves.
 */
export function expandAbsmax(state: QuantState): Tensor {
  checkArgument("expandAbsmax", "state", state, aQuantState);
  if (!state.nested) return state.absmax.detach();
  return run(addon.expandScales, state.scales)[0];
}

/** Options of `dequantizeBlockwise`: a state, or what it would say. */
export interface DequantizeBlockwiseOptions {
  /** As `quantizeBlockwise` returned it. Without it `absmax` is needed. */
  quantState?: QuantState;
  /** Scales, float32 [blocks]; the result is then float32 unless `out` says otherwise. */
  absmax?: Tensor;
  /** Used without a state: float32 [256]; default the signed dynamic map. */
  code?: Tensor;
  /** Used without a state; default 4096. */
  blocksize?: number;
  /** Receives the result; it has A's shape and any float dtype. */
  out?: Tensor;
}
const dequantizeOptions = optionTable<DequantizeBlockwiseOptions>({
  quantState: aQuantState,
  absmax: aTensor,
  code: aTensor,
  blocksize: aBlocksize,
  out: aTensor,
});

/** The values of 8-bit codes: `code[A] * scale`, one rounding to the state's dtype. Not differentiable. */
export function dequantizeBlockwise(A: Tensor, options: DequantizeBlockwiseOptions = {}): Tensor {
  checkTensor("dequantizeBlockwise", "A", A);
  checkOptions("dequantizeBlockwise", options, dequantizeOptions);
  const { out } = options;
  const state = options.quantState ?? plainState(A, options);
  try {
    const dtype = dtypeCode(out?.dtype ?? state.dtype);
    const [y] = run(addon.dequantizeBlockwise, A, state.code, state.scales, dtype, out ?? null);
    if (!out) return y;
    y.dispose();
    return out;
  } finally {
    if (state !== options.quantState) state.dispose();
  }
}

// What the options say in place of a state.
function plainState(A: Tensor, options: DequantizeBlockwiseOptions): QuantState {
  const { absmax, code, blocksize = 4096 } = options;
  if (!absmax) throw new BnbError("ERR_BNB_ARGUMENT", "dequantizeBlockwise: quantState or absmax must be given");
  const map = code ? aliasMap(code) : dynamicMap(true, A.device);
  return new QuantState({ absmax: absmax.detach(), code: map, blocksize, dtype: "float32" });
}
