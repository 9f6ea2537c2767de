// Shapes as lists of sizes.

/** Whether two shapes have the same axes and sizes. */
export function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis]);
}
