// The only crossing: run(addon.op, ...args) hands over handles and numbers and wraps the outputs.

import { BnbError } from "../native/errors.js";
import type { NativeOp, Output } from "./addon.js";
import { addon } from "./addon.js";
import type { Device } from "./device.js";
import { deviceAt } from "./device.js";
import type { DType } from "./dtype.js";
import { dtypes } from "./dtype.js";
import { Handle } from "./handle.js";
import { NativeObject } from "./native-object.js";
import { BlockScales, ExpertWeights, Quantized4Bit } from "./quantized.js";
import { Tensor } from "./tensor.js";

// [count, then per output: handle, dtype, device, ndim, dims...]; written by csrc/napi/bind.h.
const results = new Float64Array(1 << 14);
// In place of a dtype; the numbers of csrc/napi/bind.h.
const QUANTIZED = -1;
const NUMBER = -2;
const SCALES = -3;
const EXPERTS = -4;

const MOST_ITEMS = 1 << 20;

// [now]; the addon counts it up with every change of a tensor in place.
const clock = new Float64Array(1);

// What the addon warns of during an op. It is passed on when the results are read: process.emitWarning may be anyone's.
let warning: string | null = null;
addon.setup(
  results,
  BnbError,
  (message) => {
    warning = message;
  },
  clock,
);

/** @internal A moment between the changes of tensors in place: later changes come after it. */
export function changeTime(): number {
  return clock[0] as number;
}

/** @internal Whether the memory of `object` was changed in place after the moment `time`. False once it is disposed. */
export function changedSince(object: NativeObject, time: number): boolean {
  return changeTime() > time && addon.changedAt(object.slot) > time;
}

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
    } else if (NativeObject.is(arg)) {
      crossing[i] = arg.slot;
      handles |= 1 << i;
    } else if (Array.isArray(arg)) {
      const items = copyOf(arg);
      if (items.length > 0 && items.every(isHandle)) {
        for (let at = 0; at < items.length; at++) items[at] = (items[at] as NativeObject | null)?.slot ?? 0;
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

// A list of tensors or a shape; a Proxy of an array may claim any length.
function copyOf(list: readonly unknown[]): unknown[] {
  const { length } = list;
  if (length > MOST_ITEMS) {
    const rule = `run: an array among the arguments must have at most ${MOST_ITEMS} items`;
    throw new BnbError("ERR_BNB_ARGUMENT", `${rule}, got ${length}`);
  }
  const items: unknown[] = [];
  for (let i = 0; i < length; i++) items.push(list[i]);
  return items;
}

function isHandle(item: unknown): boolean {
  return item === null || NativeObject.is(item);
}

function wrap(handle: Handle, dtype: number, shape: readonly number[], device: Device): Output {
  if (dtype === QUANTIZED) return new Quantized4Bit(handle, shape, device);
  if (dtype === SCALES) return new BlockScales(handle, shape, device);
  if (dtype === EXPERTS) return new ExpertWeights(handle, shape, device);
  return new Tensor(handle, dtypes[dtype] as DType, shape, device);
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
      outputs[i] = wrap(new Handle(handle), dtype, shape, device);
    }
    at += 4 + ndim;
  }
  return outputs;
}
