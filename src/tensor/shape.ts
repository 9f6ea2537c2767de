// The one product of sizes on this side of the crossing; csrc/core/shape.h has the other.
import { BnbError } from "./errors.js";

/**
 * @internal A copy of a shape given by a user: a list of whole sizes of at least 0 that multiply to less than 2^53, also
 * those beside a 0. Throws ERR_BNB_SHAPE otherwise.
 */
export function checkShape(op: string, shape: readonly number[]): number[] {
  const show = (): string => (Array.isArray(shape) ? `[${Array.from(shape, String).join(", ")}]` : String(shape));
  if (!Array.isArray(shape))
    throw new BnbError("ERR_BNB_SHAPE", `${op}: shape must be an array of sizes, got ${show()}`);
  const sizes = Array.from(shape as readonly number[]);
  let product = 1;
  for (const size of sizes) {
    if (!(Number.isSafeInteger(size) && size >= 0)) {
      throw new BnbError("ERR_BNB_SHAPE", `${op}: sizes must be whole numbers of at least 0, got ${show()}`);
    }
    product *= size === 0 ? 1 : size;
  }
  if (!Number.isSafeInteger(product)) {
    throw new BnbError("ERR_BNB_SHAPE", `${op}: the size must stay below 2^53 bytes, got ${show()}`);
  }
  return sizes;
}

/** @internal Number of elements of a shape that is a tensor's or came through checkShape. */
export function elementCount(shape: readonly number[]): number {
  let n = 1;
  for (const size of shape) n *= size;
  return n;
}

/** Whether two shapes have the same axes and sizes. */
export function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis]);
}
