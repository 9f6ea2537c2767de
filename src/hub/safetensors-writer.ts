// Writes safetensors files whose bytes equal those of the reference writer. A file appears under its name only when
// all of it is on the disk: whatever fails before leaves what was there.
import { randomBytes } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import { open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { BnbError } from "../tensor/errors.js";
import { Tensor } from "../tensor/tensor.js";
import type { FileDType } from "./file-dtype.js";
import { byteLengthOf, fileDTypeOf, fileTypes } from "./file-dtype.js";

/** A tensor as its bytes, row-major and little-endian: for types that tensors do not have, such as I64. */
export interface FileTensor {
  readonly dtype: FileDType;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

export type WritableTensor = Tensor | FileTensor;

/** Tensors by name: a Map such as a state dict, or a plain object. */
export type WritableTensors = ReadonlyMap<string, WritableTensor> | Readonly<Record<string, WritableTensor>>;

export interface SaveOptions {
  /** Strings to store beside the tensors; none when empty. Default `{ format: "pt" }`, which transformers asks for. */
  readonly metadata?: Readonly<Record<string, string>>;
}

interface Planned {
  readonly name: string;
  readonly source: WritableTensor;
  readonly dtype: FileDType;
  readonly shape: readonly number[];
  readonly nbytes: number;
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
  const entries = tensors instanceof Map ? [...tensors] : Object.entries(tensors as Record<string, WritableTensor>);
  const planned = plan(entries);
  const header = encodeHeader(planned, options.metadata ?? { format: "pt" });
  await replaceFile(path, async (file) => {
    await writeAll(file, header);
    for (const { name, source, nbytes } of planned) {
      const bytes = source instanceof Tensor ? bytesOf(await source.data()) : source.bytes;
      if (bytes.byteLength !== nbytes) {
        throw new BnbError("ERR_BNB_ARGUMENT", `saveSafetensors: "${name}" changed its size while it was saved`);
      }
      await writeAll(file, bytes);
    }
  });
}

/**
 * Writes a file under a temporary name beside `path`, flushes it and renames it. ERR_BNB_FILE when the system refuses;
 * nothing of the attempt stays.
 */
export async function replaceFile(path: string, write: (file: FileHandle) => Promise<void>): Promise<void> {
  const part = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString("hex")}.part`);
  try {
    const file = await open(part, "wx");
    try {
      await write(file);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(part, path);
  } catch (cause) {
    await rm(part, { force: true });
    if (cause instanceof BnbError) throw cause;
    throw new BnbError("ERR_BNB_FILE", `${path}: could not be written: ${(cause as Error).message}`, { cause });
  }
  await flushFolder(dirname(path));
}

// After a crash of the machine the new name is there, too. Not every system can open a folder.
async function flushFolder(path: string): Promise<void> {
  try {
    const folder = await open(path, "r");
    await folder.sync().finally(() => folder.close());
  } catch {
    // The rename itself has happened.
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.byteLength; ) {
    at += (await file.write(bytes, at, Math.min(bytes.byteLength - at, 1 << 30))).bytesWritten;
  }
}

const bytesOf = (view: ArrayBufferView): Uint8Array => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

/** In the order of the file: wide types first, then names in the order of their bytes. */
function plan(entries: readonly (readonly [string, WritableTensor])[]): Planned[] {
  const planned = entries.map(([name, source]): Planned => {
    if (name === "__metadata__") {
      throw new BnbError("ERR_BNB_ARGUMENT", 'saveSafetensors: a tensor must not be named "__metadata__"');
    }
    if (source instanceof Tensor) {
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
