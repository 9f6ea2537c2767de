// Making tensors from JavaScript values.
import { types } from "node:util";
import { addon } from "./addon.js";
import { aBoolean, aDevice, aDType, aNumber, aShape, checkArgument, required } from "./checks.js";
import { describe, shown } from "./describe.js";
import type { DeviceLike } from "./device.js";
import { toDevice } from "./device.js";
import type { DType, TypedArray } from "./dtype.js";
import { dtypeCode, encode, isFloat, sizeOf } from "./dtype.js";
import { BnbError } from "./errors.js";
import { hostBuffer } from "./host-buffer.js";
import { checkOptions, optionTable } from "./options.js";
import { run, takeOutputs } from "./run.js";
import { checkShape, elementCount } from "./shape.js";
import type { Tensor } from "./tensor.js";

/** Options of a new tensor. */
export interface TensorOptions {
  /** Default float32, or what the TypedArray given holds. */
  dtype?: DType;
  /** Default "cpu". */
  device?: DeviceLike;
  /** Default false. */
  requiresGrad?: boolean;
}

/** @internal For functions that take more than these. */
export const tensorChecks = { dtype: aDType, device: aDevice, requiresGrad: aBoolean };
const tensorOptions = optionTable<TensorOptions>(tensorChecks);
const dataOptions = optionTable<TensorOptions & { shape?: readonly number[] }>({ ...tensorChecks, shape: aShape });

/** Numbers or truth values in lists of lists; all lists of a level are equally long. */
export type NestedArray = readonly (number | boolean | NestedArray)[];

/** What `tensor` accepts; views, also on a SharedArrayBuffer, are copied as they are now. */
export type TensorData =
  | number
  | boolean
  | NestedArray
  | TypedArray
  | Uint8ClampedArray
  | BigInt64Array
  | Float16ArrayLike;

/** A Float16Array, in runtimes that have it. */
export interface Float16ArrayLike extends ArrayBufferView {
  readonly [Symbol.toStringTag]: "Float16Array";
  readonly length: number;
  readonly [index: number]: number;
}

/**
 * A tensor with the given elements, copied before the call returns.
 *
 * Without `dtype`: float32 for numbers and Float64Array, the type's own for Float32Array, Int8Array, Uint8Array,
 * Int32Array and Float16Array, int32 for BigInt64Array (token ids; values must fit). A Uint16Array holds the bits of
 * float16 or bfloat16 and needs `dtype`. With `dtype`, values are converted, rounding to nearest even.
 *
 * @example
 * tensor([[1, 2], [3, 4]]); // float32 [2, 2]
 * tensor(bits, { dtype: "bfloat16", shape: [2, 3] }); // bits: Uint16Array of 6
 */
export function tensor(data: TensorData, options: TensorOptions & { shape?: readonly number[] } = {}): Tensor {
  checkOptions("tensor", options, dataOptions);
  const flat: number[] = [];
  let shape = options.shape;
  let values: TypedArray;
  if (ArrayBuffer.isView(data)) {
    values = fromView(data, options.dtype);
    shape ??= [values.length];
  } else if (Array.isArray(data)) {
    const found = flatten(data, flat);
    shape ??= found;
    values = encodeData(flat, options.dtype ?? "float32");
  } else if (typeof data === "number" || typeof data === "boolean") {
    values = encodeData([Number(data)], options.dtype ?? "float32");
    shape ??= [];
  } else {
    throw new BnbError("ERR_BNB_ARGUMENT", `tensor: data must be numbers or a TypedArray, got ${describe(data)}`);
  }
  const dtype = options.dtype ?? defaultDType(data);
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return ofBytes("tensor", bytes, { ...options, dtype, shape });
}

/** What `fromBytes` must be told. */
export interface BytesOptions {
  dtype: DType;
  shape: readonly number[];
  device?: DeviceLike;
  requiresGrad?: boolean;
}
const bytesOptions = optionTable<BytesOptions>({ ...tensorChecks, dtype: required(aDType), shape: required(aShape) });

/** A tensor whose memory is exactly these bytes, little-endian: for file contents and packed weights. */
export function fromBytes(bytes: Uint8Array, options: BytesOptions): Tensor {
  checkOptions("fromBytes", options, bytesOptions);
  if (!types.isUint8Array(bytes)) {
    throw new BnbError("ERR_BNB_ARGUMENT", `fromBytes: bytes must be a Uint8Array, got ${describe(bytes)}`);
  }
  return ofBytes("fromBytes", bytes, options);
}

function ofBytes(op: string, bytes: Uint8Array, options: BytesOptions): Tensor {
  const { dtype, device, requiresGrad } = options;
  const code = dtypeCode(dtype);
  const shape = checkShape(op, options.shape);
  const index = toDevice(device).index;
  // Last, as what comes before may run a getter that shrinks the buffer.
  const own = unshared(bytes);
  const nbytes = elementCount(shape) * sizeOf(dtype);
  if (nbytes !== own.byteLength) {
    const want = `shape [${shape.join(", ")}] of ${dtype} needs ${nbytes} bytes`;
    throw new BnbError("ERR_BNB_SHAPE", `${op}: ${want}, got ${own.byteLength}`);
  }
  addon.fromBytes(own, code, shape, index);
  const result = takeOutputs()[0] as Tensor;
  return requiresGrad ? wantGradient(result) : result;
}

/** An uninitialized tensor: its elements are whatever the memory held. */
export function empty(shape: readonly number[], options: TensorOptions = {}): Tensor {
  checkArgument("empty", "shape", shape, aShape);
  checkOptions("empty", options, tensorOptions);
  const [result] = run(addon.empty, shape, dtypeCode(options.dtype ?? "float32"), toDevice(options.device).index);
  return options.requiresGrad ? wantGradient(result) : result;
}

/** A tensor of zeros. */
export function zeros(shape: readonly number[], options: TensorOptions = {}): Tensor {
  return filled("zeros", shape, 0, options);
}

/** A tensor of ones. */
export function ones(shape: readonly number[], options: TensorOptions = {}): Tensor {
  return filled("ones", shape, 1, options);
}

/** A tensor with every element `value`. Default dtype float32. */
export function full(shape: readonly number[], value: number, options: TensorOptions = {}): Tensor {
  checkArgument("full", "value", value, aNumber);
  return filled("full", shape, value, options);
}

function filled(op: string, shape: readonly number[], value: number, options: TensorOptions): Tensor {
  checkArgument(op, "shape", shape, aShape);
  checkOptions(op, options, tensorOptions);
  const { dtype = "float32", device, requiresGrad = false } = options;
  const [result] = run(addon.full, shape, value, dtypeCode(dtype), toDevice(device).index);
  return requiresGrad ? wantGradient(result) : result;
}

/** 0, 1, ... n - 1, or from `start` to before `end` by `step`. Default dtype float32. */
export function arange(start: number, end?: number, step = 1, options: TensorOptions = {}): Tensor {
  checkOptions("arange", options, tensorOptions);
  const [first, last] = end === undefined ? [0, start] : [start, end];
  if (!(step !== 0 && Number.isFinite(step) && Number.isFinite(first) && Number.isFinite(last))) {
    throw new BnbError(
      "ERR_BNB_ARGUMENT",
      `arange: bounds and a non-zero step must be finite numbers, got ${[first, last, step].map(describe).join(", ")}`,
    );
  }
  const n = Math.max(0, Math.ceil((last - first) / step));
  const values = new Float64Array(hostBuffer("arange", n * 8));
  for (let i = 0; i < n; i++) values[i] = first + i * step;
  return tensor(values, { dtype: "float32", ...options });
}

function wantGradient(t: Tensor): Tensor {
  if (!isFloat(t.dtype)) {
    t.dispose();
    throw new BnbError("ERR_BNB_DTYPE", `tensor: requiresGrad needs float32, float16 or bfloat16, got ${t.dtype}`);
  }
  t.requiresGrad = true;
  return t;
}

// By node:util, not by instanceof: an array of another context (vm, a test runner) has classes of its own.
function defaultDType(data: TensorData): DType {
  if (types.isInt8Array(data)) return "int8";
  if (types.isUint8Array(data) || types.isUint8ClampedArray(data)) return "uint8";
  if (types.isInt32Array(data) || types.isBigInt64Array(data)) return "int32";
  if (isFloat16Array(data)) return "float16";
  return "float32";
}

function isFloat16Array(data: unknown): data is Float16ArrayLike {
  return ArrayBuffer.isView(data) && (data as Partial<Float16ArrayLike>)[Symbol.toStringTag] === "Float16Array";
}

function fromView(view: ArrayBufferView, wanted: DType | undefined): TypedArray {
  try {
    new Uint8Array(view.buffer, 0, 0);
  } catch (cause) {
    throw new BnbError("ERR_BNB_ARGUMENT", "tensor: the buffer of data was detached", { cause });
  }
  if (types.isUint16Array(view) || isFloat16Array(view)) {
    const own = isFloat16Array(view) ? "float16" : wanted;
    if (own !== "float16" && own !== "bfloat16") {
      const rule = "tensor: a Uint16Array holds the bits of float16 or bfloat16 and needs one of them as dtype";
      throw new BnbError("ERR_BNB_DTYPE", `${rule}, got ${shown(wanted)}`);
    }
    const bits = new Uint16Array(view.buffer, view.byteOffset, view.byteLength / 2);
    return wanted === undefined || wanted === own ? bits : encodeData(view as Float16ArrayLike, wanted);
  }
  if (types.isBigInt64Array(view)) {
    const narrow = Float64Array.from(view, Number);
    const bad = narrow.findIndex((value) => value !== (value | 0));
    if (bad >= 0) throw new BnbError("ERR_BNB_ARGUMENT", `tensor: ids must fit int32, got ${view[bad]} at ${bad}`);
    return encodeData(narrow, wanted ?? "int32");
  }
  if (types.isUint8ClampedArray(view)) {
    return fromView(new Uint8Array(view.buffer, view.byteOffset, view.byteLength), wanted);
  }
  const own = ownDType(view);
  if (own === undefined) {
    throw new BnbError("ERR_BNB_ARGUMENT", `tensor: data must be numbers or ${arrays}, got ${describe(view)}`);
  }
  const dtype = wanted ?? (own === "float64" ? "float32" : own);
  return dtype === own ? (view as TypedArray) : encodeData(view as TypedArray, dtype);
}

const arrays = "a Float32Array, Float64Array, Float16Array, Int32Array, Int8Array, Uint8Array or BigInt64Array";
const bounds: Partial<Record<DType, readonly [number, number]>> = {
  int8: [-128, 127],
  uint8: [0, 255],
  int32: [-(2 ** 31), 2 ** 31 - 1],
};

/** As `encode`, for what must not be cut off. */
function encodeData(values: ArrayLike<number>, dtype: DType): TypedArray {
  const range = bounds[dtype];
  if (range) {
    for (let i = 0; i < values.length; i++) {
      const value = Math.trunc(values[i] as number);
      if (value >= range[0] && value <= range[1]) continue;
      throw new BnbError("ERR_BNB_ARGUMENT", `tensor: data must fit ${dtype}, got ${values[i]} at ${i}`);
    }
  }
  return encode(values, dtype);
}

function ownDType(view: ArrayBufferView): DType | undefined {
  if (types.isFloat32Array(view)) return "float32";
  if (types.isFloat64Array(view)) return "float64";
  if (types.isInt32Array(view)) return "int32";
  if (types.isInt8Array(view)) return "int8";
  if (types.isUint8Array(view)) return "uint8";
  return undefined;
}

// The addon reads plain memory only; a view on shared memory is copied first.
function unshared(bytes: Uint8Array): Uint8Array {
  return types.isSharedArrayBuffer(bytes.buffer) ? new Uint8Array(bytes) : bytes;
}

function flatten(data: NestedArray, out: number[], depth = 1): number[] {
  if (depth > 8) throw new BnbError("ERR_BNB_SHAPE", "tensor: data must have at most 8 axes, got deeper arrays");
  const first = data[0];
  if (!Array.isArray(first)) {
    for (const item of data) {
      if (typeof item !== "number" && typeof item !== "boolean") {
        throw new BnbError("ERR_BNB_ARGUMENT", `tensor: data must be numbers, got ${describe(item)}`);
      }
      out.push(Number(item));
    }
    return [data.length];
  }
  let inner: number[] = [];
  for (const item of data) {
    if (!Array.isArray(item)) throw new BnbError("ERR_BNB_SHAPE", "tensor: nested arrays must have equal lengths");
    const shape = flatten(item, out, depth + 1);
    if (item !== first && shape.join() !== inner.join()) {
      throw new BnbError("ERR_BNB_SHAPE", "tensor: nested arrays must have equal lengths");
    }
    inner = shape;
  }
  return [data.length, ...inner];
}
