// What V8 is told of memory that it cannot see: forgotten tensors are collected while they are few, and a loop that
// forgets nothing is never charged a collection. Each loop has a process of its own: it counts collections.
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { expect, it } from "vitest";

const library = join(import.meta.dirname, "..", "..", "dist", "index.js");
const MB = 2 ** 20;

interface Outcome {
  /** Most that was live at once, and what is live in the end, in bytes. */
  peak: number;
  live: number;
  /** Full collections during the loop. */
  collections: number;
}

// Runs `setUp`, then `step` so many times, with a turn of the event loop after each. `empty` memory is never touched.
function loop(steps: number, setUp: string, step: string): Outcome {
  const program = `
    const { PerformanceObserver, constants } = require("node:perf_hooks");
    const { emptyCache, empty, memory, tidy } = require(${JSON.stringify(library)});
    const bytes = (n) => empty([n], { dtype: "uint8" });
    const turn = () => new Promise((resolve) => setImmediate(resolve));
    (async () => {
      let collections = 0;
      const counter = new PerformanceObserver((list) => {
        for (const { detail } of list.getEntries()) {
          if (detail.kind === constants.NODE_PERFORMANCE_GC_MAJOR) collections++;
        }
      });
      ${setUp};
      const step = () => { ${step} };
      for (let i = 0; i < 10; i++) step();
      await new Promise((resolve) => setTimeout(resolve, 200));
      emptyCache();
      counter.observe({ entryTypes: ["gc"] });
      for (let i = 0; i < ${steps}; i++) {
        step();
        await turn();
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
      const { peakBytes: peak, liveBytes: live } = memory();
      console.log(JSON.stringify({ peak, live, collections }));
    })();`;
  return JSON.parse(execFileSync(process.execPath, ["-e", program], { encoding: "utf8" })) as Outcome;
}

it("collects what a small program forgets before it has gathered 64 MB", () => {
  const { peak, collections } = loop(1000, "", `bytes(${MB / 4})`);
  expect(collections).toBeGreaterThan(1);
  expect(peak).toBeLessThan(64 * MB);
});

it("lets a large program forget in proportion to what it holds", () => {
  const setUp = `globalThis.held = Array.from({ length: 8 }, () => bytes(${128 * MB}))`;
  const { peak, live, collections } = loop(1000, setUp, `bytes(${MB})`);
  expect(live).toBeGreaterThanOrEqual(1024 * MB);
  expect(collections).toBeGreaterThan(0);
  expect(collections).toBeLessThan(10);
  expect(peak).toBeLessThan(1.4 * 1024 * MB);
});

it.each([
  ["everything", ""],
  ["all but its losses", "return bytes(4);"],
])("never charges a collection to a loop that frees %s", (_, forgotten) => {
  const setUp = `globalThis.weights = Array.from({ length: 16 }, () => bytes(${64 * MB}))`;
  const step = `tidy(() => { for (let i = 0; i < 8; i++) bytes(${64 * MB}); ${forgotten} });`;
  const { peak, collections } = loop(200, setUp, step);
  expect(peak).toBeGreaterThanOrEqual(1536 * MB);
  expect(collections).toBe(0);
});

it("survives collections between the steps of such a loop without lowering what it may use", () => {
  const setUp = `
    require("node:v8").setFlagsFromString("--expose-gc");
    const gc = require("node:vm").runInNewContext("gc");
    const plain = tidy;
    let count = 0;
    globalThis.weights = Array.from({ length: 4 }, () => bytes(${256 * MB}))`;
  // Forced every 20 steps, so that finalizers free the losses while only the weights are live.
  const step = `plain(() => { for (let i = 0; i < 8; i++) bytes(${64 * MB}); return bytes(4); });
    if (++count % 20 === 0) gc();`;
  const { collections } = loop(200, setUp, step);
  expect(collections).toBe(10);
});
