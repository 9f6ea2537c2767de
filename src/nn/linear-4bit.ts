// Linear4bit: a linear layer with a frozen 4-bit weight (QLoRA, Dettmers et al. 2023).
import type { ActivationQuant } from "../ops/activation-quant.js";
import { anActivationQuant } from "../ops/activation-quant.js";
import { linear4bit } from "../ops/linear-4bit.js";
import type { Generator } from "../ops/random.js";
import { aBoolean, aFloatDType, anInstance, checkArgument } from "../tensor/checks.js";
import type { Device, DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import { initChecks } from "./layer-options.js";
import { Linear } from "./linear.js";
import type { StateDict, StateSource } from "./module.js";
import { Module } from "./module.js";
import type { Quantization } from "./params-4bit.js";
import { Params4bit, planWeight4bit, quantizationChecks } from "./params-4bit.js";

/** Options of `Linear4bit`: how its weight is quantized, and what it computes with. */
export interface Linear4bitOptions extends Partial<Quantization> {
  /** Whether a bias is added; default true. */
  bias?: boolean;
  /**
   * The type that weights and activations may be rounded to before they are multiplied; default the dtype of the
   * input. The CPU multiplies in float32 whatever it is.
   */
  computeDtype?: DType;
  /** How the CPU may round activations; default "none". */
  activationQuant?: ActivationQuant;
  /** dtype of the weight until it is quantized, and of the bias; default float32. */
  dtype?: DType;
  device?: DeviceLike;
  /** Source of the initial values; default the global one. */
  generator?: Generator;
}
type TypedOptions = Omit<Linear4bitOptions, "quantType">;
const { quantType, ...typedChecks } = {
  ...quantizationChecks,
  ...initChecks,
  bias: aBoolean,
  computeDtype: aFloatDType,
  activationQuant: anActivationQuant,
};
const typedOptions = optionTable<TypedOptions>(typedChecks);
const layerOptions = optionTable<Linear4bitOptions>({ ...typedChecks, quantType });

/**
 * `y = x W^T + b` with W in 4-bit blocks. The weight is quantized by `quantize()` or `to()`, at the first forward
 * at the latest, and frozen; its float memory is then free. Gradients reach x and the bias.
 *
 * @example
 * const layer = new Linear4bit(4096, 4096, { quantType: "nf4" });
 * layer.loadStateDict(linear.stateDict());
 * const y = layer.forward(x); // x [..., 4096]
 */
export class Linear4bit extends Linear {
  declare weight: Params4bit;
  readonly computeDtype: DType | null;
  #activationQuant: ActivationQuant;

  constructor(inputFeatures: number, outputFeatures: number, options: Linear4bitOptions = {}) {
    checkOptions("Linear4bit", options, layerOptions);
    const { computeDtype = null, activationQuant = "none", bias, dtype, device, generator } = options;
    const { blocksize, compressStatistics, quantType, quantStorage } = options;
    super(inputFeatures, outputFeatures, { bias, dtype, device, generator });
    const how = { blocksize, compressStatistics, quantType, quantStorage };
    this.weight = new Params4bit(this.weight, { ...how, module: this });
    this.computeDtype = computeDtype;
    this.#activationQuant = activationQuant;
  }

  /** How the CPU may round activations before they are multiplied by the weight; it may be set at any time. */
  get activationQuant(): ActivationQuant {
    return this.#activationQuant;
  }

  set activationQuant(value: ActivationQuant) {
    checkArgument("Linear4bit", "activationQuant", value, anActivationQuant);
    this.#activationQuant = value;
  }

  /** Quantizes the weight and releases the float one; nothing happens if that was done. */
  quantize(): this {
    this.weight.quantize();
    return this;
  }

  override details(): string {
    return `${super.details()}, quant_type=${this.weight.quantType}`;
  }

  override forward(x: Tensor): Tensor {
    this.quantize();
    return linear4bit(x, this.weight.quantized, this.bias);
  }

  protected override moveTensors(device: Device, moved: Map<Tensor, Tensor>): void {
    this.weight.moveTo(device);
    super.moveTensors(device, moved);
  }

  override saveTo(dict: StateDict, prefix: string): void {
    super.saveTo(dict, prefix);
    this.weight.saveStatisticsTo(dict, `${prefix}weight`);
  }

  override loadFrom(source: StateSource, prefix: string): void {
    planWeight4bit(source, `${prefix}weight`, [this.outFeatures, this.inFeatures], this);
    if (this.bias) source.copy(`${prefix}bias`, this.bias);
  }
}

/** `Linear4bit` with the type nf4. */
export class LinearNF4 extends Linear4bit {
  constructor(inputFeatures: number, outputFeatures: number, options: TypedOptions = {}) {
    checkOptions("LinearNF4", options, typedOptions);
    super(inputFeatures, outputFeatures, { ...options, quantType: "nf4" });
  }
}

/** `Linear4bit` with the type fp4. */
export class LinearFP4 extends Linear4bit {
  constructor(inputFeatures: number, outputFeatures: number, options: TypedOptions = {}) {
    checkOptions("LinearFP4", options, typedOptions);
    super(inputFeatures, outputFeatures, { ...options, quantType: "fp4" });
  }
}

const aModule = anInstance(() => Module, "a Module");

/**
 * Sets `activationQuant` of every `Linear4bit` of a module, which may be one itself. Generating and training go on with it at
 * once. Throws ERR_BNB_ARGUMENT where there is none.
 *
 * @example
 * setActivationQuant(model, "int8"); // products of bytes, where the CPU is faster with them
 */
export function setActivationQuant(module: Module, activationQuant: ActivationQuant): void {
  checkArgument("setActivationQuant", "module", module, aModule);
  checkArgument("setActivationQuant", "activationQuant", activationQuant, anActivationQuant);
  const layers = [...module.modules()].filter((layer) => layer instanceof Linear4bit);
  if (layers.length === 0) {
    throw new BnbError(
      "ERR_BNB_ARGUMENT",
      "setActivationQuant: the module must have a 4-bit layer (Linear4bit), it has none",
    );
  }
  for (const layer of layers) layer.activationQuant = activationQuant;
}
