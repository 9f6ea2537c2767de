// Conversion of the element type.
import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import type { DType } from "../tensor/dtype.js";
import { dtypeCode, isFloat } from "../tensor/dtype.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/**
 * `x` in another dtype: to a float rounded to nearest even; to an integer toward zero, saturating, NaN becomes 0.
 * Shares memory with `x` when the dtype is the same already. The gradient comes back in the dtype of `x`; through
 * an integer none does.
 */
export function cast(x: Tensor, dtype: DType): Tensor {
  return isFloat(dtype) ? castFloat(x, dtype) : castInteger(x, dtype);
}

const castFloat = defineOp({
  name: "cast",
  forward(ctx: OpContext<[from: DType]>, x: Tensor, dtype: DType) {
    const [y] = run(addon.cast, x, dtypeCode(dtype));
    ctx.save(x.dtype);
    return y;
  },
  backward(ctx, dy) {
    const [from] = ctx.saved;
    return run(addon.cast, dy, dtypeCode(from));
  },
});

const castInteger = defineOp({
  name: "cast",
  forward(_ctx: OpContext, x: Tensor, dtype: DType) {
    const [y] = run(addon.cast, x, dtypeCode(dtype));
    return y;
  },
  backward: null,
});
