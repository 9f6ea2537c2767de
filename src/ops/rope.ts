// Rotary position embedding.

import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/**
 * Turns each pair `(x[i], x[i + R/2])` of every head by the angle of its token's position:
 * `y[i] = x[i] cos - x[i + R/2] sin`, `y[i + R/2] = x[i + R/2] cos + x[i] sin`. What follows the first R of a head's D
 * elements passes.
 *
 * x is [B, T, H, D] or [tokens, H, D], `y` has its dtype. The tables are float32 [positions, R/2], R <= D, and get no
 * gradient. A number is the position of t = 0. An int32 tensor is read by the kernel, so that a recorded graph finds its
 * positions anew at each replay: a position for every token, or, with one element, that of t = 0. Positions outside
 * the tables are reported at the next read.
 *
 * @example
 * const q = rope(x, cos, sin, positions); // x [tokens, heads, dim]
 */
export const rope = defineOp({
  name: "rope",
  arity: 4,

  forward(
    ctx: OpContext<[cos: Tensor, sin: Tensor, positions: number | Tensor]>,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: number | Tensor = 0,
  ) {
    const [y] = run(addon.rope, x, cos, sin, ...turn(positions, false));
    ctx.save(cos, sin, positions);
    return y;
  },

  // A rotation is undone by its inverse, which is also its transpose.
  backward(ctx, dy) {
    const [cos, sin, positions] = ctx.saved;
    const [dx] = run(addon.rope, dy, cos, sin, ...turn(positions, true));
    return [dx, null, null];
  },
});

type Turn = [offset: number, inverse: boolean, position: Tensor | null];

function turn(offset: number | Tensor, inverse: boolean): Turn {
  return typeof offset === "number" ? [offset, inverse, null] : [0, inverse, offset];
}
