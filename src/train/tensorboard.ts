// Event files of TensorBoard: records of protocol buffers, each with its length and with checksums (CRC-32C). Written by hand:
// of the format, scalars need two messages.
import { appendFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { makeFolders } from "../hub/make-folders.js";
import type { LogEntry } from "./log-entry.js";

/** Appends scalars to one event file, which is made with the first of them. */
export class EventFile {
  readonly path: string;
  readonly #folder: string;
  #isBegun = false;

  constructor(folder: string, now: number = Date.now()) {
    this.#folder = folder;
    this.path = join(folder, `events.out.tfevents.${Math.floor(now / 1000)}.${hostname()}.${process.pid}.0`);
  }

  /** Adds the numbers of a report, in the groups that transformers makes: train/ and eval/. */
  async add(entry: LogEntry, now: number = Date.now()): Promise<void> {
    const { step, ...numbers } = entry;
    const values = Object.entries(numbers).flatMap(([name, value]) =>
      value === undefined ? [] : [scalar(tagOf(name), value)],
    );
    const event = record([...double(1, now / 1000), ...varint(2, step), ...bytes(5, values.flat())]);
    // By its version a reader tells the file from others.
    const version = [...double(1, now / 1000), ...bytes(3, [...Buffer.from("brain.Event:2")])];
    const begin = this.#isBegun ? Buffer.alloc(0) : record(version);
    await makeFolders(this.#folder);
    await appendFile(this.path, Buffer.concat([begin, event]));
    this.#isBegun = true;
  }
}

/** evalLoss as "eval/loss", learningRate as "train/learningRate". */
function tagOf(name: string): string {
  const evaluated = /^eval([A-Z])(.*)$/.exec(name);
  return evaluated ? `eval/${evaluated[1]?.toLowerCase()}${evaluated[2]}` : `train/${name}`;
}

// Summary.value: a tag and a simple_value.
function scalar(tag: string, value: number): number[] {
  const float = Buffer.alloc(4);
  float.writeFloatLE(value);
  return bytes(1, [...bytes(1, [...Buffer.from(tag)]), (2 << 3) | 5, ...float]);
}

function double(field: number, value: number): number[] {
  const buffer = Buffer.alloc(8);
  buffer.writeDoubleLE(value);
  return [(field << 3) | 1, ...buffer];
}

const varint = (field: number, value: number): number[] => [field << 3, ...digits(value)];
const bytes = (field: number, data: readonly number[]): number[] => [(field << 3) | 2, ...digits(data.length), ...data];

/** A whole number in groups of seven bits, the lowest first. */
function digits(value: number): number[] {
  const groups: number[] = [];
  let rest = value;
  do {
    groups.push((rest % 128) + (rest >= 128 ? 128 : 0));
    rest = Math.floor(rest / 128);
  } while (rest > 0);
  return groups;
}

function record(data: readonly number[]): Buffer {
  const body = Buffer.from(data);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(body.length));
  return Buffer.concat([length, checksum(length), body, checksum(body)]);
}

/** CRC-32C, turned and shifted, so that a checksum of checksums is none. */
function checksum(data: Buffer): Buffer {
  const crc = crc32c(data);
  const masked = (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(masked);
  return buffer;
}

/** The polynomial of Castagnoli, its bits turned round. */
const table = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let i = 0; i < 8; i++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc >>> 0;
});

function crc32c(data: Buffer): number {
  let crc = 0xffffffff;
  for (const byte of data) crc = (table[(crc ^ byte) & 0xff] as number) ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
