// The router of a mixture of experts.
import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { aBoolean, anInteger, checkArgument } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** Options of `chooseExperts`. */
export interface ChooseExpertsOptions {
  /** Whether the shares of a token's experts are divided by their sum. Default false. */
  normalize?: boolean;
}
const chooseExpertsOptions = optionTable<ChooseExpertsOptions>({ normalize: aBoolean });

/** Which experts each token takes, and with which share. */
export interface ExpertChoice {
  shares: Tensor; // [T, k] float32, the largest first
  experts: Tensor; // [T, k] int32
}

type Saved = [logits: Tensor, shares: Tensor, experts: Tensor, normalize: boolean];

const shares = defineOp({
  name: "chooseExperts",

  forward(ctx: OpContext<Saved>, logits: Tensor, k: number, normalize: boolean, found: { experts?: Tensor }) {
    const [y, experts] = run(addon.chooseExperts, logits, k, normalize);
    found.experts = experts;
    ctx.save(logits, y, experts, normalize);
    return y;
  },

  backward(ctx, dshares) {
    const [logits, y, experts, normalize] = ctx.saved;
    return run(addon.chooseExpertsBackward, dshares, logits, y, experts, normalize);
  },
});

/**
 * The `k` experts of each token with the largest `softmax(logits)`, the largest first, of equals the one with the lower
 * index: always exactly `k`, and those of the lowest indices for a row with a NaN. The choice stays on the device.
 *
 * logits [T, E] float32, float16 or bfloat16; the softmax is float32. The gradient reaches the logits through the shares.
 * Throws ERR_BNB_ARGUMENT unless 1 <= k <= E. (Shazeer et al., 2017.)
 *
 * @example
 * const { shares, experts } = chooseExperts(router.forward(x), 2, { normalize: true });
 */
export function chooseExperts(logits: Tensor, k: number, options: ChooseExpertsOptions = {}): ExpertChoice {
  checkArgument("chooseExperts", "k", k, anInteger(1, 2 ** 31 - 1));
  checkOptions("chooseExperts", options, chooseExpertsOptions);
  const found: { experts?: Tensor } = {};
  const y = shares(logits, k, options.normalize ?? false, found);
  return { shares: y, experts: found.experts as Tensor };
}
