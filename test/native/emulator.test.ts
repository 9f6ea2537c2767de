// The emulated GPU finds what it claims to: each kernel of csrc/cuda/emulation/broken.cu fails for its own reason, and
// the device goes on, but for a trap, after which a GPU is lost to its process. Under AddressSanitizer the compiler
// does not report single accesses to the emulator; what touches the wrong memory ends the process instead.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { add, BnbError, devices, ones, tensor } from "../../src/index.js";
import { addon } from "../../src/tensor/addon.js";

const emulated = devices().find((device) => device.name === "emulated GPU");

const sanitized = process.env["BNB_SANITIZED"] === "1";

/** Who finds a defect: the emulator always, only where accesses are reported to it, or else AddressSanitizer. */
type Finder = "always" | "accesses" | "accesses or sanitizer";

// In the order of enum Defect.
const defects: [name: string, finder: Finder, message: RegExp][] = [
  [
    "no barrier",
    "accesses",
    /race: (write|read) by thread \(\d+, 0, 0\) and (write|read) by thread .* with no barrier between them/,
  ],
  ["no __syncwarp", "accesses", /race: /],
  ["no wait for cp.async", "accesses", /cp\.async: .* reads shared byte \d+ before the copy to it was waited for/],
  ["no barrier after the wait", "accesses", /race: |cp\.async: /],
  [
    "a shared array overrun",
    "accesses or sanitizer",
    /out of bounds: thread \(63, 0, 0\) writes 4 bytes at shared byte \d+/,
  ],
  [
    "a divergent barrier",
    "always",
    /divergence: thread .* (waits at __syncthreads in line \d+|has returned), thread .* (waits|has)/,
  ],
  ["a divergent shuffle", "always", /divergence: .* __shfl_xor_sync in line \d+/],
  ["a misaligned vector", "always", /misaligned address: .* reads 16 bytes at an address that is no multiple of 16/],
  [
    "device memory overrun",
    "accesses or sanitizer",
    /illegal address: .* writes 4 bytes outside every live block of device memory/,
  ],
  [
    "device memory overrun by one element",
    "accesses or sanitizer",
    /illegal address: .* writes 4 bytes outside every live block of device memory/,
  ],
  ["host memory", "accesses", /illegal address: .* reads 4 bytes of host memory/],
  ["uninitialized shared memory", "always", /uninitialized shared memory gave NaN/],
  ["a grid beyond the limits", "always", /the shape is too large for a grid: \[1, 65536, 1\]/],
];
// Blocks that meet in memory: wrong results in some orders, and right ones in others.
const [RELIES_ON_BLOCK_ORDER, PLAIN_COUNTER, COUNTS_TOO_EARLY, WAITS_FOR_BLOCKS, , TRAP] = [1, 2, 3, 4, 5, 6].map(
  (i) => defects.length + i,
) as [number, number, number, number, number, number];
const laterDefects: typeof defects = [
  [
    "more shared memory than the card has",
    "always",
    /shared memory: values makes 4096 static and \d+ dynamic bytes, the kernel may have \d+/,
  ],
  [
    "more shared memory than all kernels have, for one that was not allowed it",
    "always",
    /shared memory: values makes 4096 static and 46080 dynamic bytes, the kernel may have 49152/,
  ],
];
const found = [
  ...defects.map(([name, finder, message], i) => ({ name, finder, message, which: i + 1 })),
  ...laterDefects.map(([name, finder, message], i) => ({ name, finder, message, which: TRAP + i + 1 })),
];

// Runs a broken kernel in a process of its own, which prints the error.
function provokeApart(which: number, order = "forward") {
  const library = join(import.meta.dirname, "..", "..", "dist", "native", "runtime.js");
  const program = `
    const { runtime } = require(${JSON.stringify(library)});
    runtime.gpus();
    runtime.provoke(${emulated!.index}, ${which});
    runtime
      .synchronize(${emulated!.index}, new ArrayBuffer(0))
      .then(() => console.log("nothing"), (error) => console.log(error.message));`;
  const env = { ...process.env, BNB_SIMT_ORDER: order };
  return spawnSync(process.execPath, ["-e", program], { encoding: "utf8", env, timeout: 120_000 });
}

describe.runIf(emulated !== undefined)("the emulator", () => {
  const device = emulated as NonNullable<typeof emulated>;

  it("runs correct kernels", async () => {
    addon.provoke(device.index, 0);
    await device.synchronize();
  });

  it.each(found.filter(({ finder }) => !sanitized || finder === "always"))(
    "finds $name",
    async ({ message, which }) => {
      addon.provoke(device.index, which);
      const error = await device.synchronize().catch((e: unknown) => e);
      expect(error).toBeInstanceOf(BnbError);
      expect((error as BnbError).message).toMatch(message);
      // The next kernel runs.
      addon.provoke(device.index, 0);
      await device.synchronize();
    },
  );

  it.runIf(sanitized).each(found.filter(({ finder }) => finder === "accesses or sanitizer"))(
    "lets a sanitizer find $name",
    ({ name, which }) => {
      const child = provokeApart(which);
      expect(child.stdout).toBe("");
      const report = name.startsWith("device memory")
        ? /ERROR: AddressSanitizer: (SEGV|use-after-poison)[\s\S]* memory_kernel</
        : /runtime error: index 64 out of bounds[\s\S]* reverse_kernel</;
      expect(child.stderr).toMatch(report);
      expect(child.status, "exit status").not.toBe(0);
    },
  );

  const right = /^nothing$/;
  const wrong = /the kernel gave a wrong result/;
  const hang = /hang: thread \(0, 0, 0\) of block \(\d+, 0, 0\) goes on without coming to a barrier/;
  // Threads are interrupted, and hangs counted, at accesses, which the build with sanitizers does not report.
  const why = sanitized ? " (skipped: the build with sanitizers does not report accesses)" : "";
  it.skipIf(sanitized).each([
    ["forward", "passes correct kernels", 0, right],
    ["reverse", "passes correct kernels", 0, right],
    ["random:1", "passes correct kernels", 0, right],
    ["random:2", "passes correct kernels", 0, right],
    ["forward", "does not see that a block needs the one before it", RELIES_ON_BLOCK_ORDER, right],
    ["reverse", "finds that a block needs the one before it", RELIES_ON_BLOCK_ORDER, wrong],
    ["random:1", "finds that a block needs the one before it", RELIES_ON_BLOCK_ORDER, wrong],
    ["random:1", "finds a counter that is no atomic", PLAIN_COUNTER, wrong],
    ["random:2", "finds a counter that is no atomic", PLAIN_COUNTER, wrong],
    ["random:1", "finds a block that is counted before it has written", COUNTS_TOO_EARLY, wrong],
    ["random:2", "finds a block that is counted before it has written", COUNTS_TOO_EARLY, wrong],
    ["forward", "stops a block that waits for all others", WAITS_FOR_BLOCKS, hang],
    ["reverse", "stops a block that waits for all others", WAITS_FOR_BLOCKS, hang],
    ["random:1", "stops a block that waits for all others", WAITS_FOR_BLOCKS, hang],
  ])(`in %s order, %s${why}`, (order, _, which, message) => {
    expect(provokeApart(which, order).stdout.trim()).toMatch(message);
  });

  it("skips what follows a failure until it is read, and leaves the other device alone", async () => {
    const x = tensor([1, 2, 3], { device });
    const [failing] = found.filter(({ finder }) => finder === "always");
    addon.provoke(device.index, failing!.which);
    const y = add(x, x);
    const onCpu = add(ones([3], { device: "cpu" }), ones([3], { device: "cpu" }));
    expect([...(await onCpu.data())]).toEqual([2, 2, 2]);
    await expect(y.data()).rejects.toThrow(failing!.message);
    expect([...(await add(x, x).data())]).toEqual([2, 4, 6]);
  });

  it("is lost to the process after a trap, as a GPU is, and the CPU is not", async () => {
    addon.provoke(device.index, TRAP);
    await expect(device.synchronize()).rejects.toThrow(/trap: thread .* stopped the kernel/);
    await expect(tensor([1], { device }).data()).rejects.toThrow(/the process must restart to use it again/);
    const onCpu = add(ones([3], { device: "cpu" }), ones([3], { device: "cpu" }));
    expect([...(await onCpu.data())]).toEqual([2, 2, 2]);
  });
});
