// Int8Params: the weight of an 8-bit layer, float until it is quantized, then int8 codes with the scales of their rows.
import { noGrad } from "../autograd/no-grad.js";
import { int8VectorwiseQuant } from "../ops/int8.js";
import { aBoolean, aTensor, orNull } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { Parameter } from "./parameter.js";

/** Options of `new Int8Params`, the weight of `Linear8bitLt`. */
export interface Int8ParamsOptions {
  /** Default true; codes never learn. */
  requiresGrad?: boolean;
  /** Whether `quantize()` leaves the weight as it is. Default false. */
  hasFp16Weights?: boolean;
  /** int8 [N, K] codes that take the place of `data`; the parameter takes them over. */
  CB?: Tensor | null;
  /** float32 [N], absmax of each row of codes, which the parameter takes over: then `data`, or CB, must be the codes. */
  SCB?: Tensor | null;
}
const int8ParamsOptions = optionTable<Int8ParamsOptions>({
  requiresGrad: aBoolean,
  hasFp16Weights: aBoolean,
  CB: orNull(aTensor),
  SCB: orNull(aTensor),
});

/**
 * A weight for `Linear8bitLt`: floats, or int8 codes with `SCB`. A layer whose `weight` is set to codes takes them over
 * at its next forward.
 *
 * @example
 * layer.weight = new Int8Params(codes, { SCB: absmax });
 */
export class Int8Params extends Parameter {
  readonly hasFp16Weights: boolean;
  /** float32 [N], absmax of each row; null while the weight is float. */
  readonly SCB: Tensor | null;

  constructor(data: Tensor, options: Int8ParamsOptions = {}) {
    checkOptions("Int8Params", options, int8ParamsOptions);
    const { requiresGrad = true, hasFp16Weights = false, CB = null, SCB = null } = options;
    const codes = CB ?? data;
    if (SCB) checkCodes(codes, SCB);
    else if (CB) throw new BnbError("ERR_BNB_ARGUMENT", "Int8Params: CB and SCB must be given together, got CB alone");
    super(codes, { requiresGrad: requiresGrad && SCB === null });
    if (CB && CB !== data) data.dispose();
    this.hasFp16Weights = hasFp16Weights;
    this.SCB = SCB && keep(SCB);
  }

  /** The codes: the parameter itself once it is quantized. */
  get CB(): Tensor | null {
    return this.SCB && this;
  }

  /**
   * The quantized successor of a float weight, which is disposed; the weight itself if it is quantized already or
   * `hasFp16Weights` is set.
   */
  quantize(): Int8Params {
    if (this.SCB || this.hasFp16Weights) return this;
    const { codes, stats } = noGrad(() => tidy(() => int8VectorwiseQuant(this)));
    this.dispose();
    return new Int8Params(codes, { SCB: stats });
  }

  override dispose(): void {
    super.dispose();
    this.SCB?.dispose();
  }
}

function checkCodes(codes: Tensor, SCB: Tensor): void {
  const [rows] = codes.shape;
  const fits = SCB.dtype === "float32" && SCB.ndim === 1 && SCB.shape[0] === rows;
  if (codes.dtype !== "int8" || codes.ndim !== 2 || !fits) {
    const shown = (t: Tensor): string => `${t.dtype} [${t.shape.join(", ")}]`;
    const rule = "Int8Params: the codes must be int8 [N, K] and SCB float32 [N]";
    throw new BnbError("ERR_BNB_SHAPE", `${rule}, got ${shown(codes)} and ${shown(SCB)}`);
  }
}
