// What crosses to the addon as a number: the position in these lists, in the order of the C++ enum that is named.
// test/native/enums.test.ts holds both equal. Dtypes stand in dtype.ts.

/** UnaryOp, csrc/kernels/elementwise.h. */
export const unaryOps = [
  "neg",
  "abs",
  "sign",
  "square",
  "reciprocal",
  "sqrt",
  "rsqrt",
  "exp",
  "log",
  "sigmoid",
  "tanh",
  "relu",
  "silu",
  "gelu",
  "geluTanh",
  "pow",
] as const;
export type UnaryOp = (typeof unaryOps)[number];

/** Those whose gradient is computed from y instead of x. */
export const unaryFromOutput: ReadonlySet<UnaryOp> = new Set<UnaryOp>([
  "reciprocal",
  "sqrt",
  "rsqrt",
  "exp",
  "sigmoid",
  "tanh",
  "relu",
]);

/** BinaryOp, csrc/kernels/elementwise.h. */
export const binaryOps = ["add", "sub", "mul", "div", "maximum", "minimum"] as const;
export type BinaryOp = (typeof binaryOps)[number];

/** ReduceOp, csrc/kernels/reduce.h. */
export const reduceOps = ["sum", "mean", "max", "min"] as const;
export type ReduceOp = (typeof reduceOps)[number];

/** Distribution, csrc/kernels/random_fill.h. */
export const distributions = ["uniform", "normal", "integer"] as const;
export type Distribution = (typeof distributions)[number];

/** Codebook, csrc/core/dtype.h; the first four are QuantType. */
export const codebooks = ["nf4", "fp4", "af4", "int4", "dynamic_signed", "dynamic_unsigned"] as const;

/** UpdateRule, csrc/kernels/optimizer_32bit.h. */
export const updateRules = ["adam", "ademamix", "lion", "momentum", "rmsprop", "adagrad", "lamb", "lars"] as const;
export type UpdateRule = (typeof updateRules)[number];

/** ClipRule, csrc/kernels/clip_gradients.h. */
export const clipRules = ["norm2", "norm_max", "value"] as const;
export type ClipRule = (typeof clipRules)[number];

/** Linear4BitPlan, csrc/kernels/linear_4bit.h. */
export const linear4bitPlans = ["small", "packed", "plain"] as const;
/** Linear4BitVariant, csrc/kernels/plan/linear_4bit.h. */
export const linear4bitVariants = ["simt", "small_m", "tile", "dense"] as const;
/** MatmulVariant and MatmulTile, csrc/kernels/plan/matmul.h. */
export const matmulVariants = ["simt", "mma", "cublaslt"] as const;
export const matmulTiles = ["none", "rows", "skinny", "small", "large"] as const;
