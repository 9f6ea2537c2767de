// Writes safetensors files whose bytes equal those of the reference writer. A file appears under its name only when
// all of it is on the disk: whatever fails before leaves what was there.
import type { FileHandle } from "node:fs/promises";
import { aString, checkArgument } from "../tensor/checks.js";
import { describe, isPlainObject } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { Tensor } from "../tensor/tensor.js";
import type { FileDType } from "./file-dtype.js";
import { byteLengthOf, fileDTypeOf, fileTypes } from "./file-dtype.js";
import type { Replacement } from "./replace-files.js";
import { replaceFiles } from "./replace-files.js";
import type { WaitingPlace } from "./tensor-to-write.js";
import { TensorToWrite } from "./tensor-to-write.js";

/** A tensor as its bytes, row-major and little-endian: for types that tensors do not have, such as I64. */
export interface FileTensor {
  readonly dtype: FileDType;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** What can be written into a file: a tensor of any device and dtype, or bytes of a dtype that only files have. */
export type WritableTensor = Tensor | FileTensor;

/** Tensors by name: a Map such as a state dict, or a plain object. */
export type WritableTensors = ReadonlyMap<string, WritableTensor> | Readonly<Record<string, WritableTensor>>;

/** Options of `saveSafetensors`. */
export interface SaveOptions {
  /** Strings to store beside the tensors; none when empty. Default `{ format: "pt" }`, which transformers asks for. */
  readonly metadata?: Readonly<Record<string, string>>;
}

const saveOptions = optionTable<SaveOptions>({
  metadata: {
    rule: "an object of strings",
    holds: (v) => isPlainObject(v) && Object.values(v as object).every((text) => typeof text === "string"),
  },
});

/** What is written: also a tensor that turns on its way, or waits elsewhere. */
export type StagedTensor = WritableTensor | TensorToWrite;

interface Planned {
  readonly name: string;
  readonly source: StagedTensor;
  readonly dtype: FileDType;
  readonly shape: readonly number[];
  readonly nbytes: number;
}

/** A tensor with its place in the file. */
interface Placed extends Planned {
  readonly at: number;
}

/**
 * Saves tensors of any dtype and device as one safetensors file. They are read one after the other, so beside them
 * only the largest takes memory. `path` is replaced when everything is written and flushed; until then, and after any
 * error, what was there stays.
 *
 * Throws ERR_BNB_ARGUMENT for what cannot be saved, ERR_BNB_FILE when the system refuses (a full disk, no permission).
 */
export async function saveSafetensors(
  path: string,
  tensors: WritableTensors,
  options: SaveOptions = {},
): Promise<void> {
  checkArgument("saveSafetensors", "path", path, aString);
  checkOptions("saveSafetensors", options, saveOptions);
  const entries = entriesOf("saveSafetensors", tensors);
  await replaceFiles((files) => stageSafetensors(files, path, entries, options));
}

/** The tensors of what is to be saved, in its order. */
export function entriesOf(op: string, tensors: WritableTensors): readonly (readonly [string, WritableTensor])[] {
  if (tensors instanceof Map) return [...tensors];
  if (isPlainObject(tensors)) return Object.entries(tensors as Record<string, WritableTensor>);
  throw new BnbError("ERR_BNB_ARGUMENT", `${op}: tensors must be a Map or an object of them, got ${describe(tensors)}`);
}

/** Writes one safetensors file, which gets its name with the others of `files`. */
export async function stageSafetensors(
  files: Replacement,
  path: string,
  entries: readonly (readonly [string, StagedTensor])[],
  { metadata = { format: "pt" }, onTensor }: SaveOptions & { onTensor?: (name: string, nbytes: number) => void } = {},
): Promise<void> {
  const planned = plan(entries);
  const header = encodeHeader(planned, metadata);
  await files.write(path, async (file) => {
    await writeAll(file, header, 0);
    for (const { name, source, nbytes, at } of inOrderOfReading(placed(planned, header.byteLength))) {
      const bytes = "data" in source ? bytesOf(await source.data()) : source.bytes;
      if (bytes.byteLength !== nbytes) {
        throw new BnbError("ERR_BNB_ARGUMENT", `saveSafetensors: "${name}" changed its size while it was saved`);
      }
      await writeAll(file, bytes, at);
      onTensor?.(name, nbytes);
    }
  });
}

function placed(planned: readonly Planned[], begin: number): Placed[] {
  let end = begin;
  return planned.map((tensor) => {
    const at = end;
    end += tensor.nbytes;
    return { ...tensor, at };
  });
}

/** As in the file, but those that wait together one after the other, so that they are brought once. */
function inOrderOfReading(tensors: readonly Placed[]): Placed[] {
  const groups = new Map<WaitingPlace | null, Placed[]>([[null, []]]);
  for (const tensor of tensors) {
    const place = tensor.source instanceof TensorToWrite ? tensor.source.place : null;
    const group = groups.get(place);
    if (group) group.push(tensor);
    else groups.set(place, [tensor]);
  }
  return [...groups.values()].flat();
}

async function writeAll(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let at = 0; at < bytes.byteLength; ) {
    const length = Math.min(bytes.byteLength - at, 1 << 30);
    at += (await file.write(bytes, at, length, position + at)).bytesWritten;
  }
}

const bytesOf = (view: ArrayBufferView): Uint8Array => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

/** In the order of the file: wide types first, then names in the order of their bytes. */
function plan(entries: readonly (readonly [string, StagedTensor])[]): Planned[] {
  const planned = entries.map(([name, source]): Planned => {
    if (name === "__metadata__") {
      throw new BnbError("ERR_BNB_ARGUMENT", 'saveSafetensors: a tensor must not be named "__metadata__"');
    }
    if (source instanceof Tensor || source instanceof TensorToWrite) {
      const { shape, nbytes } = source;
      return { name, source, dtype: fileDTypeOf(source.dtype), shape, nbytes };
    }
    const nbytes = isFileTensor(source) ? byteLengthOf(source.dtype, source.shape) : undefined;
    if (nbytes === undefined || nbytes !== source.bytes.byteLength) {
      throw new BnbError(
        "ERR_BNB_ARGUMENT",
        `saveSafetensors: "${name}" must be a Tensor, or have dtype, shape and as many bytes as they need`,
      );
    }
    return { name, source, dtype: source.dtype, shape: source.shape, nbytes };
  });
  const byName = new Map(planned.map(({ name }) => [name, Buffer.from(name)]));
  return planned.sort(
    (a, b) =>
      fileTypes[b.dtype].rank - fileTypes[a.dtype].rank ||
      Buffer.compare(byName.get(a.name) as Buffer, byName.get(b.name) as Buffer),
  );
}

function isFileTensor(source: unknown): source is FileTensor {
  const { dtype, shape, bytes } = (source ?? {}) as Partial<FileTensor>;
  return (
    typeof dtype === "string" && Object.hasOwn(fileTypes, dtype) && Array.isArray(shape) && ArrayBuffer.isView(bytes)
  );
}

function encodeHeader(planned: readonly Planned[], metadata: Readonly<Record<string, string>>): Uint8Array {
  const items = Object.keys(metadata).length > 0 ? [`"__metadata__":${JSON.stringify(metadata)}`] : [];
  let at = 0;
  for (const { name, dtype, shape, nbytes } of planned) {
    const entry = `{"dtype":"${dtype}","shape":[${shape.join(",")}],"data_offsets":[${at},${at + nbytes}]}`;
    items.push(`${JSON.stringify(name)}:${entry}`);
    at += nbytes;
  }
  const json = Buffer.from(`{${items.join(",")}}`);
  const header = Buffer.alloc(8 + Math.ceil(json.byteLength / 8) * 8, " ");
  header.writeBigUInt64LE(BigInt(header.byteLength - 8));
  json.copy(header, 8);
  return header;
}
