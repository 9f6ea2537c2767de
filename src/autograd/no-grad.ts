// The switch that says whether ops record what backward() needs.
import { checkFunction } from "../tensor/checks.js";

let enabled = true;

/** Whether ops on tensors that require gradients build a graph now. */
export function isGradEnabled(): boolean {
  return enabled;
}

/**
 * Runs `fn` without recording a graph: results do not require gradients and nothing is saved. Synchronous.
 *
 * @example
 * const logits = noGrad(() => model.forward(ids));
 */
export function noGrad<T>(fn: () => T): T {
  checkFunction("noGrad", "fn", fn);
  return recording(false, fn);
}

/** @internal Runs `fn` with a graph recorded, also where none is: for ops that have a tape of their own. */
export function withGrad<T>(fn: () => T): T {
  return recording(true, fn);
}

function recording<T>(on: boolean, fn: () => T): T {
  const before = enabled;
  enabled = on;
  try {
    return fn();
  } finally {
    enabled = before;
  }
}
