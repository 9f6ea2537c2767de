// How activations may be rounded before they are multiplied by 4-bit weights: a choice of speed on CPUs.
import type { Check } from "../tensor/checks.js";
import { oneOf } from "../tensor/checks.js";

/**
 * To how many bits a CPU may round activations before it multiplies them by 4-bit weights, with one scale for each 64 of a row:
 * "none" multiplies float32 values as they are; "int16" and "int8" allow an error of the product of 2e-4 and 1.5e-2 (relative,
 * in the Frobenius norm) where that is faster on the machine. A GPU computes as for "none".
 */
export type ActivationQuant = "none" | "int16" | "int8";

/** @internal In the order of the native codes. */
export const activationQuants: readonly ActivationQuant[] = ["none", "int16", "int8"];

/** @internal */
export const anActivationQuant: Check = oneOf(activationQuants);
