// LAMB, its states in 32 or 8 bits: update-norm clipping, or the published trust ratio.
import { describe } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { Optimizer2State } from "./optimizer.js";
import type { CommonOptions, EightBit, OptimizerFamily, Params, ThirtyTwoBit } from "./options.js";
import { commonDefaults, commonHyperparameters, withFixed } from "./options.js";

/** Options of `LAMB` and of its 8-bit and 32-bit kinds. */
export interface LAMBOptions extends CommonOptions {
  /** Learning rate; default 1e-3. */
  lr?: number;
  /** Only true is accepted. */
  biasCorrection?: boolean;
  /** Decay rates of the two moments; default [0.9, 0.999]. */
  betas?: [number, number];
  /** Added to the root of the second moment; default 1e-8. */
  eps?: number;
  /** Decoupled, or with `trustRatio` part of the update. Default 0. */
  weightDecay?: number;
  /** Only false is accepted. */
  amsgrad?: boolean;
  /** Only true is accepted. */
  adamWMode?: boolean;
  /** The published algorithm, whose step length is the norm of the parameter, instead of clipping. Default false. */
  trustRatio?: boolean;
}

const family: OptimizerFamily<LAMBOptions> = {
  rule: "lamb",
  betaCount: 2,
  usedBetas: 2,
  usesEps: true,
  defaults: {
    ...commonDefaults,
    lr: 1e-3,
    biasCorrection: true,
    betas: [0.9, 0.999],
    eps: 1e-8,
    weightDecay: 0,
    amsgrad: false,
    adamWMode: true,
    maxUnorm: 1,
    trustRatio: false,
  },
  fixed: ["biasCorrection", "amsgrad", "adamWMode"],
  hyperparameters(o) {
    if (o.trustRatio && o.maxUnorm !== 1) {
      throw new BnbError(
        "ERR_BNB_OPTION",
        `LAMB: maxUnorm must be left out with trustRatio, got ${describe(o.maxUnorm)}`,
      );
    }
    return { ...commonHyperparameters(o), betas: o.betas, eps: o.eps, trustRatio: o.trustRatio };
  },
};

/**
 * LAMB as bitsandbytes has it: Adam whose update is at most `maxUnorm` times as long as the parameter. With
 * `trustRatio` the algorithm of You et al. (2020): `p = p - lr |p| / |r| r`, `r = mhat / (sqrt(vhat) + eps) + weightDecay p`.
 */
export class LAMB extends Optimizer2State<LAMBOptions> {
  constructor(params: Params<LAMBOptions>, options: LAMBOptions = {}) {
    super(params, options, family);
  }
}

/**
 * LAMB with 8-bit states: two bytes a parameter instead of eight.
 */
export class LAMB8bit extends LAMB {
  constructor(params: Params<LAMBOptions>, options: EightBit<LAMBOptions> = {}) {
    super(params, withFixed("LAMB8bit", options, "optimBits", 8));
  }
}

/** LAMB with 32-bit states, whatever the size of the parameter. */
export class LAMB32bit extends LAMB {
  constructor(params: Params<LAMBOptions>, options: ThirtyTwoBit<LAMBOptions> = {}) {
    super(params, withFixed("LAMB32bit", options, "optimBits", 32));
  }
}
