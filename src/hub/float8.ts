// The two 8-bit floats of checkpoints (Micikevicius et al. 2022, "FP8 formats for deep learning"), widened to the floats
// that ops compute with. Each of their values is exact in all three of these.
import type { DType, TypedArray } from "../tensor/dtype.js";
import { encode } from "../tensor/dtype.js";

/** 1 sign, 4 exponent and 3 fraction bits, no infinity; or 1, 5 and 2 as in IEEE 754. */
export type Float8 = "F8_E4M3" | "F8_E5M2";

export function isFloat8(type: string): type is Float8 {
  return type === "F8_E4M3" || type === "F8_E5M2";
}

/** The value of each of the 256 codes. */
export function float8Values(type: Float8): Float32Array {
  const [fractionBits, bias] = type === "F8_E4M3" ? [3, 7] : [2, 15];
  const steps = 2 ** fractionBits;
  const top = 2 ** (7 - fractionBits) - 1;
  return Float32Array.from({ length: 256 }, (_, code) => {
    const sign = code & 0x80 ? -1 : 1;
    const exponent = (code & 0x7f) >> fractionBits;
    const fraction = code & (steps - 1);
    if (type === "F8_E4M3" && (code & 0x7f) === 0x7f) return Number.NaN;
    if (type === "F8_E5M2" && exponent === top) return fraction === 0 ? sign * Infinity : Number.NaN;
    const magnitude = exponent === 0 ? fraction / steps : 1 + fraction / steps;
    return sign * magnitude * 2 ** (Math.max(exponent, 1) - bias);
  });
}

/** Codes as elements of a float dtype. */
export function widenFloat8(codes: Uint8Array, type: Float8, dtype: DType): TypedArray {
  const table = encode(float8Values(type), dtype);
  const out = new (table.constructor as new (length: number) => TypedArray)(codes.length);
  for (let i = 0; i < codes.length; i++) out[i] = table[codes[i] as number] as number;
  return out;
}
