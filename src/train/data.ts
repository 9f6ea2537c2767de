// Text as bytes: a vocabulary of 256 that needs no tokenizer. Splits a text into train and held-out parts and
// cuts batches of (input, next byte) pairs from it.
import { seededRandom } from "../models/seeded-random.js";
import { tensor } from "../tensor/create.js";
import type { Device } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import type { Tensor } from "../tensor/tensor.js";

/** Input bytes and, one position later, the bytes to predict. The receiver disposes both. */
export interface Batch {
  ids: Tensor; // [batchSize, sequenceLength] int32
  targets: Tensor; // [batchSize, sequenceLength] int32
}

/** Sizes of a batch. */
export interface BatchOptions {
  batchSize: number;
  sequenceLength: number;
  device?: Device;
}

/**
 * Cuts a text into pieces of `chunk` bytes and holds out every `every`-th, so that both parts hold the same kinds
 * of text. Which pieces are held out depends on the length alone.
 *
 * @throws ERR_BNB_OPTION when `chunk` or `every` is no whole number of at least 1.
 */
export function splitBytes(
  bytes: Uint8Array,
  { chunk = 4096, every = 10 }: { chunk?: number; every?: number } = {},
): { train: Uint8Array; heldOut: Uint8Array } {
  checkCount("splitBytes", "chunk", chunk);
  checkCount("splitBytes", "every", every);
  const parts: { train: Uint8Array[]; heldOut: Uint8Array[] } = { train: [], heldOut: [] };
  for (let start = 0, i = 1; start < bytes.length; start += chunk, i++) {
    (i % every === 0 ? parts.heldOut : parts.train).push(bytes.subarray(start, start + chunk));
  }
  return { train: Buffer.concat(parts.train), heldOut: Buffer.concat(parts.heldOut) };
}

/** Endless batches from random places of a text; the same seed gives the same batches. */
export function* randomBatches(
  bytes: Uint8Array,
  { seed, ...options }: BatchOptions & { seed: number },
): Generator<Batch> {
  const places = placesFor("randomBatches", bytes, options);
  const uniform = seededRandom(seed);
  for (;;) {
    yield batchAt(
      bytes,
      Array.from({ length: options.batchSize }, () => Math.floor(uniform() * places)),
      options,
    );
  }
}

/** `count` batches of windows spread evenly over a text, the same ones at every call: for measuring. */
export function* evenBatches(
  bytes: Uint8Array,
  { count, ...options }: BatchOptions & { count: number },
): Generator<Batch> {
  const places = placesFor("evenBatches", bytes, options);
  checkCount("evenBatches", "count", count, 0);
  const windows = count * options.batchSize;
  for (let i = 0; i < count; i++) {
    const starts = Array.from({ length: options.batchSize }, (_, j) =>
      Math.floor(((i * options.batchSize + j) * (places - 1)) / Math.max(windows - 1, 1)),
    );
    yield batchAt(bytes, starts, options);
  }
}

/** The largest batch: its elements are indexed by int32, and a batch is made in one piece. */
const MOST_ELEMENTS = 2 ** 28;

function placesFor(op: string, bytes: Uint8Array, { batchSize, sequenceLength }: BatchOptions): number {
  checkCount(op, "batchSize", batchSize);
  checkCount(op, "sequenceLength", sequenceLength);
  if (batchSize * sequenceLength > MOST_ELEMENTS) {
    const rule = `${op}: batchSize * sequenceLength must be at most 2^28`;
    throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${batchSize} * ${sequenceLength}`);
  }
  const places = bytes.length - sequenceLength;
  if (places >= 1) return places;
  throw new BnbError(
    "ERR_BNB_ARGUMENT",
    `${op}: the text must have more than ${sequenceLength} bytes, got ${bytes.length}`,
  );
}

function checkCount(op: string, name: string, value: number, least = 1): void {
  if (Number.isSafeInteger(value) && value >= least) return;
  throw new BnbError("ERR_BNB_OPTION", `${op}: ${name} must be a whole number of at least ${least}, got ${value}`);
}

function batchAt(bytes: Uint8Array, starts: number[], { sequenceLength, device }: BatchOptions): Batch {
  const shape = [starts.length, sequenceLength];
  const ids = new Int32Array(starts.length * sequenceLength);
  const targets = new Int32Array(ids.length);
  starts.forEach((start, row) => {
    ids.set(bytes.subarray(start, start + sequenceLength), row * sequenceLength);
    targets.set(bytes.subarray(start + 1, start + 1 + sequenceLength), row * sequenceLength);
  });
  return { ids: tensor(ids, { shape, device }), targets: tensor(targets, { shape, device }) };
}
