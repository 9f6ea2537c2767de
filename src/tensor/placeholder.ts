// Tensors that have a shape but no memory yet: the weights of a model that is about to be loaded. Whatever reads one is
// told that its memory has another size, until `materialize` gives it that of a loaded tensor.
import type { TensorOptions } from "./create.js";
import { empty } from "./create.js";
import { describe } from "./describe.js";
import type { DeviceLike } from "./device.js";
import type { DType } from "./dtype.js";
import { BnbError } from "./errors.js";
import type { Handle } from "./handle.js";
import { Tensor } from "./tensor.js";

const withoutMemory = new WeakSet<Handle>();
let depth = 0;

/** @internal Whether new weights are to be placeholders. */
export function isUninitialized(): boolean {
  return depth > 0;
}

/**
 * Runs `make` with initial values left out: weights that would be drawn get no memory, until they are loaded by
 * `loadCheckpoint` or `loadStateDict`. Synchronous only. Using such a weight before is an error of the op that reads it.
 *
 * @example
 * const model = uninitialized(() => new LlamaForCausalLM(config));
 */
export function uninitialized<T>(make: () => T): T {
  if (typeof make !== "function") {
    throw new BnbError("ERR_BNB_ARGUMENT", `uninitialized: make must be a function, got ${describe(make)}`);
  }
  depth++;
  try {
    return make();
  } finally {
    depth--;
  }
}

/** @internal A tensor of this shape without its memory. */
export function placeholder(
  shape: readonly number[],
  options: { dtype?: DType | undefined; device?: DeviceLike | undefined },
): Tensor {
  const none = empty([0], options as TensorOptions);
  const { dtype, device } = none;
  const handle = none.takeHandle();
  withoutMemory.add(handle);
  return new Tensor(handle, dtype, [...shape], device);
}

/** @internal Whether a tensor waits for its memory. */
export function isPlaceholder(t: Tensor): boolean {
  return t.isHeldBy(withoutMemory);
}

/** @internal Gives a placeholder the memory of `from`, of the same shape, dtype and device, which counts as disposed then. */
export function materialize(t: Tensor, from: Tensor): void {
  t.replaceHandle(from.takeHandle());
}
