// Layer normalization with optional weight and bias.

import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

const op = defineOp({
  name: "layerNorm",

  forward(
    ctx: OpContext<[x: Tensor, weight: Tensor | null, mean: Tensor, rstd: Tensor]>,
    x: Tensor,
    weight: Tensor | null,
    bias: Tensor | null,
    eps: number,
  ) {
    const [y, mean, rstd] = run(addon.layerNorm, x, weight, bias, eps);
    ctx.save(x, weight, mean, rstd);
    return y;
  },

  // With n = (x - mean) * rstd and g = dy * weight:  dx = rstd * (g - mean(g) - n * mean(g * n)),
  // dweight = sum(dy * n),  dbias = sum(dy).
  backward(ctx, dy) {
    const [x, weight, mean, rstd] = ctx.saved;
    return run(addon.layerNormBackward, dy, x, weight, mean, rstd, ctx.needs(1), ctx.needs(2));
  },
});

/**
 * Normalization over the last axis to mean 0 and variance 1, then scale and shift:
 * `y = (x - mean) / sqrt(variance + eps) * weight + bias`.
 *
 * A `weight` of null stands for ones, a `bias` of null for zeros. Statistics are float32 whatever the dtype;
 * `y` has the dtype of `x`, which is also that of `weight` and `bias`.
 *
 * @example
 * const y = layerNorm(x, weight, bias); // x [batch, seq, dim], weight [dim], bias [dim]
 */
export function layerNorm(x: Tensor, weight: Tensor | null = null, bias: Tensor | null = null, eps = 1e-5): Tensor {
  return op(x, weight, bias, eps);
}
