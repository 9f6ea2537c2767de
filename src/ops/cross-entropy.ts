// Cross entropy of logits against integer targets, the loss of language models.

import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { anInteger } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** Options of `crossEntropy`. */
export interface CrossEntropyOptions {
  /** Rows with this target do not count. Default -100. */
  ignoreIndex?: number;
}
const crossEntropyOptions = optionTable<CrossEntropyOptions>({ ignoreIndex: anInteger(-(2 ** 31), 2 ** 31 - 1) });

/**
 * Mean over the rows that count of `log(sum(exp(logits))) - logits[target]`: logits `[..., V]`, targets int32
 * `[...]`. Rows whose target is `ignoreIndex` do not count; the loss of none is NaN.
 *
 * The loss is a float32 scalar whatever the dtype of the logits. Any other target outside [0, V) is an error
 * at the next read.
 *
 * @example
 * const loss = crossEntropy(logits, targets); // logits [batch, seq, vocab], targets [batch, seq]
 */
export const crossEntropy = defineOp({
  name: "crossEntropy",
  arity: 3,

  forward(
    ctx: OpContext<[logits: Tensor, targets: Tensor, lse: Tensor, count: Tensor, ignoreIndex: number]>,
    logits: Tensor,
    targets: Tensor,
    options: CrossEntropyOptions = {},
  ) {
    checkOptions("crossEntropy", options, crossEntropyOptions);
    const ignoreIndex = options.ignoreIndex ?? -100;
    const [loss, lse, count] = run(addon.crossEntropy, logits, targets, ignoreIndex);
    ctx.save(logits, targets, lse, count, ignoreIndex);
    return loss;
  },

  // dlogits = (softmax(logits) - onehot(target)) / count in the rows that count.
  backward(ctx, dloss) {
    const [logits, targets, lse, count, ignoreIndex] = ctx.saved;
    const [dlogits] = run(addon.crossEntropyBackward, dloss, logits, targets, lse, count, ignoreIndex);
    return [dlogits, null];
  },
});
