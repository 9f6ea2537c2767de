// The zip container of torch.save, in which every entry is stored as it is: where each lies, from the central directory.
import type { FileHandle } from "node:fs/promises";
import { formatError } from "./safetensors-header.js";

export interface ZipEntry {
  readonly name: string;
  readonly size: number;
  /** Of the entry's own header; `dataOffset` finds the data behind it. */
  readonly headerOffset: number;
}

const END = 0x06054b50;
const END_64 = 0x06064b50;
const LOCATOR_64 = 0x07064b50;
const CENTRAL = 0x02014b50;
const LOCAL = 0x04034b50;
const MAX_DIRECTORY = 64 << 20;

/** The entries by name. Throws ERR_BNB_FORMAT for what is no zip, is compressed or encrypted, or lies outside the file. */
export async function readZip(file: FileHandle, name: string, size: number): Promise<Map<string, ZipEntry>> {
  const fail = (what: string): never => {
    throw formatError(name, what);
  };
  const { count, offset, nbytes } = await findDirectory(file, name, size);
  if (nbytes > MAX_DIRECTORY) fail(`its zip directory has ${nbytes} bytes, at most ${MAX_DIRECTORY} may be`);
  if (offset + nbytes > size) fail("its zip directory lies outside the file, as after an interrupted download");
  const directory = await readExactly(file, offset, nbytes, name);
  const entries = new Map<string, ZipEntry>();
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + 46 > nbytes || directory.readUInt32LE(at) !== CENTRAL) fail("its zip directory is damaged");
    const [flags, method] = [directory.readUInt16LE(at + 8), directory.readUInt16LE(at + 10)];
    const nameLength = directory.readUInt16LE(at + 28);
    const extraLength = directory.readUInt16LE(at + 30);
    const next = at + 46 + nameLength + extraLength + directory.readUInt16LE(at + 32);
    if (next > nbytes) fail("its zip directory is damaged");
    const entryName = directory.toString("utf8", at + 46, at + 46 + nameLength);
    if (method !== 0 || (flags & 1) !== 0) fail(`entry ${JSON.stringify(entryName)} is compressed or encrypted`);
    const extra = directory.subarray(at + 46 + nameLength, at + 46 + nameLength + extraLength);
    const [entrySize, headerOffset] = wide(extra, [
      directory.readUInt32LE(at + 24),
      directory.readUInt32LE(at + 20),
      directory.readUInt32LE(at + 42),
    ]);
    if (headerOffset + 30 + entrySize > size) fail(`entry ${JSON.stringify(entryName)} lies outside the file`);
    if (entries.has(entryName)) fail(`entry ${JSON.stringify(entryName)} is there twice`);
    entries.set(entryName, { name: entryName, size: entrySize, headerOffset });
    at = next;
  }
  return entries;
}

/** Where an entry's bytes begin. */
export async function dataOffset(file: FileHandle, name: string, entry: ZipEntry, fileSize: number): Promise<number> {
  const header = await readExactly(file, entry.headerOffset, 30, name);
  const offset = entry.headerOffset + 30 + header.readUInt16LE(26) + header.readUInt16LE(28);
  if (header.readUInt32LE(0) === LOCAL && offset + entry.size <= fileSize) return offset;
  throw formatError(name, `entry ${JSON.stringify(entry.name)} is damaged`);
}

async function findDirectory(file: FileHandle, name: string, size: number) {
  const length = Math.min(size, 65_557); // the record of the end, and the longest comment after it
  const tail = await readExactly(file, size - length, length, name);
  for (let at = length - 22; at >= 0; at--) {
    if (tail.readUInt32LE(at) !== END) continue;
    const small = {
      count: tail.readUInt16LE(at + 10),
      nbytes: tail.readUInt32LE(at + 12),
      offset: tail.readUInt32LE(at + 16),
    };
    if (at < 20 || tail.readUInt32LE(at - 20) !== LOCATOR_64) return small;
    const position = Number(tail.readBigUInt64LE(at - 12));
    if (!(position + 56 <= size)) break;
    const end = await readExactly(file, position, 56, name);
    if (end.readUInt32LE(0) !== END_64) break;
    const field = (offset: number): number => Number(end.readBigUInt64LE(offset));
    return { count: field(32), nbytes: field(40), offset: field(48) };
  }
  throw formatError(name, "is no whole zip archive, as torch.save writes it: its end is missing");
}

/** Sizes and offset of an entry, which lie in the extra field where 32 bits do not hold them. */
function wide(extra: Buffer, [size, stored, offset]: [number, number, number]): [size: number, offset: number] {
  const fields = [size, stored, offset];
  for (let at = 0; at + 4 <= extra.length; at += 4 + extra.readUInt16LE(at + 2)) {
    if (extra.readUInt16LE(at) !== 1) continue;
    let from = at + 4;
    for (const [i, value] of fields.entries()) {
      if (value !== 0xffffffff || from + 8 > extra.length) continue;
      fields[i] = Number(extra.readBigUInt64LE(from));
      from += 8;
    }
  }
  return [fields[0] as number, fields[2] as number];
}

/** Exactly these bytes, or ERR_BNB_FORMAT. */
export async function readExactly(file: FileHandle, offset: number, nbytes: number, name: string): Promise<Buffer> {
  const bytes = Buffer.alloc(nbytes);
  let at = 0;
  while (at < nbytes) {
    const { bytesRead } = await file.read(bytes, at, nbytes - at, offset + at);
    if (bytesRead === 0) throw formatError(name, `ends at byte ${offset + at}, and ${offset + nbytes} must be there`);
    at += bytesRead;
  }
  return bytes;
}
