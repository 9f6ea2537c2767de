// Root-mean-square normalization, the norm of Llama-style models.

import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/**
 * Root-mean-square normalization over the last axis:
 * `y = x / sqrt(mean(x^2) + eps) * weight`.
 *
 * Statistics are float32 whatever the dtype; `y` has the dtype of `x`, which is also that of `weight`.
 *
 * @example
 * const y = rmsNorm(x, weight); // x [batch, seq, dim], weight [dim]
 */
export const rmsNorm = defineOp({
  name: "rmsNorm",
  arity: 3,

  forward(ctx: OpContext<[x: Tensor, weight: Tensor, rstd: Tensor]>, x: Tensor, weight: Tensor, eps: number = 1e-6) {
    const [y, rstd] = run(addon.rmsNorm, x, weight, eps);
    ctx.save(x, weight, rstd);
    return y;
  },

  // With n = x * rstd and g = dy * weight:  dx = rstd * (g - n * mean(g * n)),  dweight = sum(dy * n).
  backward(ctx, dy) {
    const [x, weight, rstd] = ctx.saved;
    return run(addon.rmsNormBackward, dy, x, weight, rstd, ctx.needs(1));
  },
});
