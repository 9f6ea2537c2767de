// The `out` argument of functions whose native op makes a new tensor.
import { addon } from "../tensor/addon.js";
import { BnbError } from "../tensor/errors.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** Gives `out` the elements of y, which is disposed: out must have its dtype and shape. */
export function moveInto(op: string, y: Tensor, out: Tensor): Tensor {
  try {
    if (out.dtype !== y.dtype || String(out.shape) !== String(y.shape)) {
      const came = `${out.dtype} [${out.shape.join(", ")}]`;
      throw new BnbError("ERR_BNB_SHAPE", `${op}: out must be ${y.dtype} [${y.shape.join(", ")}], got ${came}`);
    }
    run(addon.copyInto, out, y, 0, 0, null);
    return out;
  } finally {
    y.dispose();
  }
}
