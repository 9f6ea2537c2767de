// Lion with 32-bit and 8-bit states, in ordinary and in paged memory.
import { Optimizer1State } from "./optimizer.js";
import type { CommonOptions, EightBit, OptimizerFamily, Paged, Params, ThirtyTwoBit } from "./options.js";
import { commonDefaults, commonHyperparameters, withFixed } from "./options.js";

/** Options of `Lion` and of its 8-bit, 32-bit and paged kinds. */
export interface LionOptions extends CommonOptions {
  /** Learning rate; default 1e-4. */
  lr?: number;
  /** Weights of the old moment in the update and in the new moment; default [0.9, 0.99]. */
  betas?: [number, number];
  /** Decoupled: the parameter shrinks by lr * weightDecay before the update. Default 0. */
  weightDecay?: number;
  /** Whether large states live in managed memory, where the device has it. Default false. */
  isPaged?: boolean;
}

const family: OptimizerFamily<LionOptions> = {
  rule: "lion",
  betaCount: 2,
  usedBetas: 2,
  usesEps: false,
  defaults: { ...commonDefaults, lr: 1e-4, betas: [0.9, 0.99], weightDecay: 0, isPaged: false },
  fixed: [],
  hyperparameters: (o) => ({ ...commonHyperparameters(o), betas: o.betas, eps: 0 }),
};

/**
 * Lion (Chen et al., 2023): `p = p (1 - lr weightDecay) - lr sign(beta1 m + (1 - beta1) g)`, then
 * `m = beta2 m + (1 - beta2) g`.
 */
export class Lion extends Optimizer1State<LionOptions> {
  constructor(params: Params<LionOptions>, options: LionOptions = {}) {
    super(params, options, family);
  }
}

/**
 * Lion with an 8-bit state: one byte a parameter.
 */
export class Lion8bit extends Lion {
  constructor(params: Params<LionOptions>, options: EightBit<LionOptions> = {}) {
    super(params, withFixed("Lion8bit", options, "optimBits", 8));
  }
}

/** Lion with 32-bit states, whatever the size of the parameter. */
export class Lion32bit extends Lion {
  constructor(params: Params<LionOptions>, options: ThirtyTwoBit<LionOptions> = {}) {
    super(params, withFixed("Lion32bit", options, "optimBits", 32));
  }
}

/** Lion whose large states live in managed memory, where the device has it. */
export class PagedLion extends Lion {
  constructor(params: Params<LionOptions>, options: Paged<LionOptions> = {}) {
    super(params, withFixed("PagedLion", options, "isPaged", true));
  }
}

/** PagedLion with 8-bit states. */
export class PagedLion8bit extends PagedLion {
  constructor(params: Params<LionOptions>, options: Paged<EightBit<LionOptions>> = {}) {
    super(params, withFixed("PagedLion8bit", options, "optimBits", 8));
  }
}

/** PagedLion with 32-bit states. */
export class PagedLion32bit extends PagedLion {
  constructor(params: Params<LionOptions>, options: Paged<ThirtyTwoBit<LionOptions>> = {}) {
    super(params, withFixed("PagedLion32bit", options, "optimBits", 32));
  }
}
