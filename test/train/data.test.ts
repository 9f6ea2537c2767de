// Byte-level data: what is held out, which windows are cut, and that a seed repeats them.
import { describe, expect, it } from "vitest";
import { memory } from "../../src/tensor/scope.js";
import type { Batch } from "../../src/train/index.js";
import { evenBatches, randomBatches, splitBytes } from "../../src/train/index.js";

const bytes = Uint8Array.from({ length: 1000 }, (_, i) => (i * 7) % 251);

function take(
  batches: Iterator<Batch>,
  count: number,
): { ids: number[]; targets: number[]; shape: readonly number[] }[] {
  return Array.from({ length: count }, () => {
    const { ids, targets } = batches.next().value as Batch;
    const read = { ids: Array.from(ids.dataSync()), targets: Array.from(targets.dataSync()), shape: ids.shape };
    expect(ids.dtype).toBe("int32");
    ids.dispose();
    targets.dispose();
    return read;
  });
}

describe("splitBytes", () => {
  it("holds out every n-th piece and loses nothing", () => {
    const { train, heldOut } = splitBytes(bytes, { chunk: 64, every: 4 });
    const want = { train: [] as number[], heldOut: [] as number[] };
    bytes.forEach((byte, i) => {
      want[Math.floor(i / 64) % 4 === 3 ? "heldOut" : "train"].push(byte);
    });
    expect([...train]).toEqual(want.train);
    expect([...heldOut]).toEqual(want.heldOut);
  });
});

describe("randomBatches", () => {
  it("cuts windows of the text, targets one byte later", () => {
    const places = new Set<string>();
    for (let i = 0; i + 17 <= bytes.length; i++) places.add([...bytes.subarray(i, i + 17)].join());
    for (const { ids, targets, shape } of take(
      randomBatches(bytes, { batchSize: 3, sequenceLength: 16, seed: 1 }),
      20,
    )) {
      expect(shape).toEqual([3, 16]);
      for (let row = 0; row < 3; row++) {
        const window = [...ids.slice(16 * row, 16 * row + 16), targets[16 * row + 15]];
        expect(places.has(window.join())).toBe(true);
        expect(targets.slice(16 * row, 16 * row + 15)).toEqual(ids.slice(16 * row + 1, 16 * row + 16));
      }
    }
  });

  it("repeats with a seed and differs with another", () => {
    const some = (seed: number) => take(randomBatches(bytes, { batchSize: 2, sequenceLength: 8, seed }), 3);
    expect(some(1)).toEqual(some(1));
    expect(some(1)).not.toEqual(some(2));
  });

  it("reaches the first and the last window", () => {
    const text = Uint8Array.of(1, 2, 3, 4);
    const firsts = take(randomBatches(text, { batchSize: 1, sequenceLength: 2, seed: 1 }), 60).map(({ ids }) => ids[0]);
    expect(new Set(firsts)).toEqual(new Set([1, 2]));
  });

  it("leaves memory to the receiver", () => {
    const before = memory().tensors;
    take(randomBatches(bytes, { batchSize: 2, sequenceLength: 8, seed: 1 }), 3);
    expect(memory().tensors).toBe(before);
  });
});

describe("evenBatches", () => {
  it("spreads windows from the first byte to the last, the same at every call", () => {
    const some = () => take(evenBatches(bytes, { batchSize: 4, sequenceLength: 10, count: 3 }), 3);
    const batches = some();
    expect(batches).toEqual(some());
    expect(batches[0]?.ids.slice(0, 10)).toEqual([...bytes.subarray(0, 10)]);
    const end = Math.floor((11 * (990 - 1)) / 11);
    expect(batches[2]?.targets.slice(-10)).toEqual([...bytes.subarray(end + 1, end + 11)]);
    const all = evenBatches(bytes, { batchSize: 4, sequenceLength: 10, count: 3 });
    take(all, 3);
    expect(all.next().done).toBe(true);
  });
});

describe("errors", () => {
  it("rejects a text that is too short", () => {
    const batches = randomBatches(bytes.subarray(0, 16), { batchSize: 1, sequenceLength: 16, seed: 1 });
    expect(() => batches.next()).toThrow(
      expect.objectContaining({
        code: "ERR_BNB_ARGUMENT",
        message: "randomBatches: the text must have more than 16 bytes, got 16",
      }),
    );
  });
});
