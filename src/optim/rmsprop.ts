// RMSprop, its state in 32 or 8 bits.
import { BnbError } from "../tensor/errors.js";
import { Optimizer1State } from "./optimizer.js";
import type { CommonOptions, EightBit, OptimizerFamily, Params, ThirtyTwoBit } from "./options.js";
import { commonDefaults, commonHyperparameters, withFixed } from "./options.js";

/** Options of `RMSprop` and of its 8-bit and 32-bit kinds. */
export interface RMSpropOptions extends CommonOptions {
  /** Learning rate; default 1e-2. */
  lr?: number;
  /** Decay rate of the mean square, above 0; default 0.99. */
  alpha?: number;
  /** Added to the root of the mean square; default 1e-8. */
  eps?: number;
  /** Added to the gradient: g + weightDecay * p. Default 0. */
  weightDecay?: number;
  /** Only 0 is accepted. */
  momentum?: number;
  /** Only false is accepted. */
  centered?: boolean;
}

const family: OptimizerFamily<RMSpropOptions> = {
  rule: "rmsprop",
  betaCount: 2,
  usedBetas: 1,
  usesEps: true,
  defaults: { ...commonDefaults, lr: 1e-2, alpha: 0.99, eps: 1e-8, weightDecay: 0, momentum: 0, centered: false },
  fixed: ["momentum", "centered"],
  hyperparameters(o) {
    if (o.alpha === 0) throw new BnbError("ERR_BNB_OPTION", "RMSprop: alpha must be above 0, got 0");
    return { ...commonHyperparameters(o), betas: [o.alpha, 0], eps: o.eps };
  },
};

/**
 * RMSprop (Tieleman and Hinton, 2012): with `d = g + weightDecay p`, `s = alpha s + (1 - alpha) d^2`,
 * `p = p - lr d / (sqrt(s) + eps)`.
 */
export class RMSprop extends Optimizer1State<RMSpropOptions> {
  constructor(params: Params<RMSpropOptions>, options: RMSpropOptions = {}) {
    super(params, options, family);
  }
}

/**
 * RMSprop with an 8-bit state: one byte a parameter.
 */
export class RMSprop8bit extends RMSprop {
  constructor(params: Params<RMSpropOptions>, options: EightBit<RMSpropOptions> = {}) {
    super(params, withFixed("RMSprop8bit", options, "optimBits", 8));
  }
}

/** RMSprop with 32-bit states, whatever the size of the parameter. */
export class RMSprop32bit extends RMSprop {
  constructor(params: Params<RMSpropOptions>, options: ThirtyTwoBit<RMSpropOptions> = {}) {
    super(params, withFixed("RMSprop32bit", options, "optimBits", 32));
  }
}
