// SwiGLU: the gated activation of Llama-style feed-forward layers.

import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/**
 * `y = silu(gate) * up` with `silu(g) = g * sigmoid(g)`, elementwise in one pass. The two have one shape and
 * one dtype, which is that of `y`.
 *
 * @example
 * const y = down.forward(swiglu(gate.forward(x), up.forward(x)));
 */
export const swiglu = defineOp({
  name: "swiglu",
  arity: 2,

  forward(ctx: OpContext<[gate: Tensor, up: Tensor]>, gate: Tensor, up: Tensor) {
    const [y] = run(addon.swiglu, gate, up);
    ctx.save(gate, up);
    return y;
  },

  backward(ctx, dy) {
    const [gate, up] = ctx.saved;
    return run(addon.swigluBackward, dy, gate, up);
  },
});
