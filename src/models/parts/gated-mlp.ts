// The gated MLP of Llama and its heirs (Shazeer, 2020).
import type { UnaryModule } from "../../nn/index.js";
import { Linear, linearResidual, linearSwiglu, Module } from "../../nn/index.js";
import { mul } from "../../ops/index.js";
import type { Tensor } from "../../tensor/tensor.js";
import { activation } from "./activation.js";
import type { ModelOptions } from "./model-options.js";

export interface GatedMlpOptions {
  hiddenSize: number;
  intermediateSize: number;
  /** As configs name it. Default "silu". */
  activation?: string;
  bias?: boolean;
}

/** `downProj(activation(gateProj(x)) * upProj(x))`. */
export class GatedMlp extends Module {
  gateProj: UnaryModule;
  upProj: UnaryModule;
  downProj: UnaryModule;
  /** Whether the activation is SiLU. */
  readonly isSwiglu: boolean;
  readonly #activation: (x: Tensor) => Tensor;

  constructor(own: GatedMlpOptions, options: ModelOptions) {
    super();
    const { hiddenSize, intermediateSize, activation: name = "silu", bias = false } = own;
    this.gateProj = new Linear(hiddenSize, intermediateSize, { bias, ...options });
    this.upProj = new Linear(hiddenSize, intermediateSize, { bias, ...options });
    this.downProj = new Linear(intermediateSize, hiddenSize, { bias, ...options });
    this.isSwiglu = name === "silu";
    this.#activation = activation(name);
  }

  /** x [..., hidden]; the residual, if given, is added to the result. */
  forward(x: Tensor, residual: Tensor | null = null): Tensor {
    const y = this.isSwiglu
      ? linearSwiglu(this.gateProj, this.upProj, x)
      : mul(this.#activation(this.gateProj.forward(x)), this.upProj.forward(x));
    return residual ? linearResidual(this.downProj, y, residual) : this.downProj.forward(y);
  }
}
