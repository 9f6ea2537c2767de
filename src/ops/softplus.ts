// The smooth relu.
import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { aNumber } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** Options of `softplus`. */
export interface SoftplusOptions {
  /** How sharp the bend is; finite and not 0. Default 1. */
  beta?: number;
  /** Where `beta x` is above it, `y = x`. Default 20. */
  threshold?: number;
}
const softplusOptions = optionTable<SoftplusOptions>({ beta: aNumber, threshold: aNumber });

/**
 * `y = log(1 + exp(beta x)) / beta`, elementwise, of the shape and dtype of `x`, as torch's `softplus`: a relu without
 * its corner. Far negative values keep their digits, and no `threshold` overflows. Throws ERR_BNB_ARGUMENT for a `beta`
 * that is 0 or not finite.
 *
 * @example
 * const positive = softplus(x, { beta: 2 });
 */
export const softplus = defineOp({
  name: "softplus",
  arity: 2,

  forward(ctx: OpContext<[x: Tensor, beta: number, threshold: number]>, x: Tensor, options: SoftplusOptions = {}) {
    checkOptions("softplus", options, softplusOptions);
    const { beta = 1, threshold = 20 } = options;
    const [y] = run(addon.softplus, x, beta, threshold);
    ctx.save(x, beta, threshold);
    return y;
  },

  backward(ctx, dy) {
    const [x, beta, threshold] = ctx.saved;
    const [dx] = run(addon.softplusBackward, dy, x, beta, threshold);
    return [dx];
  },
});
