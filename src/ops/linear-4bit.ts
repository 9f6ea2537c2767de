// The linear product with a frozen 4-bit weight.
import { defineOp } from "../autograd/define-op.js";
import { isGradEnabled, noGrad } from "../autograd/no-grad.js";
import { addon } from "../tensor/addon.js";
import type { Check } from "../tensor/checks.js";
import { anInstance, arrayOf, aTensor, checkArgument, checkTensor, orNull } from "../tensor/checks.js";
import type { DType } from "../tensor/dtype.js";
import { dtypeCode } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { Quantized4Bit } from "../tensor/quantized.js";
import { run } from "../tensor/run.js";
import { keep } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { QuantState } from "./quant-state.js";
import { aQuantState } from "./quant-state.js";

const product = defineOp<
  [x: Tensor, weight: Quantized4Bit, bias: Tensor | null, residual: Tensor | null],
  [weight: Quantized4Bit, biasDtype: number]
>({
  name: "linear4bit",
  forward(ctx, x, weight, bias, residual) {
    const [y] = run(addon.linear4bit, x, weight, bias, residual);
    ctx.save(weight, dtypeCode(bias?.dtype ?? "float32"));
    return y;
  },
  // dx = dy @ dequantize(w), dbias = the sum of dy's rows. The weight is frozen.
  backward(ctx, dy) {
    const [weight, biasDtype] = ctx.saved;
    return [...run(addon.linear4bitBackward, dy, weight, biasDtype, ctx.needs(0), ctx.needs(1)), dy];
  },
});

/**
 * `y = x @ dequantize(weight)^T + bias + residual` over the last axis, without writing the dequantized weight to memory.
 *
 * x [..., K] float32, float16 or bfloat16; weight of shape [N, K]; bias [N] of any float dtype; residual [..., N] of the
 * dtype of x. Products and sums are float32; y has the dtype of x, rounded once. The gradient reaches x, the bias and
 * the residual, never the weight, which must stay alive until `backward()` has run.
 */
export function linear4bit(
  x: Tensor,
  weight: Quantized4Bit,
  bias: Tensor | null = null,
  residual: Tensor | null = null,
): Tensor {
  return product(x, weight, bias, residual);
}

/**
 * `x @ dequantize(w)^T` for two or three weights [N, K] of one x [..., K], in one pass where the device can. Without a
 * gradient: throws ERR_BNB_ARGUMENT where one is wanted.
 *
 * @example
 * const [q, k, v] = linear4bitEach(x, [wq, wk, wv]);
 */
export function linear4bitEach(x: Tensor, weights: readonly Quantized4Bit[]): Tensor[] {
  checkNoGradient("linear4bitEach", x);
  checkArgument("linear4bitEach", "weights", weights, arrayOf(aQuantizedWeight));
  const [first, second, third = null] = weights;
  if (!first || !second || weights.length > 3) {
    throw new BnbError("ERR_BNB_ARGUMENT", `linear4bitEach: weights must be two or three, got ${weights.length}`);
  }
  return run(addon.linear4bitEach, x, first, second, third).filter((y) => y !== null);
}

/**
 * `silu(x @ dequantize(gate)^T) * (x @ dequantize(up)^T)` for two weights [N, K], in one pass where the device can. The
 * CPU and the kernel for few rows round once, others also the two products. Without a gradient: throws
 * ERR_BNB_ARGUMENT where one is wanted.
 */
export function linear4bitSwiglu(x: Tensor, gate: Quantized4Bit, up: Quantized4Bit): Tensor {
  checkNoGradient("linear4bitSwiglu", x);
  const [y] = run(addon.linear4bitSwiglu, x, gate, up);
  return y;
}

const aQuantizedWeight = anInstance(() => Quantized4Bit, "a Quantized4Bit");

function checkNoGradient(op: string, x: Tensor): void {
  checkTensor(op, "x", x);
  if (!isGradEnabled() || !x.requiresGrad) return;
  throw new BnbError("ERR_BNB_ARGUMENT", `${op}: it has no gradient, call it inside noGrad`);
}

/** How activations enter a product on the CPU: as they are. */
export type ActivationQuant = "none";

/** @internal */
export const aActivationQuant: Check = {
  rule: '"none"',
  holds: (v) => v === "none",
  code: "ERR_BNB_UNSUPPORTED",
};

export interface Matmul4bitOptions {
  /** [N], any float dtype, added in float32. */
  bias?: Tensor | null;
  /** Receives the result [..., N], rounded to its own float dtype; then nothing is recorded for `backward()`. */
  out?: Tensor;
  activationQuant?: ActivationQuant;
}
const outOptions = optionTable<{ out?: Tensor }>({ out: aTensor });
const matmulOptions = optionTable<Matmul4bitOptions>({
  bias: orNull(aTensor),
  out: aTensor,
  activationQuant: aActivationQuant,
});

/**
 * `A @ dequantize(B)^T + bias`: A [..., K], B the packed codes (of any shape) of a weight [N, K] as `quantize4bit`
 * returned them with `quantState`. Products and sums are float32; the result has the dtype of A.
 *
 * @example
 * const [packed, state] = quantize4bit(weight, { quantType: "nf4" });
 * const y = matmul4bit(x, packed, state);
 */
export function matmul4bit(A: Tensor, B: Tensor, quantState: QuantState, options: Matmul4bitOptions = {}): Tensor {
  checkTensor("matmul4bit", "A", A);
  checkArgument("matmul4bit", "quantState", quantState, aQuantState);
  checkOptions("matmul4bit", options, matmulOptions);
  const { bias = null, out } = options;
  const records = isGradEnabled() && (A.requiresGrad || bias?.requiresGrad === true);
  if (out && records) {
    throw new BnbError("ERR_BNB_ARGUMENT", "matmul4bit: out cannot be given when a gradient is wanted");
  }
  const weight = quantState.quantized(B);
  // The backward pass needs the handle for as long as the graph lives; otherwise the call does.
  if (records) return linear4bit(A, keep(weight), bias);
  try {
    if (!out) return linear4bit(A, weight, bias);
    run(addon.linear4bitInto, A, weight, bias, out);
    return out;
  } finally {
    weight.dispose();
  }
}

/**
 * `matmul4bit` for one row, without a gradient: A [..., K] with a single row, the step of generating one token.
 */
export function gemv4bit(A: Tensor, B: Tensor, state: QuantState, options: { out?: Tensor } = {}): Tensor {
  checkTensor("gemv4bit", "A", A);
  checkOptions("gemv4bit", options, outOptions);
  if (A.ndim === 0 || A.size !== A.shape[A.ndim - 1]) {
    throw new BnbError("ERR_BNB_SHAPE", `gemv4bit: A must have a single row, got [${A.shape.join(", ")}]`);
  }
  return noGrad(() => matmul4bit(A, B, state, options));
}

// Linear4BitPlan of csrc/kernels/linear_4bit.h: the position is what crosses.
const plans = ["small", "packed", "plain"] as const;

/**
 * How the CPU computes `linear4bit` for m rows of k inputs: "small" multiplies while it decodes, "packed" decodes
 * into panels first, "plain" does so for any k. For benchmarks and bug reports.
 */
export function linear4bitPlan(m: number, k: number): (typeof plans)[number] {
  return plans[run(addon.linear4bitPlan, m, k)[0]] as (typeof plans)[number];
}

// Linear4BitVariant of csrc/kernels/plan/linear_4bit.h: the position is what crosses.
const variants = ["simt", "small_m", "tile", "dense"] as const;

/** A product with a 4-bit weight as `linear4bitGpuPlan` sees it: x[m, k] w[n, k]^T, or dy[m, n] w[n, k]. */
export interface Linear4bitProblem {
  m: number;
  n: number;
  k: number;
  /** Of the activations. */
  dtype: DType;
  blocksize?: number;
  /** Whether rows of x start at multiples of 16 bytes. Default true. */
  aligned?: boolean;
  backward?: boolean;
}

/** What of a GPU decides: it need not be there. */
export interface GpuLimits {
  /** Compute capability times 10, such as 90. */
  cc: number;
  /** Multiprocessors. */
  sms: number;
  /** Bytes of shared memory that a block may have. */
  sharedPerBlock: number;
  l2Bytes?: number;
  hasCublaslt?: boolean;
}

/** How a GPU computes `linear4bit` and its gradient. */
export interface Linear4bitGpuPlan {
  /** False where the variant that was asked for cannot do it. */
  possible: boolean;
  variant: (typeof variants)[number];
  /** Rows of x that a block takes. */
  tokens: number;
  /** Columns of the result that a block takes at a time. */
  outputs: number;
  /** Warps of a block that share a sum, and blocks that do. */
  sumWarps: number;
  splits: number;
  stages: number;
  wideTable: boolean;
  /** Of the grid; 0 where the dense product chooses. */
  blocks: number;
  sharedBytes: number;
}

/**
 * Which kernel a GPU takes for a product with a 4-bit weight and how its blocks share the work; with `variant` what
 * that kernel would do. BNB_PLAN_LINEAR_4BIT forces a variant. For benchmarks, tests and bug reports.
 */
export function linear4bitGpuPlan(
  problem: Linear4bitProblem,
  gpu: GpuLimits,
  variant?: (typeof variants)[number],
): Linear4bitGpuPlan {
  const [possible, chosen, tokens, outputs, sumWarps, splits, stages, wideTable, blocks, sharedBytes] = run(
    addon.linear4bitGpuPlan,
    problem.m,
    problem.n,
    problem.k,
    problem.blocksize ?? 64,
    dtypeCode(problem.dtype),
    problem.aligned ?? true,
    problem.backward ?? false,
    variant === undefined ? -1 : variants.indexOf(variant),
    gpu.cc,
    gpu.sms,
    gpu.sharedPerBlock,
    gpu.l2Bytes ?? 0,
    gpu.hasCublaslt ?? false,
  );
  return {
    possible: possible !== 0,
    variant: variants[chosen] as (typeof variants)[number],
    tokens,
    outputs,
    sumWarps,
    splits,
    stages,
    wideTable: wideTable !== 0,
    blocks,
    sharedBytes,
  };
}

/** Products of x[m, k] with two or three weights [ns[i], k], as `linear4bitGroupGpuPlan` sees them. */
export interface Linear4bitGroup {
  m: number;
  ns: readonly number[];
  k: number;
  /** Of the activations. */
  dtype: DType;
  blocksize?: number;
  /** `linear4bitSwiglu` instead of `linear4bitEach`. */
  swiglu?: boolean;
}

/**
 * Whether a GPU computes `linear4bitEach` or `linear4bitSwiglu` by one launch, how many blocks of it work on each
 * product, and the bytes of shared memory of each block. For benchmarks, tests and bug reports.
 */
export function linear4bitGroupGpuPlan(
  group: Linear4bitGroup,
  gpu: GpuLimits,
): { possible: boolean; blocks: number[]; sharedBytes: number } {
  const { m, ns, k, dtype, blocksize = 64, swiglu = false } = group;
  const [possible, sharedBytes, ...blocks] = run(
    addon.linear4bitGroupGpuPlan,
    m,
    Float64Array.from(ns),
    k,
    swiglu,
    blocksize,
    dtypeCode(dtype),
    gpu.cc,
    gpu.sms,
    gpu.sharedPerBlock,
  );
  return { possible: possible !== 0, blocks: blocks.slice(0, ns.length), sharedBytes };
}
