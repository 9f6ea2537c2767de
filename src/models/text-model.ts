// What every model of texts is: a module with a config and the tokenizer of its checkpoint.
import type { Tokenizer } from "../hub/index.js";
import { Module } from "../nn/index.js";
import type { Device } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
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

  constructor(config: C) {
    super();
    this.config = config;
  }

  /** Where its weights are. */
  abstract get device(): Device;

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
    super.dispose();
  }
}
