// What decides which kernel computes a product, for any device, also one that is not here: for benchmarks, tests and
// bug reports. A problem and a GPU cross as one record of numbers, a plan comes back as one; csrc/ops/plans.cc reads
// and writes them in the order that stands here.
import { addon } from "../tensor/addon.js";
import type { DType } from "../tensor/dtype.js";
import { dtypeCode } from "../tensor/dtype.js";
import { linear4bitPlans, linear4bitVariants, matmulTiles, matmulVariants } from "../tensor/enums.js";
import { run } from "../tensor/run.js";

/** What of a GPU decides. */
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

function record(gpu: GpuLimits, ...problem: (number | boolean)[]): Float64Array {
  const { cc, sms, sharedPerBlock, l2Bytes = 0, hasCublaslt = false } = gpu;
  return Float64Array.from([cc, sms, sharedPerBlock, l2Bytes, hasCublaslt, ...problem], Number);
}

// --- products with a 4-bit weight ---

/**
 * How the CPU computes `linear4bit` for m rows of k inputs: "small" multiplies while it decodes, "packed" decodes
 * into panels first, "plain" does so for any k.
 */
export function linear4bitPlan(m: number, k: number): (typeof linear4bitPlans)[number] {
  return linear4bitPlans[run(addon.linear4bitPlan, m, k)[0]] as (typeof linear4bitPlans)[number];
}

/** A product with a 4-bit weight: x[m, k] w[n, k]^T, or dy[m, n] w[n, k]. */
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

/** How a GPU computes `linear4bit` and its gradient. */
export interface Linear4bitGpuPlan {
  /** False where the variant that was asked for cannot do it. */
  possible: boolean;
  variant: (typeof linear4bitVariants)[number];
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
 * that kernel would do. BNB_PLAN_LINEAR_4BIT forces a variant.
 */
export function linear4bitGpuPlan(
  problem: Linear4bitProblem,
  gpu: GpuLimits,
  variant?: (typeof linear4bitVariants)[number],
): Linear4bitGpuPlan {
  const { m, n, k, blocksize = 64, dtype, aligned = true, backward = false } = problem;
  const forced = variant === undefined ? -1 : linear4bitVariants.indexOf(variant);
  const given = record(gpu, m, n, k, blocksize, dtypeCode(dtype), aligned, backward, forced);
  const [possible, chosen, tokens, outputs, sumWarps, splits, stages, wideTable, blocks, sharedBytes] = run(
    addon.linear4bitGpuPlan,
    given,
  );
  return {
    possible: possible !== 0,
    variant: linear4bitVariants[chosen] as (typeof linear4bitVariants)[number],
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

/** Products of x[m, k] with two or three weights [ns[i], k]. */
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
 * product, and the bytes of shared memory of each block.
 */
export function linear4bitGroupGpuPlan(
  group: Linear4bitGroup,
  gpu: GpuLimits,
): { possible: boolean; blocks: number[]; sharedBytes: number } {
  const { m, ns, k, dtype, blocksize = 64, swiglu = false } = group;
  const given = record(gpu, m, k, blocksize, dtypeCode(dtype), swiglu, ...ns);
  const [possible, sharedBytes, ...blocks] = run(addon.linear4bitGroupGpuPlan, given);
  return { possible: possible !== 0, blocks: blocks.slice(0, ns.length), sharedBytes };
}

// --- products of matrices ---

/** A product of row-major matrices of one dtype. */
export interface MatmulProblem {
  batch?: number;
  m: number;
  n: number;
  k: number;
  dtype: DType;
  transposeA?: boolean;
  transposeB?: boolean;
  /** Whether rows start at multiples of 16 bytes. Default true. */
  aligned?: boolean;
}

/** The kernel for a product: blocks of the grid and bytes of shared memory for each. */
export interface MatmulPlan {
  variant: (typeof matmulVariants)[number];
  tile: (typeof matmulTiles)[number];
  blocks: number;
  sharedBytes: number;
}

/**
 * How a GPU computes `matmul`; with `forced` the plan of that variant, or null where its kernel cannot do it.
 * BNB_PLAN_MATMUL forces a variant for the whole process.
 */
export function matmulGpuPlan(
  problem: MatmulProblem,
  gpu: GpuLimits,
  forced?: (typeof matmulVariants)[number],
): MatmulPlan | null {
  const { batch = 1, m, n, k, dtype, transposeA = false, transposeB = false, aligned = true } = problem;
  const wanted = forced === undefined ? -1 : matmulVariants.indexOf(forced);
  const given = record(gpu, batch, m, n, k, dtypeCode(dtype), transposeA, transposeB, aligned, wanted);
  const [possible, variant, tile, blocks, sharedBytes] = run(addon.matmulGpuPlan, given);
  if (possible === 0) return null;
  return {
    variant: matmulVariants[variant] as MatmulPlan["variant"],
    tile: matmulTiles[tile] as MatmulPlan["tile"],
    blocks,
    sharedBytes,
  };
}

// --- grids ---

/** What a block of a kernel takes. */
export interface BlockNeeds {
  threads: number;
  /** Of each thread. */
  registers: number;
  sharedBytes: number;
}

/** How many blocks of a kernel a multiprocessor holds at once. */
export function residentBlocks(block: BlockNeeds, gpu: GpuLimits): number {
  return run(addon.residentBlocks, record(gpu, block.threads, block.registers, block.sharedBytes))[0];
}
