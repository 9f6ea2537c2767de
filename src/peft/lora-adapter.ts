// One adapter of one layer: the matrices A and B, what scales them, and DoRA's lengths of rows.
import { noGrad } from "../autograd/no-grad.js";
import { Dropout, init, Module, Parameter } from "../nn/index.js";
import type { Generator } from "../ops/index.js";
import { aGenerator } from "../ops/random.js";
import { aBoolean, aDevice, aFiniteNumber, aNumberIn, anInteger, oneOf } from "../tensor/checks.js";
import { zeros } from "../tensor/create.js";
import type { Device, DeviceLike } from "../tensor/device.js";
import { toDevice } from "../tensor/device.js";
import { optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";

/** Rank, scale and dropout of an adapter. */
export interface LoraOptions {
  /** Rank of the update. Default 8. */
  r?: number;
  /** The update is scaled by loraAlpha / r, or loraAlpha / sqrt(r) with `useRslora`. Default 8. */
  loraAlpha?: number;
  /** Probability of dropping an input of A while training. Default 0. */
  loraDropout?: number;
  /** Default false. */
  useRslora?: boolean;
  /** DoRA: lengths of rows learned apart from their directions. Default false. */
  useDora?: boolean;
  /** Whether B has a bias, which starts at zero. Default false. */
  loraBias?: boolean;
  /** true (default): A uniform in ±1/sqrt(in), B zero. "gaussian": A normal, deviation 1/r. false: both uniform. */
  initLoraWeights?: boolean | "gaussian";
  /** Default: where the weight of the base is. */
  device?: DeviceLike;
  generator?: Generator;
}

/** @internal */
export const loraOptions = optionTable<LoraOptions>({
  r: anInteger(1),
  loraAlpha: aFiniteNumber,
  loraDropout: aNumberIn(0, 1),
  useRslora: aBoolean,
  useDora: aBoolean,
  loraBias: aBoolean,
  initLoraWeights: oneOf([true, false, "gaussian"]),
  device: aDevice,
  generator: aGenerator,
});

/** The sizes that an adapter connects. */
export interface AdapterShape {
  readonly inputs: number;
  readonly outputs: number;
  readonly device: Device;
  /** Rows are looked up, not multiplied: A starts at zero and B normal. */
  readonly isEmbedding?: boolean;
}

/** A [r, in] and B [out, r] float32, with what belongs to them. Layers compute with it; it has no forward of its own. */
export class LoraAdapter extends Module {
  static override readonly names = {
    loraA: "lora_A",
    loraB: "lora_B",
    loraBias: "lora_B_bias",
    magnitude: "lora_magnitude_vector",
  };

  readonly r: number;
  /** What B A is multiplied by. */
  readonly scaling: number;
  readonly useDora: boolean;
  readonly dropout: Dropout;
  loraA: Parameter;
  loraB: Parameter;
  loraBias: Parameter | null; // [out]
  /** DoRA's length of each row of the weight [out]; set by the layer, which knows its weight. */
  magnitude: Parameter | null = null;

  constructor(shape: AdapterShape, options: LoraOptions = {}) {
    super();
    const { inputs, outputs } = shape;
    const { r = 8, loraAlpha = 8, loraDropout = 0, initLoraWeights = true, useRslora = false, generator } = options;
    const device = options.device === undefined ? shape.device : toDevice(options.device);
    const place = { device, ...(generator && { generator }) };
    this.r = r;
    this.scaling = loraAlpha / (useRslora ? Math.sqrt(r) : r);
    this.useDora = options.useDora ?? false;
    this.dropout = new Dropout(loraDropout, { generator });
    const uniform = (rows: number, columns: number): Tensor => {
      const bound = 1 / Math.sqrt(Math.max(columns, 1));
      return init.uniform([rows, columns], -bound, bound, place);
    };
    const none = (...sizes: number[]): Tensor => zeros(sizes, { device });
    if (shape.isEmbedding) {
      this.loraA = new Parameter(initLoraWeights ? none(r, inputs) : init.normal([r, inputs], 0, 1, place));
      this.loraB = new Parameter(init.normal([outputs, r], 0, 1, place));
    } else {
      const isGaussian = initLoraWeights === "gaussian";
      this.loraA = new Parameter(isGaussian ? init.normal([r, inputs], 0, 1 / r, place) : uniform(r, inputs));
      this.loraB = new Parameter(initLoraWeights === false ? uniform(outputs, r) : none(outputs, r));
    }
    this.loraBias = options.loraBias ? new Parameter(none(outputs)) : null;
  }

  /** A and B as they began, where the base gave a part of its weight for them. */
  start: { readonly a: readonly number[] | Float32Array; readonly b: readonly number[] | Float32Array } | null = null;

  /** Every tensor that learns. */
  get tensors(): Parameter[] {
    return [this.loraA, this.loraB, this.loraBias, this.magnitude].filter((t): t is Parameter => t !== null);
  }

  /** Gives the adapter other values of the same shapes. The tensors stay the caller's. */
  assign(values: { loraA: Tensor; loraB: Tensor }): void {
    noGrad(() => this.loadStateDict({ lora_A: values.loraA, lora_B: values.loraB }, { strict: false }));
  }

  override details(): string {
    return `r=${this.r}, scaling=${this.scaling}${this.useDora ? ", dora" : ""}`;
  }

  forward(): never {
    throw new Error("an adapter is computed by its layer");
  }
}
