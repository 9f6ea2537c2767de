// LayerNorm: normalization to mean 0 and variance 1 with a learned scale and shift.

import { layerNorm } from "../ops/layer-norm.js";
import { aBoolean, aDevice, aDType, aNumber, checkArgument } from "../tensor/checks.js";
import { ones, zeros } from "../tensor/create.js";
import type { DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import { aSize } from "./layer-options.js";
import { Module } from "./module.js";
import { Parameter } from "./parameter.js";

/** Options of `LayerNorm`. */
export interface LayerNormOptions {
  /** Added to the variance; default 1e-5. */
  eps?: number;
  /** Whether there are a weight and a bias at all; default true. */
  elementwiseAffine?: boolean;
  /** Whether there is a bias beside the weight; default true. */
  bias?: boolean;
  dtype?: DType;
  device?: DeviceLike;
}
const normOptions = optionTable<LayerNormOptions>({
  eps: aNumber,
  elementwiseAffine: aBoolean,
  bias: aBoolean,
  dtype: aDType,
  device: aDevice,
});

/** `y = (x - mean) / sqrt(variance + eps) * weight + bias` over the last axis. */
export class LayerNorm extends Module {
  readonly eps: number;
  weight: Parameter | null; // [dim], starts at one
  bias: Parameter | null; // [dim], starts at zero

  constructor(dim: number, options: LayerNormOptions = {}) {
    super();
    checkArgument("LayerNorm", "dim", dim, aSize);
    checkOptions("LayerNorm", options, normOptions);
    const { eps = 1e-5, elementwiseAffine = true, bias = true, ...place } = options;
    this.eps = eps;
    this.weight = elementwiseAffine ? new Parameter(ones([dim], place)) : null;
    this.bias = elementwiseAffine && bias ? new Parameter(zeros([dim], place)) : null;
  }

  override details(): string {
    const affine = this.weight === null ? "False" : "True";
    return `${this.weight ? `(${this.weight.size},), ` : ""}eps=${this.eps}, elementwise_affine=${affine}`;
  }

  forward(x: Tensor): Tensor {
    return layerNorm(x, this.weight, this.bias, this.eps);
  }
}
