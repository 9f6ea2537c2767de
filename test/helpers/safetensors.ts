// Reads a whole safetensors file: 8 bytes of header length, JSON, then the tensors' bytes. Independent of
// src/hub, so that fixtures can check it.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export type TypedArray =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array;

export interface FixtureTensor {
  /** The name of the dtype as this library spells it; "int64" and "bool" and friends also occur in files. */
  dtype: string;
  shape: number[];
  bytes: Uint8Array;
  /** The elements; float16 and bfloat16 as their bits. */
  values: TypedArray;
}

const kinds: Record<string, [dtype: string, make: (buffer: ArrayBuffer) => TypedArray]> = {
  F64: ["float64", (b) => new Float64Array(b)],
  F32: ["float32", (b) => new Float32Array(b)],
  F16: ["float16", (b) => new Uint16Array(b)],
  BF16: ["bfloat16", (b) => new Uint16Array(b)],
  I64: ["int64", (b) => new BigInt64Array(b)],
  U64: ["uint64", (b) => new BigUint64Array(b)],
  I32: ["int32", (b) => new Int32Array(b)],
  U32: ["uint32", (b) => new Uint32Array(b)],
  I16: ["int16", (b) => new Int16Array(b)],
  U16: ["uint16", (b) => new Uint16Array(b)],
  I8: ["int8", (b) => new Int8Array(b)],
  U8: ["uint8", (b) => new Uint8Array(b)],
  BOOL: ["bool", (b) => new Uint8Array(b)],
};

interface HeaderEntry {
  dtype: string;
  shape: number[];
  data_offsets: [begin: number, end: number];
}

/** The tensors of a file by name. A relative path starts at test/fixtures. */
export function readSafetensors(path: string): Map<string, FixtureTensor> {
  const file = readFileSync(fixturePath(path));
  const headerLength = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, 8 + headerLength)) as Record<string, HeaderEntry>;
  const tensors = new Map<string, FixtureTensor>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const kind = kinds[entry.dtype];
    if (!kind) throw new Error(`${path}: tensor "${name}" has the unknown dtype ${entry.dtype}`);
    const [begin, end] = entry.data_offsets;
    // A copy, so that the elements are aligned whatever the length of the header.
    const bytes = new Uint8Array(file.subarray(8 + headerLength + begin, 8 + headerLength + end));
    tensors.set(name, { dtype: kind[0], shape: entry.shape, bytes, values: kind[1](bytes.buffer) });
  }
  return tensors;
}

/** The `__metadata__` strings of a file; empty when it has none. */
export function readMetadata(path: string): Record<string, string> {
  const file = readFileSync(fixturePath(path));
  const header = JSON.parse(file.toString("utf8", 8, 8 + Number(file.readBigUInt64LE(0)))) as {
    __metadata__?: Record<string, string>;
  };
  return header.__metadata__ ?? {};
}

/** Absolute path of a file under test/fixtures; an absolute path stays as it is. */
export function fixturePath(path: string): string {
  return path.startsWith("/") ? path : fileURLToPath(new URL(`../fixtures/${path}`, import.meta.url));
}

/** Elements as float64, with float16 and bfloat16 bits decoded. */
export function toNumbers(tensor: FixtureTensor): Float64Array {
  const { values, dtype } = tensor;
  const decode = dtype === "float16" ? fromFloat16 : dtype === "bfloat16" ? fromBfloat16 : Number;
  return Float64Array.from(values as ArrayLike<number>, decode as (x: number) => number);
}

function fromFloat16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const word = new DataView(new ArrayBuffer(4));
function fromBfloat16(bits: number): number {
  word.setUint32(0, bits * 0x10000);
  return word.getFloat32(0);
}
