// Matrix products and linear layers.
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { aBoolean } from "../tensor/checks.js";
import type { Device } from "../tensor/device.js";
import { toDevice } from "../tensor/device.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** Which operands are stored with their last two axes swapped. */
export interface MatmulOptions {
  transposeA?: boolean;
  transposeB?: boolean;
}
const matmulOptions = optionTable<MatmulOptions>({ transposeA: aBoolean, transposeB: aBoolean });

const product = defineOp<
  [a: Tensor, b: Tensor, transposeA: boolean, transposeB: boolean],
  [Tensor, Tensor, boolean, boolean]
>({
  name: "matmul",
  forward(ctx, a, b, transposeA, transposeB) {
    const [y] = run(addon.matmul, a, b, transposeA, transposeB);
    ctx.save(a, b, transposeA, transposeB);
    return y;
  },
  backward(ctx, dy) {
    const [a, b, transposeA, transposeB] = ctx.saved;
    return run(addon.matmulBackward, a, b, dy, transposeA, transposeB, ctx.needs(0), ctx.needs(1));
  },
});

/**
 * a[..., M, K] times b[..., K, N], over equal leading axes or one matrix b for all. Sums are float32 whatever the
 * dtype. `transposeA` and `transposeB` read an operand as if its last two axes were swapped, without copying it.
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  checkOptions("matmul", options, matmulOptions);
  return product(a, b, options.transposeA ?? false, options.transposeB ?? false);
}

/** x[..., K] times the transpose of weight[N, K], plus bias[N] unless it is null. */
export const linear = defineOp<[x: Tensor, weight: Tensor, bias: Tensor | null], [Tensor, Tensor]>({
  name: "linear",
  arity: 3,
  forward(ctx, x, weight, bias) {
    const [y] = run(addon.linear, x, weight, bias);
    ctx.save(x, weight);
    return y;
  },
  backward(ctx, dy) {
    const [x, weight] = ctx.saved;
    return run(addon.linearBackward, x, weight, dy, ctx.needs(0), ctx.needs(1), ctx.needs(2));
  },
});

/**
 * Multiply-adds in registers alone, `iterations` times on every thread; the result's first element is how many were
 * done. Timing it gives the ceiling of a matrix product on this device.
 */
export function fmaPeak(iterations: number, device: Device): Tensor {
  return run(addon.fmaPeak, iterations, toDevice(device).index)[0];
}
