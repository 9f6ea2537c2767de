// npm run test:workers [-- --rounds 200]: several threads load the package, compute, and end, while the main thread computes too;
// every other round they are stopped in the middle. Fails when a result is wrong, when the process crashes, or when what it holds
// grows from round to round.
import { createRequire } from "node:module";
import { parseArgs } from "node:util";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";

const { ones, memory, nn, noGrad, optim, tensor, tidy } = createRequire(import.meta.url)("../../dist/index.js");
const threads = 4;

/** A step of training and a matrix product whose sums are known. */
async function compute() {
  const layer = new nn.Linear(32, 8);
  const adam = new optim.AdamW8bit(layer.parameters(), { lr: 0.01, min8bitSize: 0 });
  const loss = layer
    .forward(ones([4, 32]))
    .square()
    .mean();
  loss.backward();
  adam.step();
  const product = tidy(() =>
    noGrad(() =>
      tensor([
        [1, 2],
        [3, 4],
      ])
        .matmul(ones([2, 256]))
        .sum(),
    ),
  );
  const sum = await product.item();
  if (sum !== 2560) throw new Error(`workers: the sum must be 2560, got ${sum}`);
  if (!Number.isFinite(await loss.item())) throw new Error("workers: the loss must be finite");
}

/** @type {(stop: boolean) => Promise<void>} */
function thread(stop) {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: { stop } });
    worker.on("error", reject);
    worker.on("message", () => stop && void worker.terminate());
    worker.on("exit", (code) =>
      code === 0 || stop ? resolve() : reject(new Error(`workers: a thread ended with ${code}`)),
    );
  });
}

if (isMainThread) {
  const { values } = parseArgs({ options: { rounds: { type: "string", default: "200" } } });
  const rounds = Number(values.rounds);
  const settled = Math.ceil(rounds / 4);
  let held = 0;
  for (let round = 1; round <= rounds; round++) {
    const ends = Array.from({ length: threads }, () => thread(round % 2 === 0));
    await Promise.all([...ends, compute()]);
    globalThis.gc?.();
    if (round === settled) held = process.memoryUsage().rss;
  }
  const grown = (process.memoryUsage().rss - held) / (rounds - settled) / threads / 1e3;
  console.log(
    `${rounds} rounds of ${threads} threads: ${grown.toFixed(1)} kB more held with each thread; ${memory().tensors} tensors live here`,
  );
  // A thread that left its heap, its streams or its tensors behind would hold megabytes.
  if (rounds >= 50 && grown > 300) {
    console.error("workers: memory grows with each thread");
    process.exitCode = 1;
  }
} else {
  await compute();
  parentPort?.postMessage("computed");
  // To be stopped with work under way.
  while (workerData.stop) await compute();
}
