// The pool: what a block of each size holds, that freed blocks are used again, and what is tried before out of memory.
import { describe, expect, it } from "vitest";
import { capture, cast, embedding, empty, emptyCache, memory, ones, tensor } from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";

const MB = 2 ** 20;
const bytes = (n: number, device: string) => empty([n], { dtype: "uint8", device });

describe.each(testDevices())("the pool of %s", (device) => {
  const held = () => memory().devices[device]!;

  it("rounds sizes up to the next of eight classes per doubling, and by 64 KB from 1 MB on", () => {
    const capacities: [nbytes: number, capacity: number][] = [
      [0, 64],
      [1, 64],
      [64, 64],
      [65, 128],
      [448, 448],
      [449, 512],
      [512, 512],
      [513, 576],
      [1023, 1024],
      [1024, 1024],
      [1025, 1152],
      [4097, 4608],
      [MB - 65536, MB - 65536],
      [MB - 65535, MB],
      [MB, MB],
      [MB + 1, MB + 65536],
      [3 * MB + 5, 3 * MB + 65536],
    ];
    emptyCache(device); // or a block that is a little larger may be taken again
    for (const [nbytes, capacity] of capacities) {
      const before = held().liveBytes;
      using _ = bytes(nbytes, device);
      expect(held().liveBytes - before, `${nbytes} bytes`).toBe(capacity);
    }
  });

  it("wastes at most an eighth, or 64 bytes, of any small size", () => {
    for (let nbytes = 1; nbytes <= MB; nbytes += 1 + Math.floor(nbytes / 57)) {
      const before = held().liveBytes;
      using _ = bytes(nbytes, device);
      const capacity = held().liveBytes - before;
      expect(capacity).toBeGreaterThanOrEqual(nbytes);
      expect(capacity - nbytes).toBeLessThanOrEqual(Math.max(63, nbytes / 8));
    }
  });

  it("takes a freed block of the same class again, and keeps the classes apart", () => {
    emptyCache();
    for (const t of [bytes(600, device), bytes(640, device), bytes(641, device)]) t.dispose();
    expect(held().cachedBytes).toBe(640 + 640 + 704);
    using _a = bytes(577, device);
    expect(held().cachedBytes).toBe(640 + 704);
    using _b = bytes(512, device);
    expect(held().cachedBytes, "a class below").toBe(640 + 704);
    using _c = bytes(704, device);
    expect(held().cachedBytes).toBe(640);
    emptyCache();
    expect(held().cachedBytes).toBe(0);
  });

  it("serves a large request from a cached block that is at most an eighth larger", () => {
    emptyCache();
    bytes(9 * MB, device).dispose();
    expect(held().cachedBytes).toBe(9 * MB);
    const near = bytes(8 * MB, device);
    expect(held().cachedBytes).toBe(0);
    near.dispose();
    expect(held().cachedBytes).toBe(9 * MB);
    using _far = bytes(8 * MB - 65536, device);
    expect(held().cachedBytes, "too small by a step").toBe(9 * MB);
    emptyCache();
    expect(held().cachedBytes).toBe(0);
  });

  it("counts what a recording takes in the peak, and keeps it apart until the graph goes", () => {
    emptyCache(device);
    const { liveBytes } = held();
    const graph = capture(
      () => {
        for (let i = 0; i < 3; i++) bytes(5 * MB, device).dispose(); // one block, three times
        bytes(3 * MB, device).dispose();
      },
      { device },
    );
    expect(held()).toMatchObject({ liveBytes: liveBytes + 8 * MB, peakBytes: liveBytes + 8 * MB, cachedBytes: 0 });
    graph.dispose();
    expect(held()).toMatchObject({ liveBytes, peakBytes: liveBytes + 8 * MB, cachedBytes: 8 * MB });
    emptyCache(device);
    expect(held()).toMatchObject({ liveBytes, peakBytes: liveBytes, cachedBytes: 0 });
  });

  it("has no place for a replay inside a recording", () => {
    using x = bytes(10, device);
    const inner = capture(() => void cast(x, "int8"), { device });
    const replayed = () => capture(() => inner.replay(), { device });
    expect(replayed).toThrow(`replay: can't be part of a graph on ${device}`);
    inner.replay();
    inner.dispose();
  });

  it("keeps the first of several errors, and none after it was told", async () => {
    const table = ones([4, 2], { device });
    const ids = (id: number) => tensor(Int32Array.of(id), { device });
    for (const [first, second] of [
      [7, 9],
      [12, 5],
    ] as const) {
      const y = embedding(ids(first), table);
      embedding(ids(second), table).dispose();
      embedding(ids(1), table).dispose();
      await expect(y.data()).rejects.toThrow(`embedding: index ${first} is out of range, it must be in [0, 4)`);
      expect([...(await embedding(ids(3), table).data())]).toEqual([1, 1]);
    }
  });

  it("empties its cache, small and large, before it says out of memory", async () => {
    using kept = bytes(100, device);
    for (const nbytes of [1, 700, MB, 2 * MB, 5 * MB]) bytes(nbytes, device).dispose();
    const live = held().liveBytes;
    expect(held().cachedBytes).toBeGreaterThan(8 * MB);
    expect(() => bytes(2 ** 50, device)).toThrow(
      `${device}: out of memory: wanted ${2 ** 50} bytes, live ${live}, cached 0,`,
    );
    expect(held()).toMatchObject({ liveBytes: live, cachedBytes: 0 });
    expect((await kept.data()).length).toBe(100);
  });
});
