// Initial values of parameters: drawn in float32 from a seeded generator and rounded to the dtype.

import type { Generator, RandomOptions } from "../ops/random.js";
import { rand, randn } from "../ops/random.js";
import type { DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import type { Tensor } from "../tensor/tensor.js";

export interface InitOptions {
  /** dtype of the result; default float32. */
  dtype?: DType;
  device?: DeviceLike;
  /** Source of the values; default the global one. */
  generator?: Generator;
}

/** Uniform values in [low, high). */
export function uniform(shape: readonly number[], low: number, high: number, options: InitOptions = {}): Tensor {
  return rand(shape, { ...source(options), low, high });
}

/** Normal values with the given mean and standard deviation. */
export function normal(shape: readonly number[], mean: number, std: number, options: InitOptions = {}): Tensor {
  return randn(shape, { ...source(options), mean, std });
}

/**
 * Uniform in ±gain * sqrt(3 / fanIn) with gain = sqrt(2 / (1 + a^2)); `a` is the slope of the leaky ReLU that
 * follows. The default a = sqrt(5), the start of a linear layer, gives ±1/sqrt(fanIn).
 */
export function kaimingUniform(shape: readonly number[], options: InitOptions & { a?: number } = {}): Tensor {
  const { fanIn } = fans(shape);
  const a = options.a ?? Math.sqrt(5);
  const bound = Math.sqrt(6 / ((1 + a * a) * Math.max(fanIn, 1)));
  return uniform(shape, -bound, bound, options);
}

/** Uniform in ±gain * sqrt(6 / (fanIn + fanOut)). */
export function xavierUniform(shape: readonly number[], options: InitOptions & { gain?: number } = {}): Tensor {
  const { fanIn, fanOut } = fans(shape);
  const bound = (options.gain ?? 1) * Math.sqrt(6 / Math.max(fanIn + fanOut, 1));
  return uniform(shape, -bound, bound, options);
}

/** The options that the random functions take; those of a layer's constructor may come along. */
function source({ dtype, device, generator }: InitOptions): RandomOptions {
  return { ...(dtype && { dtype }), ...(device && { device }), ...(generator && { generator }) };
}

/** Inputs and outputs of one unit of a weight [out, in, ...kernel]. */
function fans(shape: readonly number[]): { fanIn: number; fanOut: number } {
  const [out, inputs, ...kernel] = shape;
  if (out === undefined || inputs === undefined) {
    throw new BnbError("ERR_BNB_SHAPE", `init: the shape must have at least two axes, got [${shape.join(", ")}]`);
  }
  const field = kernel.reduce((product, size) => product * size, 1);
  return { fanIn: inputs * field, fanOut: out * field };
}
