// Methods of Tensor: x.add(y) is add(x, y). One line per op in the interface, one in the table.
import { backward } from "../autograd/backward.js";
import type { DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { Tensor } from "../tensor/tensor.js";
import { cast } from "./cast.js";
import * as elementwise from "./elementwise.js";
import type { MatmulOptions } from "./matmul.js";
import { matmul } from "./matmul.js";
import type { ReduceOptions } from "./reduce.js";
import * as reduce from "./reduce.js";
import * as shape from "./shape.js";
import { logSoftmax, softmax } from "./softmax.js";
import { clone, to } from "./to-device.js";

declare module "../tensor/tensor.js" {
  interface Tensor {
    add(other: Tensor | number): Tensor;
    sub(other: Tensor | number): Tensor;
    mul(other: Tensor | number): Tensor;
    div(other: Tensor | number): Tensor;
    maximum(other: Tensor | number): Tensor;
    minimum(other: Tensor | number): Tensor;
    pow(exponent: number): Tensor;
    neg(): Tensor;
    abs(): Tensor;
    sign(): Tensor;
    square(): Tensor;
    reciprocal(): Tensor;
    sqrt(): Tensor;
    rsqrt(): Tensor;
    exp(): Tensor;
    log(): Tensor;
    sigmoid(): Tensor;
    tanh(): Tensor;
    relu(): Tensor;
    silu(): Tensor;
    gelu(): Tensor;
    geluTanh(): Tensor;
    sum(options?: ReduceOptions): Tensor;
    mean(options?: ReduceOptions): Tensor;
    max(options?: ReduceOptions): Tensor;
    min(options?: ReduceOptions): Tensor;
    argmax(options?: ReduceOptions): Tensor;
    matmul(other: Tensor, options?: MatmulOptions): Tensor;
    softmax(): Tensor;
    logSoftmax(): Tensor;
    reshape(shape: readonly number[]): Tensor;
    transpose(a?: number, b?: number): Tensor;
    permute(axes: readonly number[]): Tensor;
    slice(axis: number, start: number, end?: number): Tensor;
    broadcastTo(shape: readonly number[]): Tensor;
    cast(dtype: DType): Tensor;
    to(device: DeviceLike): Tensor;
    /** A copy in memory of its own. */
    clone(): Tensor;
    /** Computes gradients of everything this tensor depends on; see `backward`. */
    backward(gradient?: Tensor): void;
  }
}

// Each takes the tensor as its first argument.
const methods = {
  add: elementwise.add,
  sub: elementwise.sub,
  mul: elementwise.mul,
  div: elementwise.div,
  maximum: elementwise.maximum,
  minimum: elementwise.minimum,
  pow: elementwise.pow,
  neg: elementwise.neg,
  abs: elementwise.abs,
  sign: elementwise.sign,
  square: elementwise.square,
  reciprocal: elementwise.reciprocal,
  sqrt: elementwise.sqrt,
  rsqrt: elementwise.rsqrt,
  exp: elementwise.exp,
  log: elementwise.log,
  sigmoid: elementwise.sigmoid,
  tanh: elementwise.tanh,
  relu: elementwise.relu,
  silu: elementwise.silu,
  gelu: elementwise.gelu,
  geluTanh: elementwise.geluTanh,
  sum: reduce.sum,
  mean: reduce.mean,
  max: reduce.max,
  min: reduce.min,
  argmax: reduce.argmax,
  matmul,
  softmax,
  logSoftmax,
  reshape: shape.reshape,
  transpose: shape.transpose,
  permute: shape.permute,
  slice: shape.slice,
  broadcastTo: shape.broadcastTo,
  cast,
  to,
  clone,
  backward,
};

for (const [name, op] of Object.entries(methods)) {
  const call = op as (x: Tensor, ...rest: unknown[]) => unknown;
  const value = function (this: Tensor, ...rest: unknown[]): unknown {
    return call(this, ...rest);
  };
  Object.defineProperty(Tensor.prototype, name, { value, writable: true, configurable: true });
}
