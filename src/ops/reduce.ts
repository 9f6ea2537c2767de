// Reductions over all elements or over one axis.
import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { aBoolean, anInteger } from "../tensor/checks.js";
import type { ReduceOp } from "../tensor/enums.js";
import { reduceOps } from "../tensor/enums.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** Options of `sum`, `mean` and the other reductions. */
export interface ReduceOptions {
  /** The axis to reduce; negative counts from the end. Default: all elements. */
  axis?: number;
  /** Leave reduced axes in the shape with size 1. Default false. */
  keepDims?: boolean;
}
const reduceOptions = optionTable<ReduceOptions>({
  axis: { ...anInteger(-8, 7), code: "ERR_BNB_SHAPE" },
  keepDims: aBoolean,
});

function reduction(name: ReduceOp): (x: Tensor, options?: ReduceOptions) => Tensor {
  const code = reduceOps.indexOf(name);
  const isExtreme = name === "max" || name === "min";
  return defineOp({
    name,
    arity: 2,
    forward(
      ctx: OpContext<[x: Tensor | null, y: Tensor | null, shape: readonly number[], axis: number | undefined]>,
      x: Tensor,
      options: ReduceOptions = {},
    ) {
      checkOptions(name, options, reduceOptions);
      const { axis, keepDims = false } = options;
      const [y] = run(addon.reduce, code, x, axis === undefined, axis ?? 0, keepDims);
      ctx.save(isExtreme ? x : null, isExtreme ? y : null, x.shape, axis);
      return y;
    },
    backward(ctx, dy) {
      const [x, y, shape, axis] = ctx.saved;
      return run(addon.reduceBackward, code, dy, x, y, shape, axis === undefined, axis ?? 0);
    },
  });
}

/**
 * The sum of all elements (a tensor of shape `[]`), or over one axis. Float dtypes; float32 inside in an order that
 * depends on the shape only, the dtype of `x` outside.
 *
 * @example
 * sum(x, { axis: -1, keepDims: true }); // x [2, 3] -> [2, 1]
 */
export const sum = reduction("sum");
/** The sum divided by the number of elements; NaN when there are none. See `sum`. */
export const mean = reduction("mean");
/** The largest element, NaN if there is one. Equal elements share the gradient. See `sum`. */
export const max = reduction("max");
/** The smallest element, NaN if there is one. Equal elements share the gradient. See `sum`. */
export const min = reduction("min");

/** The index of the first largest element as int32, along an axis or in the flattened tensor. Not differentiable. */
export const argmax = defineOp({
  name: "argmax",
  arity: 2,
  forward(_ctx: OpContext, x: Tensor, options: ReduceOptions = {}) {
    checkOptions("argmax", options, reduceOptions);
    const { axis, keepDims = false } = options;
    const [y] = run(addon.argmax, x, axis === undefined, axis ?? 0, keepDims);
    return y;
  },
  backward: null,
});
