// Moving elements: other shapes of the same elements, parts, joins, repeats, and writing into a tensor.
import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { anInteger, arrayOf, aTensor, checkArgument, checkTensor, either } from "../tensor/checks.js";
import { dtypeCode } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

const anAxis = { ...anInteger(-8, 7), code: "ERR_BNB_SHAPE" } as const;
const someAxes = arrayOf(anAxis);
const tensors = arrayOf(aTensor);
const openShape = { ...arrayOf(anInteger(-1)), code: "ERR_BNB_SHAPE" } as const;

const show = (shape: readonly number[]): string => `[${shape.join(", ")}]`;

function view(x: Tensor, shape: readonly number[]): Tensor {
  const [y] = run(addon.view, x, shape, dtypeCode(x.dtype), 0);
  return y;
}

// Replaces the one -1 of a shape by what makes the sizes agree.
function resolveShape(x: Tensor, shape: readonly number[]): readonly number[] {
  const open = shape.filter((dim) => dim === -1).length;
  if (open > 1) throw new BnbError("ERR_BNB_SHAPE", `reshape: at most one size may be -1, got ${show(shape)}`);
  let known = 1;
  for (const dim of shape) if (dim !== -1) known *= dim;
  const rest = known === 0 ? 0 : x.size / known;
  const fits = open ? known > 0 && Number.isInteger(rest) : known === x.size;
  if (!fits) {
    throw new BnbError("ERR_BNB_SHAPE", `reshape: shape must hold ${x.size} elements, got ${show(shape)}`);
  }
  return open ? shape.map((dim) => (dim === -1 ? rest : dim)) : shape;
}

/**
 * The same elements in another shape, in which one size may be -1. Shares memory with `x`.
 *
 * @example
 * reshape(x, [-1, 64]); // x [2, 8, 64] -> [16, 64]
 */
export const reshape = defineOp({
  name: "reshape",
  arity: 2,
  forward(ctx: OpContext<[shape: readonly number[]]>, x: Tensor, shape: readonly number[]) {
    checkTensor("reshape", "x", x);
    checkArgument("reshape", "shape", shape, openShape);
    ctx.save(x.shape);
    return view(x, resolveShape(x, shape));
  },
  backward(ctx, dy) {
    return [view(dy, ctx.saved[0])];
  },
});

/** `x` with its axes in the given order: axis i of the result is axis `axes[i]` of `x`. Copies. */
export const permute = defineOp({
  name: "permute",
  arity: 2,
  forward(ctx: OpContext<[inverse: readonly number[]]>, x: Tensor, axes: readonly number[]) {
    checkArgument("permute", "axes", axes, someAxes);
    const [y] = run(addon.permute, x, axes);
    const inverse = new Array<number>(axes.length);
    axes.forEach((axis, i) => {
      inverse[axis < 0 ? axis + x.ndim : axis] = i;
    });
    ctx.save(inverse);
    return y;
  },
  backward(ctx, dy) {
    return run(addon.permute, dy, ctx.saved[0]);
  },
});

/** `x` with two axes exchanged, by default the last two. Copies. */
export function transpose(x: Tensor, a = -2, b = -1): Tensor {
  checkTensor("transpose", "x", x);
  checkArgument("transpose", "a", a, anAxis);
  checkArgument("transpose", "b", b, anAxis);
  const axes = x.shape.map((_, i) => i);
  const [first, second] = [a, b].map((axis) => (axis < 0 ? axis + x.ndim : axis)) as [number, number];
  if (axes[first] === undefined || axes[second] === undefined) {
    throw new BnbError("ERR_BNB_SHAPE", `transpose: axes ${a} and ${b} must exist in ${show(x.shape)}`);
  }
  axes[first] = second;
  axes[second] = first;
  return permute(x, axes);
}

/**
 * Entries `start` to before `end` of an axis. Shares memory with `x` when no longer axis stands before it, so that
 * rows of a matrix are not copied; copies otherwise.
 */
export const slice = defineOp({
  name: "slice",
  arity: 4,
  forward(
    ctx: OpContext<[shape: readonly number[], axis: number, start: number]>,
    x: Tensor,
    axis: number,
    start: number,
    end?: number,
  ) {
    checkTensor("slice", "x", x);
    checkArgument("slice", "axis", axis, anAxis);
    const [y] = run(addon.slice, x, axis, start, end ?? x.shape.at(axis) ?? 0);
    ctx.save(x.shape, axis, start);
    return y;
  },
  backward(ctx, dy) {
    const [shape, axis, start] = ctx.saved;
    return run(addon.sliceBackward, dy, shape, axis, start);
  },
});

/** The tensors one after another along an axis; the other axes and the dtype must agree. */
export const concat = defineOp({
  name: "concat",
  arity: 2,
  forward(ctx: OpContext<[sizes: readonly number[], axis: number]>, xs: readonly Tensor[], axis: number = 0) {
    checkArgument("concat", "xs", xs, tensors);
    checkArgument("concat", "axis", axis, anAxis);
    const [y] = run(addon.concat, xs, axis);
    ctx.save(
      xs.map((x) => x.shape.at(axis) as number),
      axis,
    );
    return y;
  },
  backward(ctx, dy) {
    const [sizes, axis] = ctx.saved;
    let start = 0;
    return [
      sizes.map((size) => {
        const [dx] = run(addon.slice, dy, axis, start, start + size);
        start += size;
        return dx;
      }),
    ];
  },
});

/** `x` repeated along axes of size 1, and along new leading axes, to the given shape. Copies. */
export const broadcastTo = defineOp({
  name: "broadcastTo",
  arity: 2,
  forward(ctx: OpContext<[shape: readonly number[]]>, x: Tensor, shape: readonly number[]) {
    const [y] = run(addon.broadcastTo, x, shape);
    ctx.save(x.shape);
    return y;
  },
  backward(ctx, dy) {
    return run(addon.sumTo, dy, ctx.saved[0], dtypeCode(dy.dtype));
  },
});

/** Options of `copyInto`. */
export interface CopyIntoOptions {
  /** The axis along which `src` may be shorter than `dst`. Default 0. */
  axis?: number;
  /** The first entry of that axis to overwrite: a number, or an int32 tensor [1] that the kernel reads. Default 0. */
  start?: number | Tensor;
}
const copyIntoOptions = optionTable<CopyIntoOptions>({ axis: anAxis, start: either(anInteger(0), aTensor) });

/**
 * Overwrites part of `dst` by `src`, in place: entries `start` to `start + src.shape[axis]` of an axis. Tensors that
 * share memory with `dst` change, too. Has no gradient.
 *
 * @example
 * copyInto(cache, keys, { axis: 1, start: length }); // cache [B, S, H, D], keys [B, T, H, D]
 */
export function copyInto(dst: Tensor, src: Tensor, options: CopyIntoOptions = {}): void {
  checkTensor("copyInto", "dst", dst);
  checkOptions("copyInto", options, copyIntoOptions);
  const { axis = 0, start = 0 } = options;
  if (typeof start === "number") run(addon.copyInto, dst, src, axis, start, null);
  else run(addon.copyInto, dst, src, axis, 0, start);
}
