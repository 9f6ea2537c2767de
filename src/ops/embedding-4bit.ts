// Rows of a 4-bit table by id: only the blocks that the ids touch are decoded.
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import type { DType } from "../tensor/dtype.js";
import { dtypeCode } from "../tensor/dtype.js";
import type { Quantized4Bit } from "../tensor/quantized.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/**
 * `y[i] = dequantize(weight)[ids[i]]` as `dtype`; ids int32 of any shape. An id outside the table is an error at
 * the next read. The table is frozen: there is no gradient.
 *
 * @example
 * const rows = embedding4bit(ids, table, "bfloat16"); // ids [batch, seq], table [V, D] -> [batch, seq, D]
 */
export const embedding4bit = defineOp<[ids: Tensor, weight: Quantized4Bit, dtype: DType], []>({
  name: "embedding4bit",
  arity: 3,
  forward(_ctx, ids, weight, dtype) {
    const [y] = run(addon.embedding4bit, ids, weight, dtypeCode(dtype));
    return y;
  },
  backward: null,
});
