// Matchers that every test file has: tensors against numbers, and what a piece of code leaves in memory.
import { expect } from "vitest";
import type { Tensor } from "../src/index.js";
import { setDefaultDevice } from "../src/index.js";
import type { Numbers } from "./helpers/expect-close.js";
import { expectClose } from "./helpers/expect-close.js";
import type { OpKind } from "./helpers/tolerance.js";
import { tolerance } from "./helpers/tolerance.js";

declare module "vitest" {
  interface Matchers<T> {
    /** The tensor's elements equal the expected ones within the tolerance of its dtype and of the kind of op. */
    toBeCloseToTensor(expected: Numbers, kind?: OpKind): T;
    /** Running the function, which may be async, leaves as many live tensors and bytes as before. Await it. */
    toLeakNothing(): Promise<T>;
  }
}

const device = process.env["BNB_TEST_DEVICE"];
if (device) setDefaultDevice(device);

expect.extend({
  toBeCloseToTensor(actual: Tensor, expected: Numbers, kind?: OpKind) {
    try {
      expectClose(actual.floatsSync(), expected, tolerance(actual.dtype, kind));
      return { pass: true, message: () => "the tensor is close to the expected values" };
    } catch (error) {
      return { pass: false, message: () => (error as Error).message };
    }
  },

  async toLeakNothing(run: () => unknown) {
    const { memory } = await import("../src/index.js");
    const { tensors, liveBytes } = memory();
    await run();
    const after = memory();
    const more = `${after.tensors - tensors} tensors and ${after.liveBytes - liveBytes} bytes`;
    return {
      pass: after.tensors === tensors && after.liveBytes === liveBytes,
      message: () => `live memory changed by ${more}`,
    };
  },
});
