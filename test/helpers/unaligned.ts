// Tensors at addresses that no vector load may use.
import type { DType, Tensor } from "../../src/index.js";
import { tensor } from "../../src/index.js";
import { reshape, slice } from "../../src/ops/shape.js";

/** The values as a view that begins one element after the beginning of its memory. */
export function unaligned(
  values: ArrayLike<number>,
  shape: readonly number[],
  options: { dtype?: DType; device: string },
): Tensor {
  const data = new Float32Array(values.length + 1);
  data.set(values, 1);
  return reshape(slice(tensor(data, options), 0, 1), shape);
}
