// Gradient clipping. One native call for all gradients; the norm stays on the device.
import { addon } from "../tensor/addon.js";
import { checkTensor, oneOf } from "../tensor/checks.js";
import { describe, itemsOf } from "../tensor/describe.js";
import type { ClipRule } from "../tensor/enums.js";
import { clipRules } from "../tensor/enums.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

function gradientsOf(op: string, params: Tensor | Iterable<Tensor>): Tensor[] {
  const list = itemsOf(params as Iterable<Tensor>) ?? [params as Tensor];
  for (const p of list) checkTensor(op, "each of params", p);
  return list.flatMap((p) => (p.grad ? [p.grad] : []));
}

function checkLimit(op: string, name: string, limit: number): void {
  if (typeof limit !== "number" || !(limit >= 0)) {
    throw new BnbError("ERR_BNB_OPTION", `${op}: ${name} must be a number of at least 0, got ${describe(limit)}`);
  }
}

/** Options of `clipGradNorm`. */
export interface ClipNormOptions {
  /** Of the joint norm: the root of the sum of squares, or the largest magnitude. Default 2. */
  normType?: 2 | typeof Infinity;
}

const clipOptions = optionTable<ClipNormOptions>({ normType: oneOf([2, Infinity]) });

/**
 * Scales all gradients in place so that their joint norm is at most `maxNorm`, and returns the norm before: a
 * float32 scalar on the device, or null when no parameter has a gradient. Nothing waits.
 *
 * @example
 * loss.backward();
 * clipGradNorm(model.parameters(), 1.0);
 * optimizer.step();
 */
export function clipGradNorm(
  params: Tensor | Iterable<Tensor>,
  maxNorm: number,
  options: ClipNormOptions = {},
): Tensor | null {
  checkOptions("clipGradNorm", options, clipOptions);
  const { normType = 2 } = options;
  checkLimit("clipGradNorm", "maxNorm", maxNorm);
  const gradients = gradientsOf("clipGradNorm", params);
  if (gradients.length === 0) return null;
  return clip(gradients, normType === 2 ? "norm2" : "norm_max", maxNorm);
}

/** Limits every element of all gradients, in place, to [-clipValue, clipValue]. */
export function clipGradValue(params: Tensor | Iterable<Tensor>, clipValue: number): void {
  checkLimit("clipGradValue", "clipValue", clipValue);
  const gradients = gradientsOf("clipGradValue", params);
  if (gradients.length === 0) return;
  clip(gradients, "value", clipValue).dispose();
}

function clip(gradients: readonly Tensor[], rule: ClipRule, limit: number): Tensor {
  return run(addon.clipGradients, gradients, clipRules.indexOf(rule), limit)[0];
}
