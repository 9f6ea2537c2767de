// Text as bytes: a vocabulary of 256 that needs no tokenizer. Splits a text into train and held-out parts and
// cuts batches of (input, next byte) pairs from it.
import { types } from "node:util";
import { seededRandom } from "../models/seeded-random.js";
import type { Check } from "../tensor/checks.js";
import { aDevice, anInteger, checkArgument, required } from "../tensor/checks.js";
import { tensor } from "../tensor/create.js";
import type { DeviceLike } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
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
  device?: DeviceLike;
}
const batchChecks = {
  batchSize: required(anInteger(1)),
  sequenceLength: required(anInteger(1)),
  device: aDevice as Check,
};
const randomOptions = optionTable<BatchOptions & { seed: number }>({ ...batchChecks, seed: required(anInteger(0)) });
const evenOptions = optionTable<BatchOptions & { count: number }>({ ...batchChecks, count: required(anInteger(0)) });

/** Options of `splitBytes`. */
export interface SplitOptions {
  /** Bytes of a piece. Default 4096. */
  chunk?: number;
  /** Of so many pieces, one is held out. Default 10. */
  every?: number;
}
const splitOptions = optionTable<SplitOptions>({ chunk: anInteger(1), every: anInteger(1) });

/**
 * Cuts a text into pieces of `chunk` bytes and holds out every `every`-th, so that both parts hold the same kinds
 * of text. Which pieces are held out depends on the length alone.
 */
export function splitBytes(bytes: Uint8Array, options: SplitOptions = {}): { train: Uint8Array; heldOut: Uint8Array } {
  checkBytes("splitBytes", bytes);
  checkOptions("splitBytes", options, splitOptions);
  const { chunk = 4096, every = 10 } = options;
  const parts: { train: Uint8Array[]; heldOut: Uint8Array[] } = { train: [], heldOut: [] };
  for (let start = 0, i = 1; start < bytes.length; start += chunk, i++) {
    (i % every === 0 ? parts.heldOut : parts.train).push(bytes.subarray(start, start + chunk));
  }
  return { train: Buffer.concat(parts.train), heldOut: Buffer.concat(parts.heldOut) };
}

/** Endless batches from random places of a text; the same seed gives the same batches. */
export function* randomBatches(bytes: Uint8Array, settings: BatchOptions & { seed: number }): Generator<Batch> {
  checkBytes("randomBatches", bytes);
  checkOptions("randomBatches", settings, randomOptions);
  const { seed, ...options } = settings;
  const uniform = seededRandom(seed);
  const places = placesFor(bytes, options);
  for (;;) {
    yield batchAt(
      bytes,
      Array.from({ length: options.batchSize }, () => Math.floor(uniform() * places)),
      options,
    );
  }
}

/** `count` batches of windows spread evenly over a text, the same ones at every call: for measuring. */
export function* evenBatches(bytes: Uint8Array, settings: BatchOptions & { count: number }): Generator<Batch> {
  checkBytes("evenBatches", bytes);
  checkOptions("evenBatches", settings, evenOptions);
  const { count, ...options } = settings;
  const places = placesFor(bytes, options);
  const windows = count * options.batchSize;
  for (let i = 0; i < count; i++) {
    const starts = Array.from({ length: options.batchSize }, (_, j) =>
      Math.floor(((i * options.batchSize + j) * (places - 1)) / Math.max(windows - 1, 1)),
    );
    yield batchAt(bytes, starts, options);
  }
}

function checkBytes(op: string, bytes: Uint8Array): void {
  checkArgument(op, "bytes", bytes, { rule: "a Uint8Array", holds: types.isUint8Array });
}

function placesFor(bytes: Uint8Array, { sequenceLength }: BatchOptions): number {
  const places = bytes.length - sequenceLength;
  if (places >= 1) return places;
  throw new BnbError(
    "ERR_BNB_ARGUMENT",
    `batches: the text must have more than ${sequenceLength} bytes, got ${bytes.length}`,
  );
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
