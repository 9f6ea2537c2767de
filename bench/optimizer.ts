// One step of the optimizers on 16.8 M float32 parameters: parameters per second, and the time of a copy of as many
// bytes as the step must read and write, in the same run. Also what queueing a step of many small parameters costs.
import { copyInto, synchronize, Tensor, tensor, zeros } from "bitsandbytes-node";
import type { Optimizer8bit } from "bitsandbytes-node/optim";
import { AdamW8bit, AdamW32bit, Lion8bit, SGD8bit } from "bitsandbytes-node/optim";
import type { Result } from "./timing.js";
import { compare, quantile, record } from "./timing.js";

const n = 1 << 24;
const noise = (scale: number) => Float32Array.from({ length: n }, (_, i) => scale * Math.sin(i * 12.9898 + (i % 97)));
const p = tensor(noise(0.1), { requiresGrad: true });
p.grad = tensor(noise(0.01));

// p and g in, p out, every state in and out.
const optimizers: [name: string, make: () => Optimizer8bit, stateBytes: number][] = [
  ["AdamW8bit", () => new AdamW8bit([p]), 2 * (1 + 4 / 256)],
  ["AdamW32bit", () => new AdamW32bit([p]), 8],
  ["Lion8bit", () => new Lion8bit([p]), 1 + 4 / 256],
  ["SGD8bit", () => new SGD8bit([p], { lr: 1e-6, momentum: 0.9 }), 1 + 4 / 256],
];

function stateBytes(optimizer: Optimizer8bit): number {
  const state = optimizer.stateOf(p);
  const tensors = Object.values(state ?? {}).filter((t) => t instanceof Tensor);
  return tensors.reduce((sum, t) => sum + t.nbytes, 0);
}

const results: Result[] = [];
for (const [name, make, perState] of optimizers) {
  const optimizer = make();
  const requiredBytes = n * (12 + 2 * perState);
  // A copy reads and writes, so it moves twice its size.
  const source = zeros([Math.round(requiredBytes / 2)], { dtype: "uint8" });
  const target = zeros(source.shape, { dtype: "uint8" });
  const { ours, peer, ratio } = await compare(
    () => optimizer.step(),
    () => copyInto(target, source),
    10,
  );
  results.push({
    case: name,
    parameters: n,
    ms: ours.median,
    minMs: ours.min,
    gigaParametersPerSecond: n / ours.median / 1e6,
    bestGigaParametersPerSecond: n / ours.min / 1e6,
    requiredGBs: requiredBytes / ours.median / 1e6,
    copyMs: peer.median,
    ofCopySpeed: ratio.median,
    stateBytesPerParameter: stateBytes(optimizer) / n,
  });
  optimizer.dispose();
  source.dispose();
  target.dispose();
}

// 200 parameters of 16 elements: the time until step() returns, with nothing waiting in the queue.
const many = Array.from({ length: 200 }, () => {
  const small = zeros([16], { requiresGrad: true });
  small.grad = zeros([16]);
  return small;
});
const optimizer = new AdamW8bit(many);
const times: number[] = [];
for (let i = 0; i < 300; i++) {
  await synchronize();
  const start = performance.now();
  optimizer.step();
  times.push(performance.now() - start);
}
results.push({
  case: "enqueue AdamW8bit, 200 parameters",
  microseconds: 1000 * quantile(times, 0.5),
  microsecondsPerParameter: (1000 * quantile(times, 0.5)) / many.length,
});
record("optimizer", results);
