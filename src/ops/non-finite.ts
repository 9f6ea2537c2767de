// Where a tensor stops being finite: what savers and loaders ask before they quantize or write.
import { addon } from "../tensor/addon.js";
import { run } from "../tensor/run.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

// ReduceOp of csrc/kernels/reduce.h.
const [MAX, MIN] = [2, 3];

/** The flat index of the first NaN or infinity of a float tensor, and the value; null when there is none. Waits. */
export function firstNonFinite(x: Tensor): { value: number; index: number } | null {
  if (x.size === 0) return null;
  // A NaN is both the largest and the smallest element: two numbers tell, without reading the tensor.
  const ends = tidy(() =>
    [MAX, MIN].map((op) => run(addon.reduce, op, x, true, 0, false)[0].floatsSync()[0] as number),
  );
  if (ends.every(Number.isFinite)) return null;
  const values = x.floatsSync();
  const index = values.findIndex((value) => !Number.isFinite(value));
  return { value: values[index] as number, index };
}
