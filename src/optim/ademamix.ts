// AdEMAMix with 32-bit and 8-bit states, in ordinary and in paged memory.
import { Optimizer2State } from "./optimizer.js";
import type { CommonOptions, EightBit, OptimizerFamily, Paged, Params, ThirtyTwoBit } from "./options.js";
import { commonDefaults, commonHyperparameters, withFixed } from "./options.js";

/** Options of `AdEMAMix` and of its 8-bit, 32-bit and paged kinds. */
export interface AdEMAMixOptions extends CommonOptions {
  /** Learning rate; default 1e-3. */
  lr?: number;
  /** Decay rates of the fast moment, the second moment and the slow moment; default [0.9, 0.999, 0.9999]. */
  betas?: [number, number, number];
  /** Weight of the slow moment; default 5. */
  alpha?: number;
  /** Steps over which alpha grows from 0; null starts at alpha. */
  tAlpha?: number | null;
  /** Steps over which the slow decay rate grows from the fast one; null starts at betas[2]. */
  tBeta3?: number | null;
  /** Added to the root of the second moment; default 1e-8. */
  eps?: number;
  /** Decoupled: the parameter shrinks by lr * weightDecay before the update. Default 0.01. */
  weightDecay?: number;
  /** Whether large states live in managed memory, where the device has it. Default false. */
  isPaged?: boolean;
}

const family: OptimizerFamily<AdEMAMixOptions> = {
  rule: "ademamix",
  betaCount: 3,
  usedBetas: 3,
  usesEps: true,
  defaults: {
    ...commonDefaults,
    lr: 1e-3,
    betas: [0.9, 0.999, 0.9999],
    alpha: 5,
    tAlpha: null,
    tBeta3: null,
    eps: 1e-8,
    weightDecay: 1e-2,
    isPaged: false,
  },
  fixed: [],
  hyperparameters: (o) => ({
    ...commonHyperparameters(o),
    betas: o.betas,
    eps: o.eps,
    alpha: o.alpha,
    tAlpha: o.tAlpha,
    tBeta3: o.tBeta3,
  }),
};

/**
 * AdEMAMix (Pagliardini et al., 2024): Adam with a second, slow first moment,
 * `p = p (1 - lr weightDecay) - lr (m1 / c1 + alpha m2) / (sqrt(v / c2) + eps)`.
 */
export class AdEMAMix extends Optimizer2State<AdEMAMixOptions> {
  constructor(params: Params<AdEMAMixOptions>, options: AdEMAMixOptions = {}) {
    super(params, options, family);
  }
}

/**
 * AdEMAMix with 8-bit states: three bytes a parameter instead of twelve.
 */
export class AdEMAMix8bit extends AdEMAMix {
  constructor(params: Params<AdEMAMixOptions>, options: EightBit<AdEMAMixOptions> = {}) {
    super(params, withFixed("AdEMAMix8bit", options, "optimBits", 8));
  }
}

/** AdEMAMix with 32-bit states, whatever the size of the parameter. */
export class AdEMAMix32bit extends AdEMAMix {
  constructor(params: Params<AdEMAMixOptions>, options: ThirtyTwoBit<AdEMAMixOptions> = {}) {
    super(params, withFixed("AdEMAMix32bit", options, "optimBits", 32));
  }
}

/** AdEMAMix whose large states live in managed memory, where the device has it. */
export class PagedAdEMAMix extends AdEMAMix {
  constructor(params: Params<AdEMAMixOptions>, options: Paged<AdEMAMixOptions> = {}) {
    super(params, withFixed("PagedAdEMAMix", options, "isPaged", true));
  }
}

/** PagedAdEMAMix with 8-bit states. */
export class PagedAdEMAMix8bit extends PagedAdEMAMix {
  constructor(params: Params<AdEMAMixOptions>, options: Paged<EightBit<AdEMAMixOptions>> = {}) {
    super(params, withFixed("PagedAdEMAMix8bit", options, "optimBits", 8));
  }
}

/** PagedAdEMAMix with 32-bit states. */
export class PagedAdEMAMix32bit extends PagedAdEMAMix {
  constructor(params: Params<AdEMAMixOptions>, options: Paged<ThirtyTwoBit<AdEMAMixOptions>> = {}) {
    super(params, withFixed("PagedAdEMAMix32bit", options, "optimBits", 32));
  }
}
