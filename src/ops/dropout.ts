// Dropout: the mask is a function of the generator's state and is never stored.
import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { aBoolean, aNumber, checkArgument, checkTensor } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Generator, GeneratorState } from "./random.js";
import { aGenerator, defaultGenerator } from "./random.js";

/** Options of `dropout`. */
export interface DropoutOptions {
  /** Default true; without it the result is `x`, sharing its memory. */
  training?: boolean;
  /** Default: `defaultGenerator`. */
  generator?: Generator;
}
const dropoutOptions = optionTable<DropoutOptions>({ training: aBoolean, generator: aGenerator });

/**
 * Each element is 0 with probability `p`, else `x / (1 - p)`. The backward pass recomputes the mask from the seed
 * and the offset, so that dropout keeps nothing in memory.
 */
export const dropout = defineOp({
  name: "dropout",
  arity: 3,
  forward(
    ctx: OpContext<[p: number, state: GeneratorState | null]>,
    x: Tensor,
    p: number = 0.5,
    options: DropoutOptions = {},
  ) {
    checkTensor("dropout", "x", x);
    checkArgument("dropout", "p", p, aNumber);
    checkOptions("dropout", options, dropoutOptions);
    const { training = true, generator = defaultGenerator } = options;
    const isIdentity = !training || p === 0;
    const state = generator.state;
    ctx.save(p, isIdentity ? null : state);
    if (isIdentity) return x.detach();
    const [y] = run(addon.dropout, x, p, state.seed, state.offset);
    generator.take(x.size);
    return y;
  },
  backward(ctx, dy) {
    const [p, state] = ctx.saved;
    return state ? run(addon.dropout, dy, p, state.seed, state.offset) : [dy];
  },
});
