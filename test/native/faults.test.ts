// Bad input and faults on two emulated GPUs: what the error says, and that the process, the device and its memory are
// afterwards as if nothing had happened. A process of its own, because a process has the devices that it started with.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { devices } from "../../src/index.js";

const emulated = devices().some((device) => device.name === "emulated GPU");
const dist = join(import.meta.dirname, "..", "..", "dist");

interface Failure {
  code: string;
  message: string;
}
interface Outcome {
  errors: Record<string, Failure | null>;
  values: Record<string, number[]>;
  memory: Record<"start" | "end", { tensors: number; liveBytes: number; devices: object }>;
}

// In the order of enum Defect of csrc/cuda/emulation/broken.cu.
const MISALIGNED = 8;
const GRID_TOO_LARGE = 13;
const WAITS_FOR_BLOCKS = 17;

const program = `
  const bnb = require(${JSON.stringify(join(dist, "index.js"))});
  const { runtime } = require(${JSON.stringify(join(dist, "native", "runtime.js"))});
  const { add, embedding, empty, emptyCache, matmul, memory, ones, synchronize, tensor, tidy } = bnb;
  const on = (device, n = 3) => ones([n], { device });
  const errors = {}, values = {};
  const attempt = async (name, run) => {
    try { await run(); errors[name] = null; } catch ({ code, message }) { errors[name] = { code, message }; }
  };
  const work = async (name, device) => {
    const y = tidy(() => add(add(on(device), on(device)), on(device)));
    values[name] = [...(await y.data())];
    y.dispose();
  };
  // Queues a sum, what fails, and another sum; reads the last on the failing device and a sum on the other one.
  const failAmong = async (name, fail) => {
    const x = on("cuda:0");
    const before = add(x, x);
    const failed = fail();
    const after = tidy(() => add(add(before, x), before));
    const other = tidy(() => add(on("cuda:1"), on("cuda:1")));
    values[name + ", other device"] = [...(await other.data())];
    await attempt(name, () => after.data());
    for (const t of [x, before, failed, after, other]) t?.dispose();
    await work(name + ", next", "cuda:0");
  };
  const provoke = (which) => () => { runtime.provoke(1, which); };
  const snapshot = async () => {
    await synchronize();
    emptyCache();
    const { tensors, liveBytes, devices } = memory();
    for (const device of Object.values(devices)) delete device.peakBytes;
    return { tensors, liveBytes, devices };
  };
  (async () => {
    await work("start", "cuda:0");
    const start = await snapshot();

    await attempt("cpu and cuda", () => tidy(() => add(on("cpu"), on("cuda:0"))));
    await attempt("two GPUs", () => tidy(() => matmul(empty([2, 2], { device: "cuda:1" }), empty([2, 2], { device: "cuda:0" }))));
    await attempt("no such device", () => on("cuda:2"));
    await attempt("no such shape", () => empty([2 ** 26, 2 ** 26], { device: "cuda:0" }));

    const kept = on("cuda:0", 1000), freed = on("cuda:0", 2000);
    freed.dispose();
    await attempt("too much memory", () => empty([2 ** 32 - 4095], { dtype: "uint8", device: "cuda:0" }));
    await work("after too much memory", "cuda:0");
    kept.dispose();

    await failAmong("id out of range", () => {
      const table = ones([4, 2], { device: "cuda:0" }), ids = tensor(new Int32Array([3, 7]), { device: "cuda:0" });
      const y = embedding(ids, table);
      table.dispose();
      ids.dispose();
      return y;
    });
    await failAmong("fault", provoke(${MISALIGNED}));
    await failAmong("grid", provoke(${GRID_TOO_LARGE}));
    await failAmong("hang", provoke(${WAITS_FOR_BLOCKS}));
    await attempt("counters after a hang", () => { runtime.provoke(1, 0); return synchronize("cuda:0"); });
    // Nobody reads this one: it is printed at the end.
    console.log(JSON.stringify({ errors, values, memory: { start, end: await snapshot() } }));
    runtime.provoke(1, ${MISALIGNED});
  })();`;

describe.runIf(emulated)("bad input and faults on the emulated GPU", () => {
  let child: ReturnType<typeof spawnSync>;
  let outcome: Outcome;

  beforeAll(() => {
    child = spawnSync(process.execPath, ["-e", program], {
      encoding: "utf8",
      timeout: 120_000,
      env: { ...process.env, BNB_EMULATED_DEVICES: "2" },
    });
    expect(child.stdout, String(child.stderr)).not.toBe("");
    outcome = JSON.parse(String(child.stdout)) as Outcome;
  });

  it.each([
    ["cpu and cuda", "ERR_BNB_DEVICE", /^add: all tensors must be on one device, got cpu and cuda:0$/],
    ["two GPUs", "ERR_BNB_DEVICE", /^matmul: all tensors must be on one device, got cuda:1 and cuda:0$/],
    ["no such device", "ERR_BNB_DEVICE", /^device: must be one of auto, cpu, cuda:0, cuda:1, got cuda:2$/],
    ["no such shape", "ERR_BNB_SHAPE", /^tensor: the size must stay below 2\^53 bytes, got \[67108864, 67108864\]$/],
    [
      "too much memory",
      "ERR_BNB_OOM",
      /^cuda:0: out of memory: wanted 4294963201 bytes, live 4096, cached 0, the device has 4294967296$/,
    ],
    ["id out of range", "ERR_BNB_ARGUMENT", /^embedding: index 7 is out of range, it must be in \[0, 4\)$/],
    ["fault", "ERR_BNB_CUDA", /^provoke: misaligned address: thread \(\d+, 0, 0\) reads 16 bytes/],
    [
      "grid",
      "ERR_BNB_SHAPE",
      /^provoke: launch: the shape is too large for a grid: \[1, 65536, 1\] blocks of 64 threads/,
    ],
    ["hang", "ERR_BNB_CUDA", /^provoke: hang: thread \(0, 0, 0\) of block \(\d+, 0, 0\) goes on without/],
  ])("says what is wrong with %s", (name, code, message) => {
    expect(outcome.errors[name]).toMatchObject({ code, message: expect.stringMatching(message) as string });
  });

  it("goes on after each", () => {
    expect(outcome.values["start"]).toEqual([3, 3, 3]);
    expect(outcome.values["after too much memory"]).toEqual([3, 3, 3]);
    for (const name of ["id out of range", "fault", "grid", "hang"]) {
      expect(outcome.values[`${name}, next`], name).toEqual([3, 3, 3]);
    }
  });

  it("leaves the other device alone", () => {
    for (const name of ["id out of range", "fault", "grid", "hang"]) {
      expect(outcome.values[`${name}, other device`], name).toEqual([2, 2, 2]);
    }
  });

  it("clears what a kernel that did not come to its end has counted", () => {
    expect(outcome.errors["counters after a hang"]).toBeNull();
  });

  it("leaks nothing", () => {
    expect(outcome.memory.end).toEqual(outcome.memory.start);
  });

  it("prints an error that nobody read, and ends as if there had been none", () => {
    expect(child.stderr).toMatch(/bitsandbytes-node: an error that nothing read: provoke: misaligned address/);
    expect(child.status).toBe(0);
  });
});
