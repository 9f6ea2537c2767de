// The emulated GPU finds what it claims to: each kernel of csrc/cuda/emulation/broken.cu fails for its own reason, and
// the device goes on, but for a trap, after which a GPU is lost to its process.
import { describe, expect, it } from "vitest";
import { add, BnbError, devices, ones, tensor } from "../../src/index.js";
import { addon } from "../../src/native/addon.js";

const emulated = devices().find((device) => device.name === "emulated GPU");

// In the order of enum Defect.
const defects: [name: string, message: RegExp][] = [
  [
    "no barrier",
    /race: (write|read) by thread \(\d+, 0, 0\) and (write|read) by thread .* with no barrier between them/,
  ],
  ["no __syncwarp", /race: /],
  ["no wait for cp.async", /cp\.async: .* reads shared byte \d+ before the copy to it was waited for/],
  ["no barrier after the wait", /race: |cp\.async: /],
  ["a shared array overrun", /out of bounds: thread \(63, 0, 0\) writes 4 bytes at shared byte \d+/],
  [
    "a divergent barrier",
    /divergence: thread .* (waits at __syncthreads in line \d+|has returned), thread .* (waits|has)/,
  ],
  ["a divergent shuffle", /divergence: .* __shfl_xor_sync in line \d+/],
  ["a misaligned vector", /misaligned address: .* reads 16 bytes at an address that is no multiple of 16/],
  ["device memory overrun", /illegal address: .* writes 4 bytes outside every live block of device memory/],
  ["host memory", /illegal address: .* reads 4 bytes of host memory/],
  ["uninitialized shared memory", /uninitialized shared memory gave NaN/],
  ["a grid beyond the limits", /the shape is too large for a grid: \[1, 65536, 1\]/],
];
const TRAP = defects.length + 1;

// The build with AddressSanitizer does not see single accesses; the other one does.
const checksAccesses = process.env["BNB_SANITIZED"] !== "1";

describe.runIf(emulated !== undefined && checksAccesses)("the emulator", () => {
  const device = emulated as NonNullable<typeof emulated>;

  it("runs correct kernels", async () => {
    addon.provoke(device.index, 0);
    await device.synchronize();
  });

  it.each(defects.map(([name, message], i) => [name, message, i + 1] as const))(
    "finds %s",
    async (_, message, which) => {
      addon.provoke(device.index, which);
      const error = await device.synchronize().catch((e: unknown) => e);
      expect(error).toBeInstanceOf(BnbError);
      expect((error as BnbError).message).toMatch(message);
      // The next kernel runs.
      addon.provoke(device.index, 0);
      await device.synchronize();
    },
  );

  it("skips what follows a failure until it is read, and leaves the other device alone", async () => {
    const x = tensor([1, 2, 3], { device });
    addon.provoke(device.index, 1);
    const y = add(x, x);
    const onCpu = add(ones([3], { device: "cpu" }), ones([3], { device: "cpu" }));
    expect([...(await onCpu.data())]).toEqual([2, 2, 2]);
    await expect(y.data()).rejects.toThrow(/race/);
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
