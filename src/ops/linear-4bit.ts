// The linear product with a frozen 4-bit weight.
import { defineOp } from "../autograd/define-op.js";
import { isGradEnabled, noGrad } from "../autograd/no-grad.js";
import { addon } from "../tensor/addon.js";
import { anInstance, arrayOf, aTensor, checkArgument, checkTensor, orNull } from "../tensor/checks.js";
import { dtypeCode } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { Quantized4Bit } from "../tensor/quantized.js";
import { run } from "../tensor/run.js";
import { keep } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { ActivationQuant } from "./activation-quant.js";
import { anActivationQuant } from "./activation-quant.js";
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

/** Options of `matmul4bit`. */
export interface Matmul4bitOptions {
  /** [N], any float dtype, added in float32. */
  bias?: Tensor | null;
  /** Receives the result [..., N], rounded to its own float dtype; then nothing is recorded for `backward()`. */
  out?: Tensor;
  /** How the CPU may round A; default "none". Beside a result for `backward()`, too, which itself is exact. */
  activationQuant?: ActivationQuant;
}
const outOptions = optionTable<{ out?: Tensor }>({ out: aTensor });
const matmulOptions = optionTable<Matmul4bitOptions>({
  bias: orNull(aTensor),
  out: aTensor,
  activationQuant: anActivationQuant,
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
  const { bias = null, out, activationQuant } = options;
  const records = isGradEnabled() && (A.requiresGrad || bias?.requiresGrad === true);
  if (out && records) {
    throw new BnbError("ERR_BNB_ARGUMENT", "matmul4bit: out cannot be given when a gradient is wanted");
  }
  const weight = quantState.quantized(B, activationQuant);
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
