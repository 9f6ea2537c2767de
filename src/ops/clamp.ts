// Limits on both sides.
import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/**
 * `y = min(max(x, low), high)`, elementwise, of the shape and dtype of `x`; NaN stays NaN. The gradient passes where
 * `low <= x <= high`. Throws ERR_BNB_ARGUMENT unless `low <= high`; either may be infinite.
 *
 * @example
 * const y = clamp(x, -1, 1);
 */
export const clamp = defineOp({
  name: "clamp",
  arity: 3,

  forward(ctx: OpContext<[x: Tensor, low: number, high: number]>, x: Tensor, low: number, high: number) {
    const [y] = run(addon.clamp, x, low, high);
    ctx.save(x, low, high);
    return y;
  },

  backward(ctx, dy) {
    const [x, low, high] = ctx.saved;
    const [dx] = run(addon.clampBackward, dy, x, low, high);
    return [dx];
  },
});
