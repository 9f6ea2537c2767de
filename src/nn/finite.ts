// What every layer with a quantized weight asks of a float weight before it is written.
import { firstNonFinite } from "../ops/non-finite.js";
import { BnbError } from "../tensor/errors.js";
import type { Tensor } from "../tensor/tensor.js";

/** Throws ERR_BNB_NONFINITE where loading the weight of a quantized layer would. Waits for the device. */
export function checkFinite(weight: Tensor, name: string): void {
  const bad = firstNonFinite(weight);
  if (!bad) return;
  const rule = `stateDict: "${name}" must be finite to be saved`;
  throw new BnbError("ERR_BNB_NONFINITE", `${rule}, got ${bad.value} at ${bad.index}`);
}
