// LARS, its state in 32 or 8 bits: update-norm clipping, or the published trust ratio.
import { Optimizer1State } from "./optimizer.js";
import type { EightBit, OptimizerFamily, Params, ThirtyTwoBit } from "./options.js";
import { commonHyperparameters, withFixed } from "./options.js";
import type { SGDOptions } from "./sgd.js";
import { checkSGD, sgdDefaults } from "./sgd.js";

/** Options of `LARS` and of its 8-bit and 32-bit kinds. */
export interface LARSOptions extends SGDOptions {
  /** The published algorithm, with maxUnorm as its trust coefficient, instead of clipping. Default false. */
  trustRatio?: boolean;
}

const family: OptimizerFamily<LARSOptions> = {
  rule: "lars",
  betaCount: 2,
  usedBetas: 1,
  usesEps: false,
  defaults: { ...sgdDefaults, maxUnorm: 0.02, trustRatio: false },
  fixed: ["dampening", "nesterov"],
  hyperparameters: (o) => ({
    ...commonHyperparameters(o),
    betas: [o.momentum, 0],
    eps: 0,
    trustRatio: o.trustRatio,
  }),
};

/**
 * LARS as bitsandbytes has it: SGD with momentum whose update is at most `maxUnorm` times as long as the parameter.
 * With `trustRatio` the algorithm of You et al. (2017): the gradient is scaled by
 * `maxUnorm |p| / (|g| + weightDecay |p|)` before it enters the momentum.
 */
export class LARS extends Optimizer1State<LARSOptions> {
  constructor(params: Params<LARSOptions>, options: LARSOptions) {
    super(params, checkSGD(new.target.name, options), family);
  }
}

/**
 * LARS with an 8-bit momentum: one byte a parameter.
 */
export class LARS8bit extends LARS {
  constructor(params: Params<LARSOptions>, options: EightBit<LARSOptions>) {
    super(params, withFixed("LARS8bit", options, "optimBits", 8));
  }
}

/** LARS with 32-bit states, whatever the size of the parameter. */
export class LARS32bit extends LARS {
  constructor(params: Params<LARSOptions>, options: ThirtyTwoBit<LARSOptions>) {
    super(params, withFixed("LARS32bit", options, "optimBits", 32));
  }
}

const pytorchFamily: OptimizerFamily<LARSOptions> = {
  ...family,
  defaults: { ...family.defaults, lr: 0.01, momentum: 0 },
  fixed: [...family.fixed, "trustRatio"],
};

/** The plain form of {@link LARS}: 32-bit states, and a momentum that may be 0, its default. */
export class PytorchLARS extends Optimizer1State<LARSOptions> {
  constructor(params: Params<LARSOptions>, options: Partial<ThirtyTwoBit<LARSOptions>> = {}) {
    super(params, withFixed<Partial<LARSOptions>, "optimBits">("PytorchLARS", options, "optimBits", 32), pytorchFamily);
  }
}
