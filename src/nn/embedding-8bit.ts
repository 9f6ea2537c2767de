// Embedding8bit: a frozen table of int8 rows, each with its scale.
import { embedding8bit } from "../ops/int8.js";
import type { Generator } from "../ops/random.js";
import type { DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import { Embedding } from "./embedding.js";
import { checkFinite } from "./finite.js";
import type { Int8Weight } from "./int8-weight.js";
import { checkScales, planInt8Weight, quantizeWeight } from "./int8-weight.js";
import { initChecks } from "./layer-options.js";
import type { StateDict, StateSource } from "./module.js";

/** Options of `Embedding8bit`. */
export interface Embedding8bitOptions {
  /** dtype of the output, and of the weight until it is quantized; default float32. */
  dtype?: DType;
  device?: DeviceLike;
  /** Source of the initial values; default the global one. */
  generator?: Generator;
}
const layerOptions = optionTable<Embedding8bitOptions>(initChecks);

/**
 * `y[i] = codes[ids[i]] * SCB[ids[i]] / 127`, ids int32 of any shape. Quantized at `quantize()` or the first forward,
 * from then on frozen. Saves `weight` int8 [numEmbeddings, embeddingDim], `SCB` and `weight_format`.
 */
export class Embedding8bit extends Embedding {
  static override readonly names = { SCB: "SCB" };
  readonly dtype: DType;
  /** absmax of each row [numEmbeddings] float32, once quantized; `weight` then holds the int8 codes. */
  SCB: Tensor | null = null;
  weightFormat: Tensor | null = null;

  constructor(numEmbeddings: number, embeddingDim: number, options: Embedding8bitOptions = {}) {
    checkOptions("Embedding8bit", options, layerOptions);
    super(numEmbeddings, embeddingDim, options);
    this.dtype = options.dtype ?? "float32";
  }

  get isQuantized(): boolean {
    return this.SCB !== null;
  }

  /** Quantizes the table and releases the float one; nothing happens if that was done. */
  quantize(): this {
    if (!this.isQuantized) this.#adopt(quantizeWeight(this.weight));
    return this;
  }

  override forward(ids: Tensor): Tensor {
    this.quantize();
    return embedding8bit(ids, this.weight, this.SCB as Tensor, this.dtype);
  }

  override saveTo(dict: StateDict, prefix: string): void {
    if (this.SCB) checkScales(this.SCB, `${prefix}SCB`);
    else checkFinite(this.weight, `${prefix}weight`);
    super.saveTo(dict, prefix);
  }

  override loadFrom(source: StateSource, prefix: string): void {
    if (source.has(`${prefix}SCB`)) {
      const { device } = this.weight;
      planInt8Weight(source, prefix, [this.numEmbeddings, this.embeddingDim], device, (w) => this.#adopt(w));
    } else if (this.isQuantized) {
      const weight = source.takeFinite(`${prefix}weight`, this.weight.shape);
      if (weight) source.plan(() => this.#adopt(quantizeWeight(weight, this.weight.device)));
    } else if (source.takeFinite(`${prefix}weight`, this.weight.shape, this.weight.dtype)) {
      source.copy(`${prefix}weight`, this.weight);
    }
  }

  #adopt(weight: Int8Weight): void {
    this.weight.dispose();
    this.SCB?.dispose();
    this.weightFormat?.dispose();
    this.weight = weight.codes;
    this.SCB = weight.SCB;
    this.weightFormat = weight.weightFormat;
  }
}
