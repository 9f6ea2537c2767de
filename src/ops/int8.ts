// LLM.int8(): vector-wise quantization, exact integer products, and the linear product with outlier columns in
// floating point (Dettmers et al. 2022, arXiv:2208.07339).
import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { aDType, aNumber, aTensor, orNull } from "../tensor/checks.js";
import type { DType } from "../tensor/dtype.js";
import { dtypeCode } from "../tensor/dtype.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Owner } from "../tensor/scope.js";
import { owned } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { moveInto } from "./move-into.js";

/** @internal The indices of the ones of a mask. */
export function markedColumns(mask: ArrayLike<number>): Int32Array {
  return Int32Array.from(Array.from(mask, (_, i) => i).filter((i) => mask[i] === 1));
}

/** Row-wise int8 codes with their scales; dispose it when it is not returned from a `tidy`. */
export class Int8Rows implements Owner {
  /** int8 [..., K], zero in outlier columns. */
  readonly codes: Tensor;
  /** float32 [rows]: absmax of each row, not divided by 127. */
  readonly stats: Tensor;
  /** uint8 [K], 1 in outlier columns; null when the threshold was 0. */
  readonly outlierMask: Tensor | null;

  /** @internal */
  constructor(codes: Tensor, stats: Tensor, outlierMask: Tensor | null) {
    this.codes = codes;
    this.stats = stats;
    this.outlierMask = outlierMask;
  }

  /** Indices of the outlier columns, ascending; null when the threshold was 0. Reading them waits for the device. */
  async outlierCols(): Promise<Int32Array | null> {
    return this.outlierMask && markedColumns(await this.outlierMask.data());
  }

  dispose(): void {
    this.codes.dispose();
    this.stats.dispose();
    this.outlierMask?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal */
  [owned](): Iterable<unknown> {
    return [this.codes, this.stats, this.outlierMask];
  }
}

/** Options of `int8VectorwiseQuant`. */
export interface Int8QuantOptions {
  /** Elements of at least this magnitude are outliers; 0 has none. Default 0. */
  threshold?: number;
}
const quantOptions = optionTable<Int8QuantOptions>({ threshold: aNumber });

/**
 * Quantizes each row of A [..., K] (float32, float16 or bfloat16) to int8: `q = rne(a * 127 / absmax(row))`.
 *
 * With `threshold` > 0, elements with |a| >= threshold are outliers: they do not count for the absmax, and every
 * column that holds one is 0 in the codes. A row with NaN (or infinity, without a threshold) gets stats NaN and
 * codes 0. Throws ERR_BNB_OPTION for a negative threshold.
 */
export function int8VectorwiseQuant(A: Tensor, options: Int8QuantOptions = {}): Int8Rows {
  checkOptions("int8VectorwiseQuant", options, quantOptions);
  const [codes, stats, mask] = run(addon.int8QuantizeRows, A, options.threshold ?? 0);
  return new Int8Rows(codes, stats, mask);
}

/** `codes * stats / 127` row by row, as float32 [..., K]. */
export function int8VectorwiseDequant(codes: Tensor, stats: Tensor): Tensor {
  return run(addon.int8DequantizeRows, codes, stats, null, dtypeCode("float32"))[0];
}

/** Rows of an int8 table as floating point: `codes[id] * stats[id] / 127`, [...ids.shape, K]. No gradient. */
export function embedding8bit(ids: Tensor, codes: Tensor, stats: Tensor, dtype: DType = "float32"): Tensor {
  return run(addon.int8DequantizeRows, codes, stats, ids, dtypeCode(dtype))[0];
}

/**
 * The exact int32 product A [..., K] @ B [N, K]^T of int8 codes; `out`, int32 [..., N], receives it where given. Throws
 * ERR_BNB_SHAPE when K exceeds 131071.
 */
export function int8LinearMatmul(A: Tensor, B: Tensor, options: { out?: Tensor } = {}): Tensor {
  checkOptions("int8LinearMatmul", options, outOptions);
  const [y] = run(addon.int8Matmul, A, B);
  return options.out ? moveInto("int8LinearMatmul", y, options.out) : y;
}

const outOptions = optionTable<{ out?: Tensor }>({ out: aTensor });

/** Options of `int8MmDequant`. */
export interface Int8MmDequantOptions {
  /** [N], any float dtype. */
  bias?: Tensor | null;
  /** dtype of the result; default that of `out`, else float16. */
  dtype?: DType;
  /** Receives the result, of A's shape. */
  out?: Tensor;
}
const mmDequantOptions = optionTable<Int8MmDequantOptions>({ bias: orNull(aTensor), dtype: aDType, out: aTensor });

/**
 * `A * rowStats * colStats / 127^2 + bias`: the int32 product A [..., N] as floating point. rowStats float32 [M],
 * colStats float32 [N], bias [N] of any float dtype; the sum is rounded once to `dtype`, default float16.
 */
export function int8MmDequant(
  A: Tensor,
  rowStats: Tensor,
  colStats: Tensor,
  options: Int8MmDequantOptions = {},
): Tensor {
  checkOptions("int8MmDequant", options, mmDequantOptions);
  const { bias = null, out, dtype = out?.dtype ?? "float16" } = options;
  const [y] = run(addon.int8DequantizeProduct, A, rowStats, colStats, bias, dtypeCode(dtype));
  return out ? moveInto("int8MmDequant", y, out) : y;
}

/** Options of `matmul8bit`. */
export interface Matmul8bitOptions {
  /** [N], any float dtype. */
  bias?: Tensor | null;
  /** Activations of at least this magnitude make their column an outlier; 0 quantizes everything. Default 0. */
  threshold?: number;
  /** The unquantized weight [N, K]: used in outlier columns and for the gradients, where it is kept. */
  weight?: Tensor | null;
}
const matmulOptions = optionTable<Matmul8bitOptions>({
  bias: orNull(aTensor),
  threshold: aNumber,
  weight: orNull(aTensor),
});

/**
 * `x [..., K] @ W [N, K]^T + bias` with W given as row-wise int8 codes CB [N, K] and absmax SCB [N]. Activations are
 * quantized row-wise; the result has the dtype of x and is rounded once. Outlier columns depend on all rows of the
 * call. Gradients: for x through the dequantized codes (through `weight` where given), for `weight` and bias in
 * floating point, none for the codes.
 */
export function matmul8bit(x: Tensor, CB: Tensor, SCB: Tensor, options: Matmul8bitOptions = {}): Tensor {
  checkOptions("matmul8bit", options, matmulOptions);
  return int8Linear(x, CB, SCB, options.weight ?? null, options.bias ?? null, options.threshold ?? 0);
}

type Saved = [x: Tensor | null, codes: Tensor, stats: Tensor, weight: Tensor | null, biasDtype: DType | null];

const int8Linear = defineOp({
  name: "int8Linear",

  forward(
    ctx: OpContext<Saved>,
    x: Tensor,
    codes: Tensor,
    stats: Tensor,
    weight: Tensor | null,
    bias: Tensor | null,
    threshold: number,
  ) {
    const [y] = run(addon.int8Linear, x, codes, stats, weight, bias, threshold);
    ctx.save(ctx.needs(3) ? x : null, codes, stats, weight, bias && ctx.needs(4) ? bias.dtype : null);
    return y;
  },

  backward(ctx, dy) {
    const [x, codes, stats, weight, biasDtype] = ctx.saved;
    const biasGrad = biasDtype && run(addon.sumTo, dy, dy.shape.slice(-1), dtypeCode(biasDtype))[0];
    if (!weight) {
      const dx = ctx.needs(0) ? run(addon.int8LinearBackward, dy, codes, stats)[0] : null;
      return [dx, null, null, null, biasGrad];
    }
    // With the original weight the gradients are those of an ordinary linear layer.
    const dx = ctx.needs(0) ? inputGradient(dy, weight) : null;
    return [dx, null, null, x && weightGradient(dy, x, weight.dtype), biasGrad];
  },
});

// dy w, in the dtype of dy.
function inputGradient(dy: Tensor, weight: Tensor): Tensor {
  const [rows] = run(addon.matmul, asRows(dy), castTo(weight, dy.dtype), false, false);
  return view(rows, [...dy.shape.slice(0, -1), weight.shape[1] as number]);
}

// dy^T x, rounded once: where the weight has another dtype than x, the product is made in float32.
function weightGradient(dy: Tensor, x: Tensor, dtype: DType): Tensor {
  const inner = dtype === x.dtype ? dtype : "float32";
  const [dw] = run(addon.matmul, castTo(asRows(dy), inner), castTo(asRows(x), inner), true, false);
  return castTo(dw, dtype);
}

function asRows(x: Tensor): Tensor {
  const columns = x.shape[x.ndim - 1] as number;
  return view(x, [x.shape.slice(0, -1).reduce((n, size) => n * size, 1), columns]);
}

function view(x: Tensor, shape: readonly number[]): Tensor {
  return run(addon.view, x, shape, dtypeCode(x.dtype), 0)[0];
}

function castTo(x: Tensor, dtype: DType): Tensor {
  return x.dtype === dtype ? x : run(addon.cast, x, dtypeCode(dtype))[0];
}
