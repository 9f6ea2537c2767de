// Adam with 32-bit and 8-bit states, in ordinary and in paged memory.
import { Optimizer2State } from "./optimizer.js";
import type { CommonOptions, EightBit, OptimizerFamily, Paged, Params, ThirtyTwoBit } from "./options.js";
import { commonDefaults, commonHyperparameters, withFixed } from "./options.js";

/** Options of `Adam` and of its 8-bit, 32-bit and paged kinds. */
export interface AdamOptions extends CommonOptions {
  /** Learning rate; default 1e-3. */
  lr?: number;
  /** Decay rates of the two moments; default [0.9, 0.999]. */
  betas?: [number, number];
  /** Added to the root of the second moment; default 1e-8. */
  eps?: number;
  /** Decoupled: the parameter shrinks by lr * weightDecay before the update. Default 0; AdamW 0.01. */
  weightDecay?: number;
  /** Only false is accepted. */
  amsgrad?: boolean;
  /** Whether large states live in managed memory, where the device has it. Default false. */
  isPaged?: boolean;
}

/** What Adam and AdamW share; they differ in the default weight decay. */
export function adamFamily(weightDecay: number): OptimizerFamily<AdamOptions> {
  return {
    rule: "adam",
    betaCount: 2,
    usedBetas: 2,
    usesEps: true,
    defaults: {
      ...commonDefaults,
      lr: 1e-3,
      betas: [0.9, 0.999],
      eps: 1e-8,
      weightDecay,
      amsgrad: false,
      isPaged: false,
    },
    fixed: ["amsgrad"],
    hyperparameters: (o) => ({ ...commonHyperparameters(o), betas: o.betas, eps: o.eps }),
  };
}

const family = adamFamily(0);

/**
 * Adam (Kingma and Ba, 2015) with decoupled weight decay:
 * `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
 * `p = p (1 - lr weightDecay) - lr (m / c1) / (sqrt(v / c2) + eps)` with `c = 1 - beta^t`.
 *
 * @example
 * const optimizer = new Adam(model.parameters(), { lr: 1e-3 });
 * loss.backward();
 * optimizer.step();
 * optimizer.zeroGrad();
 */
export class Adam extends Optimizer2State<AdamOptions> {
  constructor(params: Params<AdamOptions>, options: AdamOptions = {}) {
    super(params, options, family);
  }
}

/**
 * Adam with 8-bit states: two bytes a parameter instead of eight.
 */
export class Adam8bit extends Adam {
  constructor(params: Params<AdamOptions>, options: EightBit<AdamOptions> = {}) {
    super(params, withFixed("Adam8bit", options, "optimBits", 8));
  }
}

/** Adam with 32-bit states, whatever the size of the parameter. */
export class Adam32bit extends Adam {
  constructor(params: Params<AdamOptions>, options: ThirtyTwoBit<AdamOptions> = {}) {
    super(params, withFixed("Adam32bit", options, "optimBits", 32));
  }
}

/** Adam whose large states live in managed memory, where the device has it. */
export class PagedAdam extends Adam {
  constructor(params: Params<AdamOptions>, options: Paged<AdamOptions> = {}) {
    super(params, withFixed("PagedAdam", options, "isPaged", true));
  }
}

/** PagedAdam with 8-bit states. */
export class PagedAdam8bit extends PagedAdam {
  constructor(params: Params<AdamOptions>, options: Paged<EightBit<AdamOptions>> = {}) {
    super(params, withFixed("PagedAdam8bit", options, "optimBits", 8));
  }
}

/** PagedAdam with 32-bit states. */
export class PagedAdam32bit extends PagedAdam {
  constructor(params: Params<AdamOptions>, options: Paged<ThirtyTwoBit<AdamOptions>> = {}) {
    super(params, withFixed("PagedAdam32bit", options, "optimBits", 32));
  }
}
