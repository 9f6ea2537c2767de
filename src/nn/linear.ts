// Linear: y = x W^T + b with the initialization of PyTorch's layer.

import { linear } from "../ops/matmul.js";
import type { Generator } from "../ops/random.js";
import { aBoolean, checkArgument } from "../tensor/checks.js";
import type { DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import { kaimingUniform, uniform } from "./init.js";
import { aSize, initChecks, place } from "./layer-options.js";
import { Module } from "./module.js";
import { Parameter } from "./parameter.js";

/** Options of `Linear`. */
export interface LinearOptions {
  /** Whether a bias is added; default true. */
  bias?: boolean;
  /** dtype of weight and bias; default float32. */
  dtype?: DType;
  device?: DeviceLike;
  /** Source of the initial values; default the global one. */
  generator?: Generator;
}
const linearOptions = optionTable<LinearOptions>({ bias: aBoolean, ...initChecks });

/**
 * `y = x W^T + b` over the last axis. Weight and bias start uniform in ±1/sqrt(inFeatures).
 *
 * @example
 * const layer = new Linear(64, 10);
 * const y = layer.forward(x); // x [..., 64] -> y [..., 10]
 */
export class Linear extends Module {
  readonly inFeatures: number;
  readonly outFeatures: number;
  weight: Parameter; // [outFeatures, inFeatures]
  bias: Parameter | null; // [outFeatures]

  constructor(inFeatures: number, outFeatures: number, options: LinearOptions = {}) {
    super();
    checkArgument("Linear", "inFeatures", inFeatures, aSize);
    checkArgument("Linear", "outFeatures", outFeatures, aSize);
    checkOptions("Linear", options, linearOptions);
    this.inFeatures = inFeatures;
    this.outFeatures = outFeatures;
    this.weight = new Parameter(kaimingUniform([outFeatures, inFeatures], place(options)));
    const bound = 1 / Math.sqrt(Math.max(inFeatures, 1));
    this.bias = options.bias === false ? null : new Parameter(uniform([outFeatures], -bound, bound, place(options)));
  }

  override details(): string {
    return `in_features=${this.inFeatures}, out_features=${this.outFeatures}, bias=${this.bias ? "True" : "False"}`;
  }

  forward(x: Tensor): Tensor {
    return linear(x, this.weight, this.bias);
  }
}
