// What several adapters add to the rows of a linear layer, each to its own.
import { isGradEnabled } from "../autograd/no-grad.js";
import { addon } from "../tensor/addon.js";
import { BnbError } from "../tensor/errors.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/**
 * `z[t] = y[t] + (x[t] a[i]^T) b[i]` for the rows t from `segment[i]` up to `segment[i + 1]`; rows outside of all segments
 * stay as they are. y [..., outputs] is what a layer makes of x [..., inputs]; a [adapters, rank, inputs] and
 * b [adapters, rank, outputs], scale included, are its adapters, and `segment` int32 [adapters + 1] ascends. y, x, a and b
 * have one dtype, float32, float16 or bfloat16; sums are float32. The product of SGMV (Chen et al., 2023, Punica).
 *
 * There is no gradient: throws ERR_BNB_ARGUMENT where one is wanted.
 *
 * @example
 * // Two rows of the first adapter, one of the second; what follows has none.
 * const z = loraRows(layer.forward(x), x, a, b, tensor([0, 2, 3], { dtype: "int32" }));
 */
export function loraRows(y: Tensor, x: Tensor, a: Tensor, b: Tensor, segment: Tensor): Tensor {
  if (isGradEnabled() && [y, x, a, b].some((one) => one?.requiresGrad)) {
    throw new BnbError("ERR_BNB_ARGUMENT", "loraRows: it has no gradient, call it inside noGrad");
  }
  const [z] = run(addon.loraRows, y, x, a, b, segment);
  return z;
}
