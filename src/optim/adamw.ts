// AdamW with 32-bit and 8-bit states, in ordinary and in paged memory.
import type { AdamOptions } from "./adam.js";
import { adamFamily } from "./adam.js";
import { Optimizer2State } from "./optimizer.js";
import type { EightBit, Paged, Params, ThirtyTwoBit } from "./options.js";
import { withFixed } from "./options.js";

const family = adamFamily(1e-2);

/**
 * Adam with decoupled weight decay (Loshchilov and Hutter, 2019): {@link Adam} with a default weightDecay of 0.01.
 *
 * @example
 * const optimizer = new AdamW([{ params: weights }, { params: biases, weightDecay: 0 }], { lr: 3e-4 });
 */
export class AdamW extends Optimizer2State<AdamOptions> {
  constructor(params: Params<AdamOptions>, options: AdamOptions = {}) {
    super(params, options, family);
  }
}

/**
 * AdamW with 8-bit states: two bytes a parameter instead of eight.
 *
 * @example
 * const optimizer = new AdamW8bit(model.parameters(), { lr: 3e-4 });
 */
export class AdamW8bit extends AdamW {
  constructor(params: Params<AdamOptions>, options: EightBit<AdamOptions> = {}) {
    super(params, withFixed("AdamW8bit", options, "optimBits", 8));
  }
}

/** AdamW with 32-bit states, whatever the size of the parameter. */
export class AdamW32bit extends AdamW {
  constructor(params: Params<AdamOptions>, options: ThirtyTwoBit<AdamOptions> = {}) {
    super(params, withFixed("AdamW32bit", options, "optimBits", 32));
  }
}

/** AdamW whose large states live in managed memory, where the device has it. */
export class PagedAdamW extends AdamW {
  constructor(params: Params<AdamOptions>, options: Paged<AdamOptions> = {}) {
    super(params, withFixed("PagedAdamW", options, "isPaged", true));
  }
}

/** PagedAdamW with 8-bit states. */
export class PagedAdamW8bit extends PagedAdamW {
  constructor(params: Params<AdamOptions>, options: Paged<EightBit<AdamOptions>> = {}) {
    super(params, withFixed("PagedAdamW8bit", options, "optimBits", 8));
  }
}

/** PagedAdamW with 32-bit states. */
export class PagedAdamW32bit extends PagedAdamW {
  constructor(params: Params<AdamOptions>, options: Paged<ThirtyTwoBit<AdamOptions>> = {}) {
    super(params, withFixed("PagedAdamW32bit", options, "optimBits", 32));
  }
}
