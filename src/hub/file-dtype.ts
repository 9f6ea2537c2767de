// The element types of safetensors files (SPEC of the format: huggingface/safetensors), and what becomes of each here.
import type { DType } from "../tensor/dtype.js";

interface FileType {
  /** Bits of one element. */
  readonly bits: number;
  /** The dtype with the same bytes, where tensors have one. */
  readonly dtype?: DType;
  /** The place in the order in which files are written: larger first. */
  readonly rank: number;
}

/** Every element type that a file may name. */
export const fileTypes = {
  BOOL: { bits: 8, rank: 0 },
  U8: { bits: 8, rank: 1, dtype: "uint8" },
  I8: { bits: 8, rank: 2, dtype: "int8" },
  F8_E5M2: { bits: 8, rank: 3 },
  F8_E4M3: { bits: 8, rank: 4 },
  F8_E8M0: { bits: 8, rank: 5 },
  F8_E4M3FNUZ: { bits: 8, rank: 5.1 },
  F8_E5M2FNUZ: { bits: 8, rank: 5.2 },
  F4: { bits: 4, rank: 5.3 },
  F6_E2M3: { bits: 6, rank: 5.4 },
  F6_E3M2: { bits: 6, rank: 5.5 },
  I16: { bits: 16, rank: 6 },
  U16: { bits: 16, rank: 7 },
  F16: { bits: 16, rank: 8, dtype: "float16" },
  BF16: { bits: 16, rank: 9, dtype: "bfloat16" },
  I32: { bits: 32, rank: 10, dtype: "int32" },
  U32: { bits: 32, rank: 11 },
  F32: { bits: 32, rank: 12, dtype: "float32" },
  C64: { bits: 64, rank: 13 },
  F64: { bits: 64, rank: 14, dtype: "float64" },
  I64: { bits: 64, rank: 15 },
  U64: { bits: 64, rank: 16 },
} as const satisfies Record<string, FileType>;

/** An element type by the name that files use. */
export type FileDType = keyof typeof fileTypes;

export function isFileDType(name: unknown): name is FileDType {
  return typeof name === "string" && Object.hasOwn(fileTypes, name);
}

/** The dtype with the same bytes; undefined for a type that tensors do not have. */
export function sameDType(type: FileDType): DType | undefined {
  return (fileTypes[type] as FileType).dtype;
}

/** The name in files of a dtype of tensors. */
export function fileDTypeOf(dtype: DType): FileDType {
  return (Object.keys(fileTypes) as FileDType[]).find((name) => sameDType(name) === dtype) as FileDType;
}

/**
 * Bytes of `shape` elements; undefined when they exceed 2^53 - 1 or end within a byte (F4, F6).
 */
export function byteLengthOf(type: FileDType, shape: readonly number[]): number | undefined {
  if (shape.includes(0)) return 0;
  let elements = 1;
  for (const size of shape) {
    elements *= size;
    if (elements > Number.MAX_SAFE_INTEGER) return undefined;
  }
  const { bits } = fileTypes[type];
  const nbytes = bits % 8 === 0 ? elements * (bits / 8) : (elements / 8) * bits;
  return Number.isSafeInteger(nbytes) ? nbytes : undefined;
}
