// Losses of a prediction against numbers of its shape. Each is a few ops; cross-entropy.ts has the one of classes.
import { checkTensor, oneOf } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import { abs, mul, square, sub } from "./elementwise.js";
import { mean, sum } from "./reduce.js";
import { softplus } from "./softplus.js";

/** Options of `mseLoss`, `l1Loss` and `bceWithLogitsLoss`. */
export interface LossOptions {
  /** What becomes of the losses of the elements: their mean (default) or sum, a scalar, or "none", as they are. */
  reduction?: "mean" | "sum" | "none";
}
const lossOptions = optionTable<LossOptions>({ reduction: oneOf(["mean", "sum", "none"]) });

function loss(name: string, of: (x: Tensor, target: Tensor) => Tensor) {
  return (x: Tensor, target: Tensor, options: LossOptions = {}): Tensor => {
    checkTensor(name, "x", x);
    checkTensor(name, "target", target);
    checkOptions(name, options, lossOptions);
    if (x.ndim !== target.ndim || x.shape.some((size, i) => size !== target.shape[i])) {
      const shapes = `[${x.shape}] and [${target.shape}]`;
      throw new BnbError("ERR_BNB_SHAPE", `${name}: x and target must have one shape, got ${shapes}`);
    }
    const each = of(x, target);
    const { reduction = "mean" } = options;
    return reduction === "none" ? each : reduction === "sum" ? sum(each) : mean(each);
  };
}

/**
 * The mean of `(x - target)^2`; `x` and `target` have one shape and one float dtype, which the result has, as torch's
 * `mse_loss`. Throws ERR_BNB_SHAPE where torch would broadcast: a forgotten axis is nearly always a mistake.
 *
 * @example
 * const loss = mseLoss(model.forward(x), y);
 */
export const mseLoss = loss("mseLoss", (x, target) => square(sub(x, target)));

/** The mean of `|x - target|`, as torch's `l1_loss`; see {@link mseLoss}. */
export const l1Loss = loss("l1Loss", (x, target) => abs(sub(x, target)));

/**
 * The mean of `-target log(p) - (1 - target) log(1 - p)` with `p = sigmoid(x)`: `x` are logits, `target` probabilities, as
 * torch's `binary_cross_entropy_with_logits`. Computed as `softplus(x) - target x`, which no logit overflows; see
 * {@link mseLoss} for shapes and dtypes.
 */
export const bceWithLogitsLoss = loss("bceWithLogitsLoss", (x, target) =>
  sub(softplus(x, { threshold: Infinity }), mul(target, x)),
);
