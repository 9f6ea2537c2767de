// A low-rank adapter around a frozen linear layer (Hu et al., 2021): y = base(x) + alpha / r * B A dropout(x).
// Only A and B learn; the base may be a Linear or a quantized layer, its class does not matter here.
import type { UnaryModule } from "../nn/index.js";
import { Dropout, init, Module, Parameter } from "../nn/index.js";
import { aModule } from "../nn/module.js";
import type { Generator } from "../ops/index.js";
import { add, cast, linear, mul } from "../ops/index.js";
import { aGenerator } from "../ops/random.js";
import { aDevice, aFiniteNumber, aNumberIn, anInteger, checkArgument } from "../tensor/checks.js";
import { zeros } from "../tensor/create.js";
import type { DeviceLike } from "../tensor/device.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";

/** What an adapter needs of its base: a module that maps [..., inFeatures] to [..., outFeatures]. */
export interface LinearLike extends UnaryModule {
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** Rank, scale and dropout of an adapter. */
export interface LoraOptions {
  /** Rank of the update. Default 8. */
  r?: number;
  /** The update is scaled by loraAlpha / r. Default 8. */
  loraAlpha?: number;
  /** Probability of dropping an input of A while training. Default 0. */
  loraDropout?: number;
  device?: DeviceLike;
  generator?: Generator;
}

/** @internal For functions that take more than these. */
export const loraChecks = {
  r: anInteger(1),
  loraAlpha: aFiniteNumber,
  loraDropout: aNumberIn(0, 1),
  device: aDevice,
  generator: aGenerator,
};
const loraOptions = optionTable<LoraOptions>(loraChecks);

/**
 * `y = base(x) + loraAlpha / r * dropout(x) A^T B^T`.
 *
 * A starts uniform in ±1/sqrt(in) and B at zero, so a new adapter changes nothing. Adapters are float32; their
 * output is cast to the dtype of `base(x)`. Owns its base.
 */
export class LoraLinear extends Module {
  static override readonly names = { loraA: "lora_A", loraB: "lora_B" };

  baseLayer: LinearLike;
  loraA: Parameter; // [r, in] float32
  loraB: Parameter; // [out, r] float32
  loraDropout: Dropout;
  readonly scaling: number;

  constructor(base: LinearLike, options: LoraOptions = {}) {
    super();
    checkArgument("LoraLinear", "base", base, aModule);
    checkOptions("LoraLinear", options, loraOptions);
    const { r = 8, loraAlpha = 8, loraDropout = 0, device, generator } = options;
    const { inFeatures, outFeatures } = base;
    const bound = 1 / Math.sqrt(inFeatures);
    this.baseLayer = base;
    this.scaling = loraAlpha / r;
    this.loraDropout = new Dropout(loraDropout, { generator });
    this.loraA = new Parameter(init.uniform([r, inFeatures], -bound, bound, { device, generator }));
    this.loraB = new Parameter(zeros([outFeatures, r], { device }));
  }

  forward(x: Tensor): Tensor {
    const y = this.baseLayer.forward(x);
    // Scaled where it is narrow: r columns instead of as many as y has.
    const low = mul(linear(this.loraDropout.forward(cast(x, "float32")), this.loraA, null), this.scaling);
    return add(y, cast(linear(low, this.loraB, null), y.dtype));
  }
}
