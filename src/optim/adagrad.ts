// Adagrad, its state in 32 or 8 bits.
import { Optimizer1State } from "./optimizer.js";
import type { CommonOptions, EightBit, OptimizerFamily, Params, ThirtyTwoBit } from "./options.js";
import { commonDefaults, commonHyperparameters, withFixed } from "./options.js";

/** Options of `Adagrad` and of its 8-bit and 32-bit kinds. */
export interface AdagradOptions extends CommonOptions {
  /** Learning rate; default 1e-2. */
  lr?: number;
  /** Only 0 is accepted. */
  lrDecay?: number;
  /** Added to the gradient: g + weightDecay * p. Default 0. */
  weightDecay?: number;
  /** Only 0 is accepted. */
  initialAccumulatorValue?: number;
  /** Added to the root of the sum of squares; default 1e-10. */
  eps?: number;
}

const family: OptimizerFamily<AdagradOptions> = {
  rule: "adagrad",
  betaCount: 2,
  usedBetas: 0,
  usesEps: true,
  defaults: { ...commonDefaults, lr: 1e-2, lrDecay: 0, weightDecay: 0, initialAccumulatorValue: 0, eps: 1e-10 },
  fixed: ["lrDecay", "initialAccumulatorValue"],
  hyperparameters: (o) => ({ ...commonHyperparameters(o), betas: [0, 0], eps: o.eps }),
};

/**
 * Adagrad (Duchi et al., 2011): with `d = g + weightDecay p`, `s = s + d^2`, `p = p - lr d / (sqrt(s) + eps)`.
 */
export class Adagrad extends Optimizer1State<AdagradOptions> {
  constructor(params: Params<AdagradOptions>, options: AdagradOptions = {}) {
    super(params, options, family);
  }
}

/**
 * Adagrad with an 8-bit state: one byte a parameter.
 */
export class Adagrad8bit extends Adagrad {
  constructor(params: Params<AdagradOptions>, options: EightBit<AdagradOptions> = {}) {
    super(params, withFixed("Adagrad8bit", options, "optimBits", 8));
  }
}

/** Adagrad with 32-bit states, whatever the size of the parameter. */
export class Adagrad32bit extends Adagrad {
  constructor(params: Params<AdagradOptions>, options: ThirtyTwoBit<AdagradOptions> = {}) {
    super(params, withFixed("Adagrad32bit", options, "optimBits", 32));
  }
}
