// The only crossing: run(addon.op, ...args) hands over handles and numbers and wraps the outputs.

import { BnbError } from "../native/errors.js";
import type { NativeOp, Output } from "./addon.js";
import { addon } from "./addon.js";
import { deviceAt } from "./device.js";
import type { DType } from "./dtype.js";
import { dtypes } from "./dtype.js";
import { Handle } from "./handle.js";
import { Quantized4Bit } from "./quantized.js";
import { Tensor } from "./tensor.js";

// [count, then per output: handle, dtype, device, ndim, dims...]; written by csrc/napi/bind.h.
const results = new Float64Array(1 << 14);
const QUANTIZED = -1;
const NUMBER = -2;

// What the addon warns of during an op. It is passed on when the results are read: process.emitWarning may be anyone's.
let warning: string | null = null;
addon.setup(results, BnbError, (message) => {
  warning = message;
});

function warn(message: string): void {
  warning = null;
  process.emitWarning(message, { type: "BnbWarning", code: "BNB_BACKLOG" });
}

/**
 * Runs a native op: tensors among the arguments (also in arrays) become handles, null becomes 0, and the first of the
 * results says which arguments those are, as a number could be either. From the crossing until the results are read no
 * code but this library's may run: another op would overwrite them. So arrays, whose elements can be getters, are copied.
 */
export function run<Args extends readonly unknown[], Outputs extends readonly Output[]>(
  op: NativeOp<Args, Outputs>,
  ...args: Args
): Outputs {
  const crossing = args as unknown as unknown[];
  let handles = 0;
  for (let i = 0; i < crossing.length; i++) {
    const arg = crossing[i];
    if (arg === null || arg === undefined) {
      crossing[i] = 0;
      handles |= 1 << i;
    } else if (arg instanceof Tensor || arg instanceof Quantized4Bit) {
      crossing[i] = arg.slot;
      handles |= 1 << i;
    } else if (Array.isArray(arg)) {
      const items = Array.from(arg as readonly unknown[]);
      if (items.length > 0 && items.every(isHandle)) {
        for (let at = 0; at < items.length; at++) items[at] = (items[at] as Tensor | null)?.slot ?? 0;
        handles |= 1 << i;
      }
      crossing[i] = items;
    }
  }
  results[0] = handles;
  op(...crossing);
  const outputs = takeOutputs();
  if (warning !== null) warn(warning);
  return outputs as unknown as Outputs;
}

function isHandle(item: unknown): boolean {
  return item === null || item instanceof Tensor || item instanceof Quantized4Bit;
}

/** @internal Wraps what the last call wrote into the results. */
export function takeOutputs(): Output[] {
  const count = results[0] as number;
  const outputs = new Array<Output>(count);
  for (let i = 0, at = 1; i < count; i++) {
    const handle = results[at] as number;
    const dtype = results[at + 1] as number;
    const ndim = results[at + 3] as number;
    if (dtype === NUMBER) {
      outputs[i] = handle;
    } else if (handle === 0) {
      outputs[i] = null;
    } else {
      const device = deviceAt(results[at + 2] as number);
      const shape = new Array<number>(ndim);
      for (let axis = 0; axis < ndim; axis++) shape[axis] = results[at + 4 + axis] as number;
      outputs[i] =
        dtype === QUANTIZED
          ? new Quantized4Bit(new Handle(handle), shape, device)
          : new Tensor(new Handle(handle), dtypes[dtype] as DType, shape, device);
    }
    at += 4 + ndim;
  }
  return outputs;
}
