// Activations as layers, for Sequential: each is one function of ops without parameters.
import { gelu, geluTanh, relu, sigmoid, silu, tanh } from "../ops/elementwise.js";
import { reshape } from "../ops/shape.js";
import { softmax } from "../ops/softmax.js";
import { anInteger, checkArgument, checkTensor, oneOf } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import { Module } from "./module.js";

/** `max(x, 0)`, elementwise; see {@link relu}. */
export class ReLU extends Module {
  forward(x: Tensor): Tensor {
    return relu(x);
  }
}

/** `x * sigmoid(x)`, elementwise; see {@link silu}. */
export class SiLU extends Module {
  forward(x: Tensor): Tensor {
    return silu(x);
  }
}

/** The hyperbolic tangent, elementwise. */
export class Tanh extends Module {
  forward(x: Tensor): Tensor {
    return tanh(x);
  }
}

/** `1 / (1 + exp(-x))`, elementwise. */
export class Sigmoid extends Module {
  forward(x: Tensor): Tensor {
    return sigmoid(x);
  }
}

/** Options of `GELU`. */
export interface GELUOptions {
  /** "none" (default) for the normal distribution function by erf, "tanh" for its approximation. */
  approximate?: "none" | "tanh";
}
const geluOptions = optionTable<GELUOptions>({ approximate: oneOf(["none", "tanh"]) });

/** `x * Phi(x)`, elementwise (Hendrycks and Gimpel, 2016); see {@link gelu} and {@link geluTanh}. */
export class GELU extends Module {
  readonly approximate: "none" | "tanh";

  constructor(options: GELUOptions = {}) {
    super();
    checkOptions("GELU", options, geluOptions);
    this.approximate = options.approximate ?? "none";
  }

  override details(): string {
    return `approximate='${this.approximate}'`;
  }

  forward(x: Tensor): Tensor {
    return this.approximate === "tanh" ? geluTanh(x) : gelu(x);
  }
}

/** `exp(x) / sum(exp(x))` along the axis `dim`, the last by default. */
export class Softmax extends Module {
  readonly dim: number;

  constructor(dim = -1) {
    super();
    checkArgument("Softmax", "dim", dim, anInteger(Number.MIN_SAFE_INTEGER));
    this.dim = dim;
  }

  override details(): string {
    return `dim=${this.dim}`;
  }

  forward(x: Tensor): Tensor {
    checkTensor("Softmax", "x", x);
    const axis = axisOf("Softmax", "dim", this.dim, x);
    if (axis === x.ndim - 1) return softmax(x);
    return softmax(x.transpose(axis, -1)).transpose(axis, -1);
  }
}

/** Makes one axis of those from `startDim` to `endDim`, both included: `[N, C, H, W]` becomes `[N, C H W]` by default. */
export class Flatten extends Module {
  readonly startDim: number;
  readonly endDim: number;

  constructor(startDim = 1, endDim = -1) {
    super();
    checkArgument("Flatten", "startDim", startDim, anInteger(Number.MIN_SAFE_INTEGER));
    checkArgument("Flatten", "endDim", endDim, anInteger(Number.MIN_SAFE_INTEGER));
    this.startDim = startDim;
    this.endDim = endDim;
  }

  override details(): string {
    return `start_dim=${this.startDim}, end_dim=${this.endDim}`;
  }

  forward(x: Tensor): Tensor {
    checkTensor("Flatten", "x", x);
    const from = axisOf("Flatten", "startDim", this.startDim, x);
    const to = axisOf("Flatten", "endDim", this.endDim, x);
    if (from > to) {
      const axes = `${this.startDim} and ${this.endDim}`;
      throw new BnbError("ERR_BNB_SHAPE", `Flatten: startDim must not lie behind endDim, got ${axes} of [${x.shape}]`);
    }
    const size = x.shape.slice(from, to + 1).reduce((product, n) => product * n, 1);
    return reshape(x, [...x.shape.slice(0, from), size, ...x.shape.slice(to + 1)]);
  }
}

function axisOf(layer: string, name: string, dim: number, x: Tensor): number {
  const axis = dim < 0 ? dim + x.ndim : dim;
  if (axis < 0 || axis >= x.ndim) {
    throw new BnbError("ERR_BNB_SHAPE", `${layer}: ${name} must be an axis of x, got ${dim} for [${x.shape}]`);
  }
  return axis;
}
