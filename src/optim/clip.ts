// Gradient clipping. One native call for all gradients; the norm stays on the device.
import { addon } from "../tensor/addon.js";
import { checkTensor, oneOf } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

// ClipRule of csrc/kernels/clip_gradients.h.
const rules = { norm2: 0, normMax: 1, value: 2 };

function gradientsOf(op: string, params: Tensor | Iterable<Tensor>): Tensor[] {
  const isList = typeof (params as Iterable<Tensor> | undefined)?.[Symbol.iterator] === "function";
  const list = isList ? [...(params as Iterable<Tensor>)] : [params as Tensor];
  for (const p of list) checkTensor(op, "each of params", p);
  return list.flatMap((p) => (p.grad ? [p.grad] : []));
}

function checkLimit(op: string, name: string, limit: number): void {
  if (typeof limit !== "number" || !(limit >= 0)) {
    throw new BnbError("ERR_BNB_OPTION", `${op}: ${name} must be a number of at least 0, got ${String(limit)}`);
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
  checkLimit("clipGradNorm", "maxNorm", maxNorm);
  checkOptions("clipGradNorm", options, clipOptions);
  const { normType = 2 } = options;
  const gradients = gradientsOf("clipGradNorm", params);
  if (gradients.length === 0) return null;
  return run(addon.clipGradients, gradients, normType === 2 ? rules.norm2 : rules.normMax, maxNorm)[0];
}

/** Limits every element of all gradients, in place, to [-clipValue, clipValue]. */
export function clipGradValue(params: Tensor | Iterable<Tensor>, clipValue: number): void {
  checkLimit("clipGradValue", "clipValue", clipValue);
  const gradients = gradientsOf("clipGradValue", params);
  if (gradients.length === 0) return;
  run(addon.clipGradients, gradients, rules.value, clipValue)[0].dispose();
}
