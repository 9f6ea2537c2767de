// Elementwise functions of one tensor, and of two tensors or a tensor and a number.
import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { checkTensor } from "../tensor/checks.js";
import type { BinaryOp, UnaryOp } from "../tensor/enums.js";
import { binaryOps, unaryFromOutput, unaryOps } from "../tensor/enums.js";
import { BnbError } from "../tensor/errors.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

// The native op is one for all functions, so it could not say which one was called.
function checkAlive(name: string, argument: string, tensor: Tensor): void {
  checkTensor(name, argument, tensor);
  if (tensor.disposed) throw new BnbError("ERR_BNB_DISPOSED", `${name}: ${argument} was disposed`);
}

function unary(name: UnaryOp): (x: Tensor) => Tensor {
  const code = unaryOps.indexOf(name);
  return defineOp({
    name,
    arity: 1,
    forward(ctx: OpContext<[saved: Tensor]>, x: Tensor) {
      checkAlive(name, "x", x);
      const [y] = run(addon.unary, code, x, 0);
      ctx.save(unaryFromOutput.has(name) ? y : x);
      return y;
    },
    backward(ctx, dy) {
      const [saved] = ctx.saved;
      return run(addon.unaryBackward, code, dy, saved, 0);
    },
  });
}

function binary(name: BinaryOp): (a: Tensor, b: Tensor | number) => Tensor {
  const code = binaryOps.indexOf(name);
  const isLinear = name === "add" || name === "sub";

  // dmul/da needs b alone, and the other way around; add and sub need neither.
  const ofTensors = defineOp({
    name,
    arity: 2,
    forward(
      ctx: OpContext<[a: Tensor | null, b: Tensor | null, aShape: readonly number[], bShape: readonly number[]]>,
      a: Tensor,
      b: Tensor,
    ) {
      checkAlive(name, "a", a);
      checkAlive(name, "b", b);
      const [y] = run(addon.binary, code, a, b, 0);
      const needsA = !isLinear && (name !== "mul" || ctx.needs(1));
      const needsB = !isLinear && (name !== "mul" || ctx.needs(0));
      ctx.save(needsA ? a : null, needsB ? b : null, a.shape, b.shape);
      return y;
    },
    backward(ctx, dy) {
      const [a, b, aShape, bShape] = ctx.saved;
      return run(addon.binaryBackward, code, dy, a, b, 0, aShape, bShape, ctx.needs(0), ctx.needs(1));
    },
  });

  const withNumber = defineOp({
    name,
    arity: 2,
    forward(ctx: OpContext<[a: Tensor | null, number: number]>, a: Tensor, number: number) {
      checkAlive(name, "a", a);
      const [y] = run(addon.binary, code, a, null, number);
      ctx.save(name === "maximum" || name === "minimum" ? a : null, number);
      return y;
    },
    backward(ctx, dy) {
      const [a, number] = ctx.saved;
      if (isLinear) return [dy];
      if (!a) return run(addon.binary, code, dy, null, number);
      const [da] = run(addon.binaryBackward, code, dy, a, null, number, dy.shape, dy.shape, true, false);
      return [da];
    },
  });

  const isWithNumber = (args: [Tensor, Tensor | number]): args is [Tensor, number] => typeof args[1] === "number";
  return (...args) => (isWithNumber(args) ? withNumber(...args) : ofTensors(...(args as [Tensor, Tensor])));
}

/**
 * `a + b` with NumPy broadcasting; `b` may be a number. Tensors must have one dtype, which the result has; int32
 * wraps. A number beside a 16-bit tensor is not rounded to 16 bits. The same holds for `sub`, `mul`, `div` (no
 * int32), `maximum` and `minimum`.
 *
 * @example
 * add(x, bias); // x [batch, features], bias [features]
 */
export const add = binary("add");
/** `a - b`, see `add`. */
export const sub = binary("sub");
/** `a * b`, see `add`. */
export const mul = binary("mul");
/** `a / b`, see `add`; float dtypes only. */
export const div = binary("div");
/** The larger of `a` and `b`, NaN if either is. At a tie each side gets half of the gradient. See `add`. */
export const maximum = binary("maximum");
/** The smaller of `a` and `b`, NaN if either is. At a tie each side gets half of the gradient. See `add`. */
export const minimum = binary("minimum");

/** `-x`. Like all functions of one tensor here: float dtypes, the result has the dtype of `x`. */
export const neg = unary("neg");
/** `|x|`; its gradient at 0 is 0. */
export const abs = unary("abs");
/** -1, 0 or 1; NaN stays NaN. */
export const sign = unary("sign");
/** `x * x`. */
export const square = unary("square");
/** `1 / x`. */
export const reciprocal = unary("reciprocal");
/** The square root; NaN for negative `x`. */
export const sqrt = unary("sqrt");
/** `1 / sqrt(x)`. */
export const rsqrt = unary("rsqrt");
/** `e ** x`. */
export const exp = unary("exp");
/** The natural logarithm. */
export const log = unary("log");
/** `1 / (1 + exp(-x))`. */
export const sigmoid = unary("sigmoid");
/** The hyperbolic tangent. */
export const tanh = unary("tanh");
/** `max(x, 0)`; its gradient at 0 is 0. */
export const relu = unary("relu");
/** `x * sigmoid(x)`. */
export const silu = unary("silu");
/** `x * Phi(x)` with the normal distribution function Phi, by erf (not the tanh approximation). */
export const gelu = unary("gelu");
/** `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`, which approximates `gelu` (Hendrycks and Gimpel, 2016). */
export const geluTanh = unary("geluTanh");

const POW = unaryOps.indexOf("pow");

/** `x ** exponent`. A negative `x` gives NaN unless the exponent is a whole number. */
export const pow = defineOp({
  name: "pow",
  arity: 2,
  forward(ctx: OpContext<[x: Tensor, exponent: number]>, x: Tensor, exponent: number) {
    checkAlive("pow", "x", x);
    const [y] = run(addon.unary, POW, x, exponent);
    ctx.save(x, exponent);
    return y;
  },
  // dx = dy * exponent * x ** (exponent - 1)
  backward(ctx, dy) {
    const [x, exponent] = ctx.saved;
    return run(addon.unaryBackward, POW, dy, x, exponent);
  },
});
