// Matrix products and linear layers.
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { aBoolean } from "../tensor/checks.js";
import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { dtypeCode } from "../tensor/dtype.js";
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
  return run(addon.fmaPeak, iterations, device.index)[0];
}

// MatmulVariant and MatmulTile of csrc/kernels/plan/matmul.h: the position is what crosses.
const variants = ["simt", "mma", "cublaslt"] as const;
const tiles = [null, "rows", "skinny", "small", "large"] as const;

/** A product of row-major matrices of one dtype. `aligned`: rows start at multiples of 16 bytes, true by default. */
export interface MatmulProblem extends MatmulOptions {
  batch?: number;
  m: number;
  n: number;
  k: number;
  dtype: DType;
  aligned?: boolean;
}

/** What a plan knows of a GPU; `cc` is ten times the compute capability. */
export interface GpuLimits {
  cc: number;
  sms: number;
  sharedPerBlock: number;
  hasCublaslt: boolean;
}

/** The kernel for a product: blocks of the grid and bytes of shared memory for each; null where it is impossible. */
export interface MatmulPlan {
  variant: (typeof variants)[number];
  tile: (typeof tiles)[number];
  blocks: number;
  sharedBytes: number;
}

/**
 * How a GPU, which need not be there, computes `matmul`; with `forced` the plan of that variant, or null where its
 * kernel cannot do it. For benchmarks, tests and bug reports; BNB_PLAN_MATMUL forces a variant for the whole process.
 */
export function matmulGpuPlan(
  problem: MatmulProblem,
  gpu: GpuLimits,
  forced?: (typeof variants)[number],
): MatmulPlan | null {
  const { batch = 1, m, n, k, dtype, transposeA = false, transposeB = false, aligned = true } = problem;
  const { cc, sms, sharedPerBlock, hasCublaslt } = gpu;
  const [possible, variant, tile, blocks, sharedBytes] = run(
    addon.matmulGpuPlan,
    batch,
    m,
    n,
    k,
    dtypeCode(dtype),
    transposeA,
    transposeB,
    aligned,
    cc,
    sms,
    sharedPerBlock,
    hasCublaslt,
    forced === undefined ? -1 : variants.indexOf(forced),
  );
  if (possible === 0) return null;
  return {
    variant: variants[variant] as MatmulPlan["variant"],
    tile: tiles[tile] as MatmulPlan["tile"],
    blocks,
    sharedBytes,
  };
}
