// SGD with momentum, its state in 32 or 8 bits.
import { describe } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { Optimizer1State } from "./optimizer.js";
import type { CommonOptions, EightBit, OptimizerFamily, Params, ThirtyTwoBit } from "./options.js";
import { checkIsObject, commonDefaults, commonHyperparameters, withFixed } from "./options.js";

/** Options of `SGD` and of its 8-bit and 32-bit kinds. */
export interface SGDOptions extends CommonOptions {
  lr: number;
  /** Weight of the old momentum, above 0. */
  momentum: number;
  /** Only 0 is accepted. */
  dampening?: number;
  /** Added to the gradient: g + weightDecay * p. Default 0. */
  weightDecay?: number;
  /** Only false is accepted. */
  nesterov?: boolean;
}

/** What SGD and LARS share. */
export const sgdDefaults: Required<SGDOptions> = {
  ...commonDefaults,
  // No usable default: whoever leaves them out is told so.
  lr: Number.NaN,
  momentum: Number.NaN,
  dampening: 0,
  weightDecay: 0,
  nesterov: false,
};

/** Throws unless lr and momentum were given; momentum 0 would be plain SGD, which has no state. */
export function checkSGD(owner: string, options: SGDOptions): SGDOptions {
  if (options !== undefined) checkIsObject(owner, options);
  for (const key of ["lr", "momentum"] as const) {
    if (typeof options?.[key] !== "number") {
      throw new BnbError("ERR_BNB_OPTION", `${owner}: ${key} must be given, got ${describe(options?.[key])}`);
    }
  }
  if (options.momentum === 0) throw new BnbError("ERR_BNB_OPTION", `${owner}: momentum must be above 0, got 0`);
  return options;
}

const family: OptimizerFamily<SGDOptions> = {
  rule: "momentum",
  betaCount: 2,
  usedBetas: 1,
  usesEps: false,
  defaults: sgdDefaults,
  fixed: ["dampening", "nesterov"],
  hyperparameters: (o) => ({ ...commonHyperparameters(o), betas: [o.momentum, 0], eps: 0 }),
};

/**
 * Stochastic gradient descent with momentum: `m = momentum m + g + weightDecay p` (the first step takes the
 * gradient as it is), `p = p - lr m`.
 *
 * @example
 * const optimizer = new SGD(model.parameters(), { lr: 0.1, momentum: 0.9 });
 */
export class SGD extends Optimizer1State<SGDOptions> {
  constructor(params: Params<SGDOptions>, options: SGDOptions) {
    super(params, checkSGD(new.target.name, options), family);
  }
}

/**
 * SGD with an 8-bit momentum: one byte a parameter.
 */
export class SGD8bit extends SGD {
  constructor(params: Params<SGDOptions>, options: EightBit<SGDOptions>) {
    super(params, withFixed("SGD8bit", options, "optimBits", 8));
  }
}

/** SGD with 32-bit states, whatever the size of the parameter. */
export class SGD32bit extends SGD {
  constructor(params: Params<SGDOptions>, options: ThirtyTwoBit<SGDOptions>) {
    super(params, withFixed("SGD32bit", options, "optimBits", 32));
  }
}
