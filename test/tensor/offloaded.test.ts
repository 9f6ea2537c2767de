// Tensors whose values wait elsewhere: they come back as they were, in the order of the device's work, and what fails on
// the way is the device's error.
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, it } from "vitest";
import { add, capture, empty, emptyCache, memory, mul, reshape, synchronize, tensor, tidy } from "../../src/index.js";
import { OffloadedTensors } from "../../src/tensor/offloaded.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";

const root = mkdtempSync(join(tmpdir(), "bnb-offloaded-"));
afterAll(() => rmSync(root, { recursive: true }));
let files = 0;
const open: number[] = [];
const newFile = (): number => {
  const fd = openSync(join(root, `${files++}`), "wx+");
  open.push(fd);
  return fd;
};
afterEach(() => open.splice(0).forEach(closeSync));

describe.each(testDevices())("%s", (device) => {
  const own: Tensor[] = [];
  afterEach(() => {
    for (const t of own.splice(0)) t.dispose();
  });
  const made = (values: readonly number[]): Tensor => {
    const t = tensor(Float32Array.from(values), { device });
    own.push(t);
    return t;
  };
  const live = () => memory().devices[device]!.liveBytes;
  const valuesOf = async (t: Tensor) => [...(await t.floats())];
  const ramp = (n: number, from = 0) => Array.from({ length: n }, (_, i) => from + i);

  it.each([
    ["host memory", () => null],
    ["a file", newFile],
  ])("come back from %s, as often as they are wanted", async (_, descriptor) => {
    const [x, y] = [made(ramp(1000)), made(ramp(3, 7))];
    const before = live();
    using group = new OffloadedTensors([x, y], descriptor());
    expect(before - live()).toBeGreaterThanOrEqual(4012);
    for (let round = 0; round < 3; round++) {
      group.use();
      using sum = tidy(() => add(x, 1));
      using twice = tidy(() => mul(y, 2));
      group.drop();
      // Takes the memory that was freed, behind those who read it.
      using other = tensor(new Float32Array(1000).fill(-1), { device });
      expect(await valuesOf(sum)).toEqual(ramp(1000, 1));
      expect(await valuesOf(twice)).toEqual([14, 16, 18]);
      expect((await other.floats())[999]).toBe(-1);
    }
    group.use();
    expect(live()).toBe(before);
    expect(await valuesOf(x)).toEqual(ramp(1000));
  });

  it("come in turn, one group ahead of the other", async () => {
    const tensors = Array.from({ length: 6 }, (_, i) => made(ramp(5000, i)));
    const fd = null;
    const groups = tensors.map((t) => new OffloadedTensors([t], fd));
    const empty = live();
    const sums: Tensor[] = [];
    let most = 0;
    groups[0]!.fetch();
    groups.forEach((group, i) => {
      group.use();
      groups[i + 1]?.fetch();
      most = Math.max(most, live() - sums.length * 20_480);
      sums.push(tidy(() => mul(tensors[i]!, 2)));
      group.drop();
    });
    expect(most - empty).toBeLessThanOrEqual(2 * 20_480);
    for (const [i, sum] of sums.entries()) {
      expect(await valuesOf(sum)).toEqual(ramp(5000, i).map((v) => 2 * v));
      sum.dispose();
    }
    for (const group of groups) group.dispose();
  });

  it("share what tensors share, and may be empty", async () => {
    const x = made(ramp(12));
    const none = empty([0], { device });
    const view = reshape(x, [3, 4]);
    own.push(none, view);
    using group = new OffloadedTensors([x, view, none], null);
    expect(() => tidy(() => add(view, 1))).toThrow(
      "tensor: it is offloaded, and in memory only while its layer computes",
    );
    group.use();
    expect(await valuesOf(view)).toEqual(ramp(12));
    group.drop();
    expect(() => x.dataSync()).toThrow("it is offloaded");
    expect(() => new OffloadedTensors([x], null)).toThrow("offload: a tensor is offloaded already");
  });

  it("fail as the device's work does where the file is cut", async () => {
    const x = made(ramp(1000));
    const fd = newFile();
    using group = new OffloadedTensors([x], fd);
    await synchronize(device);
    ftruncateSync(fd, 100);
    group.use();
    using y = tidy(() => add(x, 1));
    await expect(y.floats()).rejects.toThrow(/readFile: the file ends at byte 100, \d+ more must be there/);
    group.drop();
    using after = tidy(() => add(made([1, 2]), 1));
    expect(await valuesOf(after)).toEqual([2, 3]);
  });

  it.runIf(process.platform === "linux")("fail where the disk is full", async () => {
    const full = openSync("/dev/full", "w");
    open.push(full);
    using _ = new OffloadedTensors([made(ramp(1000))], full);
    await expect(synchronize(device)).rejects.toThrow(
      "offload: offloadFolder: its file could not be written: No space left on device",
    );
  });

  it("go while they are on their way", async () => {
    emptyCache();
    const before = memory();
    for (let i = 0; i < 20; i++) {
      const x = tensor(new Float32Array(50_000).fill(i), { device });
      const group = new OffloadedTensors([x], i % 2 ? newFile() : null);
      group.fetch();
      if (i % 3 === 0) group.use();
      if (i % 3 === 1) x.dispose();
      group.dispose();
      x.dispose();
    }
    await synchronize(device);
    expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
  });

  it("come in no recording", () => {
    const x = made(ramp(10));
    using group = new OffloadedTensors([x], null);
    expect(() => capture(() => group.use(), { device })).toThrow(/^offload: /);
    expect(() => group.use()).not.toThrow();
  });

  it("know when they are gone", () => {
    const group = new OffloadedTensors([made([1])], null);
    group.dispose();
    group.dispose();
    expect(() => group.use()).toThrow("offload: the model was disposed");
  });
});
