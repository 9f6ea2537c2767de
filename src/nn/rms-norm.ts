// RMSNorm: root-mean-square normalization with a learned scale.

import { rmsNorm } from "../ops/rms-norm.js";
import { aDevice, aDType, aNumber, checkArgument } from "../tensor/checks.js";
import { ones } from "../tensor/create.js";
import type { DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import { aSize } from "./layer-options.js";
import { Module } from "./module.js";
import { Parameter } from "./parameter.js";

/** Options of `RMSNorm`. */
export interface RMSNormOptions {
  /** Added to the mean square; default 1e-6. */
  eps?: number;
  dtype?: DType;
  device?: DeviceLike;
}
const normOptions = optionTable<RMSNormOptions>({ eps: aNumber, dtype: aDType, device: aDevice });

/** `y = x / sqrt(mean(x^2) + eps) * weight` over the last axis; the weight starts at one. */
export class RMSNorm extends Module {
  readonly eps: number;
  weight: Parameter; // [dim]

  constructor(dim: number, options: RMSNormOptions = {}) {
    super();
    checkArgument("RMSNorm", "dim", dim, aSize);
    checkOptions("RMSNorm", options, normOptions);
    const { eps = 1e-6, ...place } = options;
    this.eps = eps;
    this.weight = new Parameter(ones([dim], place));
  }

  override details(): string {
    return `(${this.weight.size},), eps=${this.eps}`;
  }

  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.weight, this.eps);
  }
}
