// What every model of texts is: a module with a config and the tokenizer of its checkpoint.
import type { Tokenizer } from "../hub/index.js";
import type { WaitingPlace } from "../hub/tensor-to-write.js";
import { Module } from "../nn/index.js";
import type { Device, DeviceLike } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import type { Tensor } from "../tensor/tensor.js";
import type { RopeParameters } from "./rope-scaling.js";

/** What those who drive a model must know of it. */
export interface ModelConfig {
  readonly vocabSize: number;
  readonly maxPositionEmbeddings: number;
  /** How positions turn, where they do. */
  readonly rope?: RopeParameters;
}

/** A module that computes on token ids, and may have a tokenizer. */
export abstract class TextModel<C extends ModelConfig = ModelConfig> extends Module {
  readonly config: C;
  /** What makes tokens of texts; null where the checkpoint has none. A model made in code may be given one. */
  tokenizer: Tokenizer | null = null;
  #ownTokenizer: Tokenizer | null = null;
  #placement: Placement | null = null;

  constructor(config: C) {
    super();
    this.config = config;
  }

  /** Where its weights are. */
  abstract get device(): Device;

  /**
   * Where its parts are: names of devices, "cpu" or "disk" by the paths of modules, as `fromPretrained` decided; one entry
   * for "" where all is in one place.
   */
  get deviceMap(): Readonly<Record<string, string>> {
    return this.#placement?.deviceMap ?? { "": String(this.device) };
  }

  /** Whether all of it is in memory, on one device. */
  get isWhole(): boolean {
    return this.#placement === null;
  }

  /** Whether weights of it wait in host memory or on disk until they are needed. */
  get isOffloaded(): boolean {
    return this.#placement?.isOffloaded ?? false;
  }

  /** @internal Parts on several devices, or elsewhere; ends with the model. */
  adoptPlacement(placement: Placement): void {
    this.#placement = placement;
  }

  /** @internal Null where all of it is in one place. */
  get placement(): Placement | null {
    return this.#placement;
  }

  /** Moves the model; one whose parts are in several places stays: throws ERR_BNB_UNSUPPORTED. */
  override to(device: DeviceLike): this {
    if (this.#placement) refuseSpread("to", "load it with another deviceMap instead");
    return super.to(device);
  }

  /** @internal A tokenizer that ends with the model. */
  adoptTokenizer(tokenizer: Tokenizer): void {
    this.tokenizer = tokenizer;
    this.#ownTokenizer = tokenizer;
  }

  /** @internal Throws ERR_BNB_ARGUMENT where there is none. */
  tokenizerFor(op: string): Tokenizer {
    if (this.tokenizer) return this.tokenizer;
    const rule = `${op}: texts and messages need a tokenizer, got a model without one`;
    throw new BnbError("ERR_BNB_ARGUMENT", `${rule}: its folder had no tokenizer.json; set model.tokenizer`);
  }

  /** Frees the weights, and the tokenizer that was loaded with them; one that was set stays the caller's. */
  override dispose(): void {
    this.#ownTokenizer?.dispose();
    this.#placement?.dispose();
    super.dispose();
  }
}

/** Where the parts of a model are. */
export interface Placement {
  readonly deviceMap: Readonly<Record<string, string>>;
  readonly isOffloaded: boolean;
  /** Paths of what stays float32 where the rest is quantized. */
  readonly floatUnits: readonly string[];
  /**
   * The model's state dict, each tensor with where it waits, if it does. Brings one unit at a time, as reading the
   * tensors does, and calls `onUnit` before each; `release` lets the last one go.
   */
  savedTensors(onUnit: () => void): Promise<Map<string, SavedTensor>>;
  release(): void;
  dispose(): void;
}

/** A tensor of a state dict. */
export interface SavedTensor {
  readonly tensor: Tensor;
  readonly place: WaitingPlace | null;
}

/** @internal Throws ERR_BNB_UNSUPPORTED: what `op` needs to be in one place is not. */
export function refuseSpread(op: string, advice: string): never {
  const rule = `${op}: the model must be in memory on one device, got one whose deviceMap spreads it`;
  throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}; ${advice}`);
}
