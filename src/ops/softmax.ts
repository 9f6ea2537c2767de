// softmax and logSoftmax over the last axis.
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

const define = (name: string, log: boolean) =>
  defineOp<[x: Tensor], [Tensor]>({
    name,
    arity: 1,
    forward(ctx, x) {
      const [y] = run(addon.softmax, x, log);
      ctx.save(y);
      return y;
    },
    backward(ctx, dy) {
      return run(addon.softmaxBackward, ctx.saved[0], dy, log);
    },
  });

/** exp(x) / sum(exp(x)) over the last axis. */
export const softmax = define("softmax", false);

/** x - log(sum(exp(x))) over the last axis. */
export const logSoftmax = define("logSoftmax", true);
