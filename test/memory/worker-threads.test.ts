// Every worker thread is an environment of its own: its slots, its stream, its errors. Run on the built package.
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { expect, it } from "vitest";
import { memory } from "../../src/index.js";

const library = join(import.meta.dirname, "..", "..", "dist", "index.js");

const program = `
  const { parentPort, workerData } = require("node:worker_threads");
  const bnb = require(workerData.packagePath);
  (async () => {
    const held = [];
    for (let i = 0; i < 50; i++) {
      const x = bnb.tensor(new Float32Array(1000).fill(workerData.seed + i));
      const y = bnb.tidy(() => x.mul(2).add(1));
      const values = await y.data();
      if (!values.every((v) => v === 2 * (workerData.seed + i) + 1)) throw new Error("wrong value in " + i);
      x.dispose();
      if (i % 10 === 0) held.push(y); else y.dispose();
    }
    const stale = held[0];
    parentPort.postMessage({ tensors: bnb.memory().tensors, held: held.length });
    if (workerData.exitWithWork) {
      const big = bnb.tensor(new Float32Array(1 << 20));
      for (let i = 0; i < 200; i++) bnb.tidy(() => big.mul(2).exp());
      big.data();
      process.exit(0);
    }
  })();
`;

function run(seed: number, exitWithWork: boolean): Promise<{ tensors: number; held: number }> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(program, { eval: true, workerData: { packagePath: library, seed, exitWithWork } });
    let result: { tensors: number; held: number };
    worker.on("message", (message: { tensors: number; held: number }) => {
      result = message;
    });
    worker.on("error", reject);
    worker.on("exit", (code) => (code === 0 ? resolve(result) : reject(new Error(`exit code ${code}`))));
  });
}

it("gives each thread its own tensors and streams", async () => {
  const before = memory().tensors;
  const results = await Promise.all([1, 1000, 2000, 3000].map((seed) => run(seed, false)));
  for (const { tensors, held } of results) expect(tensors).toBe(held);
  expect(memory().tensors).toBe(before);
});

it("survives a thread that exits with work queued and a read pending", async () => {
  await Promise.all([run(5, true), run(6, true)]);
});
