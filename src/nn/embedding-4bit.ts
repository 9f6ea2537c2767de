// Embedding4bit: a frozen table of rows in 4-bit blocks.
import type { QuantType } from "../ops/codebooks.js";
import { embedding4bit } from "../ops/embedding-4bit.js";
import type { QuantStorage } from "../ops/quantize-4bit.js";
import type { Generator } from "../ops/random.js";
import type { Device, DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import { Embedding } from "./embedding.js";
import { initChecks, place } from "./layer-options.js";
import type { StateDict, StateSource } from "./module.js";
import { Params4bit, planWeight4bit, quantizationChecks } from "./params-4bit.js";

/** Options of `Embedding4bit`, `EmbeddingNF4` and `EmbeddingFP4`. */
export interface Embedding4bitOptions {
  /** dtype of the output, and of the weight until it is quantized; default float32. */
  dtype?: DType;
  /** Default "fp4". */
  quantType?: QuantType;
  /** What the packed bytes are declared as; default "uint8". */
  quantStorage?: QuantStorage;
  device?: DeviceLike;
  /** Source of the initial values; default the global one. */
  generator?: Generator;
}
type TypedOptions = Omit<Embedding4bitOptions, "quantType">;
const { quantType, quantStorage } = quantizationChecks;
const typedOptions = optionTable<TypedOptions>({ ...initChecks, quantStorage });
const layerOptions = optionTable<Embedding4bitOptions>({ ...initChecks, quantStorage, quantType });

/**
 * `y[i] = dequantize(weight)[ids[i]]`, ids int32 of any shape, for any embeddingDim: only the blocks that the ids
 * touch are decoded. Quantized at `quantize()` or the first forward in blocks of 64, scales in float32, and from then
 * on frozen. Saved with the keys of `Linear4bit`.
 */
export class Embedding4bit extends Embedding {
  declare weight: Params4bit;
  readonly dtype: DType;

  constructor(numEmbeddings: number, embeddingDim: number, options: Embedding4bitOptions = {}) {
    checkOptions("Embedding4bit", options, layerOptions);
    super(numEmbeddings, embeddingDim, place(options));
    const { quantType = "fp4", quantStorage = "uint8" } = options;
    this.weight = new Params4bit(this.weight, { quantType, quantStorage, compressStatistics: false, module: this });
    this.dtype = options.dtype ?? "float32";
  }

  /** Quantizes the table and releases the float one; nothing happens if that was done. */
  quantize(): this {
    this.weight.quantize();
    return this;
  }

  override forward(ids: Tensor): Tensor {
    this.quantize();
    return embedding4bit(ids, this.weight.quantized, this.dtype);
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
    planWeight4bit(source, `${prefix}weight`, [this.numEmbeddings, this.embeddingDim], this);
  }
}

/** `Embedding4bit` with the type nf4. */
export class EmbeddingNF4 extends Embedding4bit {
  constructor(numEmbeddings: number, embeddingDim: number, options: TypedOptions = {}) {
    checkOptions("EmbeddingNF4", options, typedOptions);
    super(numEmbeddings, embeddingDim, { ...options, quantType: "nf4" });
  }
}

/** `Embedding4bit` with the type fp4. */
export class EmbeddingFP4 extends Embedding4bit {
  constructor(numEmbeddings: number, embeddingDim: number, options: TypedOptions = {}) {
    checkOptions("EmbeddingFP4", options, typedOptions);
    super(numEmbeddings, embeddingDim, { ...options, quantType: "fp4" });
  }
}
