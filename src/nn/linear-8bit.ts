// Linear8bitLt: a linear layer with int8 weights and activations and outlier columns in floating point
// (LLM.int8(), Dettmers et al. 2022).
import { matmul8bit } from "../ops/int8.js";
import { MatmulLtState } from "../ops/matmul-lt.js";
import type { Generator } from "../ops/random.js";
import { aBoolean, aNumber } from "../tensor/checks.js";
import type { DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import { checkFinite } from "./finite.js";
import { Int8Params } from "./int8-params.js";
import type { Int8Weight } from "./int8-weight.js";
import { adoptParams, checkScales, planInt8Weight, quantizeWeight } from "./int8-weight.js";
import { initChecks } from "./layer-options.js";
import type { LinearOptions } from "./linear.js";
import { Linear } from "./linear.js";
import type { StateDict, StateSource } from "./module.js";

/** Options of `Linear8bitLt`. */
export interface Linear8bitLtOptions {
  /** Default true. */
  bias?: boolean;
  /**
   * True (the default) keeps the float weight as a trainable parameter and quantizes it on the way. False quantizes
   * once, at `quantize()` or the first forward, releases the float weight and freezes the layer.
   */
  hasFp16Weights?: boolean;
  /** Activations of at least this magnitude are multiplied in floating point; 6 is usual, 0 (the default) is never. */
  threshold?: number;
  /** dtype of the float weight and the bias; default float32. */
  dtype?: DType;
  device?: DeviceLike;
  /** Source of the initial values; default the global one. */
  generator?: Generator;
}
const layerOptions = optionTable<Linear8bitLtOptions>({
  ...initChecks,
  bias: aBoolean,
  hasFp16Weights: aBoolean,
  threshold: aNumber,
});

/**
 * `y = x W^T + b` with W and x in int8. Quantized, it saves `weight` int8, `SCB` float32 and `weight_format`; a
 * quantized checkpoint switches a layer that is not yet quantized.
 *
 * @example
 * const layer = new Linear8bitLt(4096, 4096, { hasFp16Weights: false, threshold: 6 });
 * layer.loadStateDict(linear.stateDict());
 * const y = layer.forward(x); // x [..., 4096]
 */
export class Linear8bitLt extends Linear {
  static override readonly names = { SCB: "SCB" };
  readonly threshold: number;
  readonly hasFp16Weights: boolean;
  /** absmax of each row [outFeatures] float32, once quantized for good; `weight` then holds the int8 codes. */
  SCB: Tensor | null = null;
  weightFormat: Tensor | null = null;
  // The codes of a float weight, which may change.
  readonly #state = new MatmulLtState();

  constructor(inputFeatures: number, outputFeatures: number, options: Linear8bitLtOptions = {}) {
    super(inputFeatures, outputFeatures, checked(options));
    this.threshold = options.threshold ?? 0;
    this.hasFp16Weights = options.hasFp16Weights ?? true;
  }

  /** Whether the float weight is gone. */
  get isQuantized(): boolean {
    return this.SCB !== null;
  }

  /**
   * Quantizes for good and releases the float weight; nothing happens if that was done, or with hasFp16Weights. Takes over
   * codes that `weight` was set to.
   */
  quantize(): this {
    const { weight } = this;
    if (weight instanceof Int8Params && weight.SCB) this.#adopt(adoptParams(weight, weight.SCB));
    else if (!this.hasFp16Weights && !this.isQuantized) this.#adopt(quantizeWeight(weight));
    return this;
  }

  override forward(x: Tensor): Tensor {
    this.quantize();
    const { threshold, bias } = this;
    if (this.SCB) return matmul8bit(x, this.weight, this.SCB, { threshold, bias });
    const [codes, stats] = this.#state.codesOf(this.weight);
    return matmul8bit(x, codes, stats, { threshold, bias, weight: this.weight });
  }

  override saveTo(dict: StateDict, prefix: string): void {
    if (this.SCB) checkScales(this.SCB, `${prefix}SCB`);
    else if (!this.hasFp16Weights) checkFinite(this.weight, `${prefix}weight`);
    super.saveTo(dict, prefix);
  }

  override loadFrom(source: StateSource, prefix: string): void {
    const isCheckpointQuantized = source.has(`${prefix}SCB`);
    if (isCheckpointQuantized) {
      const { device } = this.weight;
      planInt8Weight(source, prefix, [this.outFeatures, this.inFeatures], device, (w) => this.#adopt(w));
    } else if (this.isQuantized) {
      const weight = source.takeFinite(`${prefix}weight`, this.weight.shape);
      if (weight) source.plan(() => this.#adopt(quantizeWeight(weight, this.weight.device)));
    } else if (this.hasFp16Weights || source.takeFinite(`${prefix}weight`, this.weight.shape, this.weight.dtype)) {
      source.copy(`${prefix}weight`, this.weight);
    }
    if (this.bias) source.copy(`${prefix}bias`, this.bias);
  }

  override dispose(): void {
    super.dispose();
    this.#state.dispose();
  }

  #adopt(weight: Int8Weight): void {
    this.weight.dispose();
    this.SCB?.dispose();
    this.weightFormat?.dispose();
    this.#state.dispose();
    this.weight = weight.codes;
    this.SCB = weight.SCB;
    this.weightFormat = weight.weightFormat;
  }
}

// Before anything is allocated.
function checked(options: Linear8bitLtOptions): LinearOptions {
  checkOptions("Linear8bitLt", options, layerOptions);
  const { threshold = 0, hasFp16Weights: _, ...rest } = options;
  if (threshold >= 0) return rest;
  throw new BnbError("ERR_BNB_OPTION", `Linear8bitLt: threshold must be at least 0, got ${threshold}`);
}
