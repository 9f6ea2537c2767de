// The MLP of two layers with a function between them, under the names that a family gives the layers.
import type { UnaryModule } from "../../nn/index.js";
import { Linear, Module } from "../../nn/index.js";
import type { Tensor } from "../../tensor/tensor.js";
import { activation } from "./activation.js";
import type { ModelOptions } from "./model-options.js";

export interface FeedForwardOptions {
  hiddenSize: number;
  intermediateSize: number;
  /** As configs name it. */
  activation: string;
  bias: boolean;
}

/** `dense4hToH(activation(denseHTo4h(x)))`: GPT-NeoX and Falcon. */
export class FeedForward extends Module {
  static override readonly names = { denseHTo4h: "dense_h_to_4h", dense4hToH: "dense_4h_to_h" };
  denseHTo4h: UnaryModule;
  dense4hToH: UnaryModule;
  readonly #activation: (x: Tensor) => Tensor;

  constructor(own: FeedForwardOptions, options: ModelOptions) {
    super();
    const { hiddenSize, intermediateSize, bias } = own;
    this.denseHTo4h = new Linear(hiddenSize, intermediateSize, { bias, ...options });
    this.dense4hToH = new Linear(intermediateSize, hiddenSize, { bias, ...options });
    this.#activation = activation(own.activation);
  }

  forward(x: Tensor): Tensor {
    return this.dense4hToH.forward(this.#activation(this.denseHTo4h.forward(x)));
  }
}
