// bitsandbytes' int8 `matmul` with the state that it keeps between calls: the codes of a weight.
import { isGradEnabled } from "../autograd/no-grad.js";
import { aNumberIn, anInstance, aTensor, orNull } from "../tensor/checks.js";
import { isFloat } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Owner } from "../tensor/scope.js";
import { keep, owned } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { int8VectorwiseQuant, matmul8bit } from "./int8.js";
import { moveInto } from "./move-into.js";

/**
 * What a product with an int8 weight keeps: its codes and scales. It owns them: `dispose()` or `resetGrads()` frees them.
 */
export class MatmulLtState implements Owner, Disposable {
  /** int8 [N, K], the codes of the weight; null before the first product unless they are given. */
  CB: Tensor | null = null;
  /** float32 [N], absmax of each row of the weight. */
  SCB: Tensor | null = null;
  /** Activations of at least this magnitude are multiplied in floating point; 0 is never. */
  threshold = 0;
  /** True: the codes follow the float weight, which learns and serves outlier columns. False: they are made once. */
  hasFp16Weights = true;
  /** Kept for compatibility: products and codes are the same in training and in evaluation. */
  isTraining = true;
  /** uint8 [K], 1 in the columns of x that were outliers in the last `matmul` with a threshold; null before. */
  idx: Tensor | null = null;
  // What the codes were made from: they are made anew when its version is another.
  #source: { weight: Tensor; version: number } | null = null;

  /** Forgets the codes, so that the next product makes them anew. */
  resetGrads(): void {
    this.CB?.dispose();
    this.SCB?.dispose();
    this.CB = null;
    this.SCB = null;
    this.#source = null;
  }

  /** @internal The codes and scales of a weight [N, K]: those it has, or new ones where the weight has changed. */
  codesOf(weight: Tensor): [codes: Tensor, stats: Tensor] {
    const { CB, SCB } = this;
    const source = this.#source;
    const follows = this.hasFp16Weights && isFloat(weight.dtype);
    const isCurrent = !follows || (source?.weight === weight && source.version === weight.version);
    if (CB && SCB && isCurrent) return [CB, SCB];
    if (!isFloat(weight.dtype)) {
      throw new BnbError(
        "ERR_BNB_DTYPE",
        `matmul: B must be a float weight unless state has CB and SCB, got ${weight}`,
      );
    }
    this.resetGrads();
    const rows = int8VectorwiseQuant(weight);
    this.CB = keep(rows.codes);
    this.SCB = keep(rows.stats);
    this.#source = { weight, version: weight.version };
    return [this.CB, this.SCB];
  }

  /** @internal Notes the outlier columns of activations. */
  noteOutliers(x: Tensor): void {
    this.idx?.dispose();
    const { codes, stats, outlierMask } = int8VectorwiseQuant(x, { threshold: this.threshold });
    codes.dispose();
    stats.dispose();
    this.idx = outlierMask && keep(outlierMask);
  }

  dispose(): void {
    this.resetGrads();
    this.idx?.dispose();
    this.idx = null;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal */
  [owned](): Iterable<unknown> {
    return [this.CB, this.SCB, this.idx];
  }
}

/** Options of `functional.matmul`, the product of LLM.int8(). */
export interface MatmulLtOptions {
  /** Keeps the codes of B between calls; without it they are made and dropped. */
  state?: MatmulLtState | null;
  /** Above 0 it becomes the threshold of the state. Default 0: that of the state. */
  threshold?: number;
  /** [N], any float dtype. */
  bias?: Tensor | null;
  /** Receives the result, of A's dtype; then nothing is recorded for `backward()`. */
  out?: Tensor | null;
}
const matmulLtOptions = optionTable<MatmulLtOptions>({
  state: orNull(anInstance(() => MatmulLtState, "a MatmulLtState")),
  threshold: aNumberIn(0),
  bias: orNull(aTensor),
  out: orNull(aTensor),
});

/**
 * `A [..., K] @ B [N, K]^T + bias` in int8, as `bitsandbytes.matmul`: B is the float weight, or anything when the state
 * holds codes and `hasFp16Weights` is false. The result has the dtype of A. Gradients as `matmul8bit` gives them; B gets
 * one with `hasFp16Weights`. Exported as `functional.matmul`: the package's own `matmul` is the float product.
 *
 * @example
 * using state = new functional.MatmulLtState();
 * const y = functional.matmul(x, weight, { state, threshold: 6, bias });
 */
export function matmulLt(A: Tensor, B: Tensor, options: MatmulLtOptions = {}): Tensor {
  checkOptions("matmul", options, matmulLtOptions);
  const { threshold = 0, bias = null, out = null } = options;
  const records = isGradEnabled() && [A, B, bias].some((t) => t?.requiresGrad === true);
  if (out && records) {
    throw new BnbError("ERR_BNB_ARGUMENT", "matmul: out cannot be given when a gradient is wanted");
  }
  const state = options.state ?? new MatmulLtState();
  try {
    if (threshold > 0) state.threshold = threshold;
    const [codes, stats] = state.codesOf(B);
    const weight = state.hasFp16Weights && isFloat(B.dtype) ? B : null;
    const y = matmul8bit(A, codes, stats, { bias, threshold: state.threshold, weight });
    if (state.threshold > 0 && options.state) state.noteOutliers(A);
    return out ? moveInto("matmul", y, out) : y;
  } finally {
    if (!options.state) state.dispose();
  }
}
