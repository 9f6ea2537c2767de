// The header of a safetensors file: where each tensor lies. Every check is made before anything of the size that a
// file claims is allocated, so a hostile or damaged file gives one error and nothing else.
import { BnbError } from "../tensor/errors.js";
import type { FileDType } from "./file-dtype.js";
import { byteLengthOf, fileTypes, isFileDType } from "./file-dtype.js";
import type { StrictObject, StrictValue } from "./strict-json.js";
import { parseStrictJson } from "./strict-json.js";

const MAX_HEADER_BYTES = 100_000_000;
const MAX_NAME_LENGTH = 4096;
const MAX_AXES = 64;
const MAX_DEPTH = 4;

/** Where one tensor lies in its file. */
export interface TensorEntry {
  readonly dtype: FileDType;
  readonly shape: readonly number[];
  /** First byte, counted from the start of the file. */
  readonly offset: number;
  readonly nbytes: number;
}

export interface SafetensorsHeader {
  /** Tensors by name, in the order of the header. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly metadata: ReadonlyMap<string, string>;
}

/** "file: what is wrong", the one form of errors about files. */
export function formatError(file: string, what: string, cause?: unknown): BnbError {
  return new BnbError("ERR_BNB_FORMAT", `${file}: ${what}`, cause === undefined ? undefined : { cause });
}

/**
 * The number of bytes of JSON that a file announces in its first 8 bytes. Throws ERR_BNB_FORMAT when the file cannot
 * hold them; `fileSize` in bytes.
 */
export function headerLength(first: Uint8Array, file: string, fileSize: number): number {
  if (fileSize < 8 || first.byteLength < 8) throw formatError(file, `must have at least 8 bytes, has ${fileSize}`);
  const length = new DataView(first.buffer, first.byteOffset).getBigUint64(0, true);
  if (length > MAX_HEADER_BYTES) {
    throw formatError(file, `its header must have at most ${MAX_HEADER_BYTES} bytes, claims ${length}`);
  }
  if (8n + length > BigInt(fileSize)) {
    throw formatError(file, `the header claims ${length} bytes after the first 8, the file has ${fileSize}`);
  }
  return Number(length);
}

/** Parses and checks the JSON of a header. `json`: the bytes from 8 on. Throws ERR_BNB_FORMAT. */
export function parseHeader(json: Uint8Array, file: string, fileSize: number): SafetensorsHeader {
  const document = parseDocument(json, file);
  const dataStart = 8 + json.byteLength;
  const tensors = new Map<string, TensorEntry>();
  let metadata: ReadonlyMap<string, string> = new Map();
  for (const [name, value] of document) {
    if (name === "__metadata__") metadata = metadataOf(value, file);
    else tensors.set(name, entryOf(name, value, file, dataStart));
  }
  checkTiling(tensors, file, dataStart, fileSize);
  return { tensors, metadata };
}

function parseDocument(json: Uint8Array, file: string): StrictObject {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(json);
  } catch (cause) {
    throw formatError(file, "its header is not UTF-8", cause);
  }
  if (!text.startsWith("{")) throw formatError(file, `its header must start with "{"${hintAt(text)}`);
  let document: StrictValue;
  try {
    document = parseStrictJson(text, MAX_DEPTH);
  } catch (cause) {
    throw formatError(file, `its header is not JSON: ${(cause as Error).message}`, cause);
  }
  return document as StrictObject;
}

const hintAt = (text: string): string => (text === "" ? ", it is empty" : `, got ${JSON.stringify(text[0])}`);

function metadataOf(value: StrictValue, file: string): ReadonlyMap<string, string> {
  if (!(value instanceof Map)) throw formatError(file, "__metadata__ must be an object");
  for (const [key, text] of value) {
    if (typeof text !== "string") throw formatError(file, `__metadata__: "${key}" must be a string`);
  }
  return value as ReadonlyMap<string, string>;
}

function entryOf(name: string, value: StrictValue, file: string, dataStart: number): TensorEntry {
  const fail = (what: string): never => {
    throw formatError(file, `tensor ${JSON.stringify(name.slice(0, 200))} ${what}`);
  };
  if (name.length > MAX_NAME_LENGTH) fail(`has a name of ${name.length} characters, at most ${MAX_NAME_LENGTH} may be`);
  if (!(value instanceof Map)) return fail("must be an object with dtype, shape and data_offsets");
  const dtype = value.get("dtype");
  if (!isFileDType(dtype)) {
    return fail(`has the dtype ${show(dtype)}, known are ${Object.keys(fileTypes).join(", ")}`);
  }
  const shape = value.get("shape");
  if (!isPlainIntegers(shape)) return fail("must have a shape of plain non-negative integers");
  if (shape.length > MAX_AXES) fail(`has ${shape.length} axes, at most ${MAX_AXES} may be`);
  const nbytes = byteLengthOf(dtype, shape);
  if (nbytes === undefined) return fail(`of ${dtype} [${shape.join(", ")}] has no whole number of bytes below 2^53`);
  const offsets = value.get("data_offsets");
  if (!isPlainIntegers(offsets) || offsets.length !== 2) {
    return fail("must have two plain non-negative integers as data_offsets");
  }
  const [begin, end] = offsets as readonly [number, number];
  if (begin > end) fail(`begins at byte ${begin} and ends at byte ${end}`);
  if (end - begin !== nbytes) {
    fail(`of ${dtype} [${shape.join(", ")}] needs ${nbytes} bytes, data_offsets give ${end - begin}`);
  }
  return { dtype, shape, offset: dataStart + begin, nbytes };
}

/** Sorted by their beginning, the tensors follow each other from the first byte of data to the last of the file. */
function checkTiling(
  tensors: ReadonlyMap<string, TensorEntry>,
  file: string,
  dataStart: number,
  fileSize: number,
): void {
  const sorted = [...tensors].sort(([, a], [, b]) => a.offset - b.offset || a.nbytes - b.nbytes);
  let at = dataStart;
  for (const [name, { offset, nbytes }] of sorted) {
    if (offset !== at) {
      const what = offset < at ? "overlaps the one before it" : `leaves a hole of ${offset - at} bytes before it`;
      throw formatError(file, `tensor ${JSON.stringify(name)} ${what}: it begins at byte ${offset}, not at ${at}`);
    }
    at = offset + nbytes;
  }
  if (at > fileSize) {
    const [last] = sorted.find(([, { offset, nbytes }]) => offset + nbytes > fileSize) as [string, TensorEntry];
    const rest = `tensor ${JSON.stringify(last)} and what follows are cut off, as after an interrupted download`;
    throw formatError(file, `is incomplete: it must have ${at} bytes, has ${fileSize}; ${rest}`);
  }
  if (at < fileSize) throw formatError(file, `has ${fileSize - at} bytes after its last tensor, none may be there`);
}

function isPlainIntegers(value: StrictValue | undefined): value is readonly number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item));
}

function show(value: StrictValue | undefined): string {
  return typeof value === "string" ? JSON.stringify(value.slice(0, 40)) : `${value instanceof Map ? "{...}" : value}`;
}
