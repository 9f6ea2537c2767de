// Matchers that every test file has: tensors against numbers, and what a piece of code leaves in memory.
import { afterEach, beforeAll, beforeEach, expect } from "vitest";
import type { Tensor } from "../src/index.js";
import { memory, setDefaultDevice } from "../src/index.js";
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

// What tests start are programs of the same Node.js.
const node = process.env["BNB_TEST_NODE"];
if (node) process.execPath = node;

const device = process.env["BNB_TEST_DEVICE"];
if (device) setDefaultDevice(device);

async function collectGarbage(): Promise<void> {
  (globalThis as { gc?: () => void }).gc?.();
  for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve));
}

// What earlier files of this process left to the garbage collector is collected before this one, and what a test leaves
// before the next one: they may count what is alive.
beforeAll(async () => {
  // What is found dead is told in a task of its own, which may come a collection later.
  for (let [fewest, idle] = [Number.POSITIVE_INFINITY, 0]; idle < 3; idle++) {
    if (memory().tensors < fewest) [fewest, idle] = [memory().tensors, 0];
    await collectGarbage();
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
});
let alive = 0;
beforeEach(() => {
  alive = memory().tensors;
});
afterEach(async () => {
  if (memory().tensors > alive) await collectGarbage();
});

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
