// Element types: names, sizes, the TypedArray that holds each, and the conversions of the two 16-bit floats.
import { shown } from "./describe.js";
import { BnbError } from "./errors.js";
import { hostBuffer } from "./host-buffer.js";

/** In the order of csrc/core/dtype.h: the index is what crosses to the addon. */
export const dtypes = ["float32", "float16", "bfloat16", "int8", "uint8", "int32", "float64"] as const;

/** `float64` is storage only: it can hold packed 4-bit weights, but no op computes with it. */
export type DType = (typeof dtypes)[number];

/** float16 and bfloat16 are held as their bits in a Uint16Array. */
export type TypedArray = Float32Array | Uint16Array | Int8Array | Uint8Array | Int32Array | Float64Array;

const sizes: Record<DType, number> = { float32: 4, float16: 2, bfloat16: 2, int8: 1, uint8: 1, int32: 4, float64: 8 };

/** Bytes per element. */
export function sizeOf(dtype: DType): number {
  return sizes[dtype];
}

/** Whether ops compute with it: float32, float16 or bfloat16. */
export function isFloat(dtype: DType): boolean {
  return dtype === "float32" || dtype === "float16" || dtype === "bfloat16";
}

/** The number that stands for the dtype in the addon. Throws ERR_BNB_DTYPE for an unknown name. */
export function dtypeCode(dtype: DType): number {
  const code = dtypes.indexOf(dtype);
  return code < 0 ? unknown(dtype) : code;
}

function unknown(dtype: unknown): never {
  throw new BnbError("ERR_BNB_DTYPE", `dtype: must be one of ${dtypes.join(", ")}, got ${shown(dtype)}`);
}

/** A typed view of a whole buffer. Throws ERR_BNB_DTYPE for an unknown name. */
export function typedArray(dtype: DType, buffer: ArrayBuffer): TypedArray {
  switch (dtype) {
    case "float32":
      return new Float32Array(buffer);
    case "float16":
    case "bfloat16":
      return new Uint16Array(buffer);
    case "int8":
      return new Int8Array(buffer);
    case "uint8":
      return new Uint8Array(buffer);
    case "int32":
      return new Int32Array(buffer);
    case "float64":
      return new Float64Array(buffer);
  }
  return unknown(dtype);
}

/** Numbers of any array converted to the elements of a dtype, rounding to nearest even. */
export function encode(values: ArrayLike<number>, dtype: DType): TypedArray {
  const out = typedArray(dtype, hostBuffer("tensor", values.length * sizeOf(dtype)));
  if (dtype === "float16") for (let i = 0; i < out.length; i++) out[i] = toFloat16Bits(values[i] as number);
  else if (dtype === "bfloat16") for (let i = 0; i < out.length; i++) out[i] = toBfloat16Bits(values[i] as number);
  else out.set(values);
  return out;
}

/** Elements of a dtype as float32 numbers. */
export function decode(values: TypedArray, dtype: DType): Float32Array {
  if (dtype === "float32") return values as Float32Array;
  const buffer = hostBuffer("floats", values.length * 4);
  if (dtype === "bfloat16") {
    const words = new Uint32Array(buffer);
    for (let i = 0; i < words.length; i++) words[i] = (values[i] as number) << 16;
    return new Float32Array(buffer);
  }
  const out = new Float32Array(buffer);
  if (dtype === "float16") for (let i = 0; i < out.length; i++) out[i] = fromFloat16Bits(values[i] as number);
  else out.set(values);
  return out;
}

/** The nearest value of a dtype. */
export function rounded(value: number, dtype: DType): number {
  return decode(encode([value], dtype), dtype)[0] as number;
}

const word = new Float32Array(1);
const bits = new Uint32Array(word.buffer);

// A float64 is rounded to float32 first; the second rounding can differ from a direct one only for values
// within 2^-29 of a tie, which no float32 input has.
function toBfloat16Bits(value: number): number {
  word[0] = value;
  const u = bits[0] as number;
  if (Number.isNaN(value)) return (u >>> 16) | 0x40;
  return (u + 0x7fff + ((u >>> 16) & 1)) >>> 16;
}

function toFloat16Bits(value: number): number {
  word[0] = value;
  const u = bits[0] as number;
  const sign = (u >>> 16) & 0x8000;
  const magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude >= 0x38800000) return sign | ((magnitude + 0xfff + ((magnitude >>> 13) & 1) - 0x38000000) >>> 13);
  // Subnormal: adding 0.5 leaves the rounded count of 2^-24 steps in the low bits.
  bits[0] = magnitude;
  word[0] = (word[0] as number) + 0.5;
  return sign | ((bits[0] as number) & 0x7ff);
}

function fromFloat16Bits(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >>> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
