// Initial values of parameters: drawn in float32 from a seeded generator and rounded to the dtype.

import type { RandomOptions } from "../ops/random.js";
import { rand, randn } from "../ops/random.js";
import { aFiniteNumber, aShape, checkArgument } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { isUninitialized, placeholder } from "../tensor/placeholder.js";
import type { Tensor } from "../tensor/tensor.js";
import type { InitOptions } from "./layer-options.js";
import { initChecks, place } from "./layer-options.js";

export type { InitOptions } from "./layer-options.js";

const initOptions = optionTable<InitOptions>(initChecks);
const kaimingOptions = optionTable<InitOptions & { a?: number }>({ ...initChecks, a: aFiniteNumber });
const xavierOptions = optionTable<InitOptions & { gain?: number }>({ ...initChecks, gain: aFiniteNumber });

/** Uniform values in [low, high). */
export function uniform(shape: readonly number[], low: number, high: number, options: InitOptions = {}): Tensor {
  checkOptions("uniform", options, initOptions);
  if (isUninitialized()) return absent("uniform", shape, options);
  return rand(shape, { ...source(options), low, high });
}

/** Normal values with the given mean and standard deviation. */
export function normal(shape: readonly number[], mean: number, std: number, options: InitOptions = {}): Tensor {
  checkOptions("normal", options, initOptions);
  if (isUninitialized()) return absent("normal", shape, options);
  return randn(shape, { ...source(options), mean, std });
}

/**
 * Uniform in ±gain * sqrt(3 / fanIn) with gain = sqrt(2 / (1 + a^2)); `a` is the slope of the leaky ReLU that
 * follows. The default a = sqrt(5), the start of a linear layer, gives ±1/sqrt(fanIn).
 */
export function kaimingUniform(shape: readonly number[], options: InitOptions & { a?: number } = {}): Tensor {
  checkOptions("kaimingUniform", options, kaimingOptions);
  const { fanIn } = fans(shape);
  const a = options.a ?? Math.sqrt(5);
  const bound = Math.sqrt(6 / ((1 + a * a) * Math.max(fanIn, 1)));
  return uniform(shape, -bound, bound, place(options));
}

/** Uniform in ±gain * sqrt(6 / (fanIn + fanOut)). */
export function xavierUniform(shape: readonly number[], options: InitOptions & { gain?: number } = {}): Tensor {
  checkOptions("xavierUniform", options, xavierOptions);
  const { fanIn, fanOut } = fans(shape);
  const bound = (options.gain ?? 1) * Math.sqrt(6 / Math.max(fanIn + fanOut, 1));
  return uniform(shape, -bound, bound, place(options));
}

/** What stands in for values that are not to be drawn. */
function absent(op: string, shape: readonly number[], options: InitOptions): Tensor {
  checkArgument(op, "shape", shape, aShape);
  return placeholder(shape, { dtype: options.dtype, device: options.device });
}

/** The options that are given. */
function source({ dtype, device, generator }: InitOptions): RandomOptions {
  return { ...(dtype && { dtype }), ...(device && { device }), ...(generator && { generator }) };
}

/** Inputs and outputs of one unit of a weight [out, in, ...kernel]. */
function fans(shape: readonly number[]): { fanIn: number; fanOut: number } {
  checkArgument("init", "shape", shape, aShape);
  const [out, inputs, ...kernel] = shape;
  if (out === undefined || inputs === undefined) {
    throw new BnbError("ERR_BNB_SHAPE", `init: the shape must have at least two axes, got [${shape.join(", ")}]`);
  }
  const field = kernel.reduce((product, size) => product * size, 1);
  return { fanIn: inputs * field, fanOut: out * field };
}
