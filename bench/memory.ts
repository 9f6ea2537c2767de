// What forgetting costs: a 2000-step training loop that disposes everything, and one that disposes nothing outside
// tidy, where the garbage collector is the net. Each runs in a process of its own; the peaks are compared.
import { execFileSync } from "node:child_process";
import type { Tensor } from "bitsandbytes-node";
import {
  crossEntropy,
  LlamaConfig,
  LlamaForCausalLM,
  memory,
  nn,
  optim,
  randn,
  synchronize,
  tensor,
  tidy,
} from "bitsandbytes-node";
import { record } from "./timing.js";

const steps = 2000;

/** What one step uploads and computes: token ids for a language model, or 256 KB of floats for a small one. */
interface Task {
  model: nn.Module;
  inputs(step: number): Tensor[];
  loss(inputs: Tensor[]): Tensor;
}

function languageModel(): Task {
  const model = new LlamaForCausalLM(
    new LlamaConfig({
      vocabSize: 256,
      hiddenSize: 64,
      intermediateSize: 192,
      numHiddenLayers: 2,
      numAttentionHeads: 4,
      numKeyValueHeads: 2,
    }),
  );
  const ids = (step: number): Tensor =>
    tensor(
      Int32Array.from({ length: 256 }, (_, i) => (i * 7 + step) % 256),
      { shape: [4, 64] },
    );
  return {
    model,
    inputs: (step) => [ids(step), ids(step + 7)],
    loss: ([x, targets]) => crossEntropy(model.forward(x as Tensor), targets as Tensor),
  };
}

function denseModel(): Task {
  const model = new nn.Sequential(new nn.Linear(256, 512), new nn.Linear(512, 64));
  const classes = (step: number): Tensor => tensor(Int32Array.from({ length: 256 }, (_, i) => (i * 7 + step) % 64));
  return {
    model,
    inputs: (step) => [randn([256, 256]), classes(step)],
    loss: ([x, targets]) => crossEntropy(model.forward(x as Tensor), targets as Tensor),
  };
}

interface Peak {
  tensorBytes: number;
  rssBytes: number;
}

async function train(task: Task, disposes: boolean): Promise<Peak> {
  const optimizer = new optim.AdamW8bit(task.model.parameters(), { lr: 1e-3 });
  let rssBytes = 0;
  for (let step = 0; step < steps; step++) {
    const inputs = task.inputs(step);
    const loss = tidy(() => {
      const result = task.loss(inputs);
      result.backward();
      optimizer.step();
      optimizer.zeroGrad();
      return result;
    });
    if (step % 20 === 0) await loss.item();
    if (disposes) for (const t of [...inputs, loss]) t.dispose();
    rssBytes = Math.max(rssBytes, process.memoryUsage.rss());
  }
  await synchronize();
  return { tensorBytes: memory().peakBytes, rssBytes };
}

const [, script, name, mode] = process.argv;
if (name) {
  console.log(JSON.stringify(await train(name === "language" ? languageModel() : denseModel(), mode === "dispose")));
} else {
  const run = (...args: string[]): Peak =>
    JSON.parse(execFileSync(process.execPath, [script as string, ...args], { encoding: "utf8" })) as Peak;
  const MB = 2 ** 20;
  const cases = [
    ["language", "language model, ids forgotten"],
    ["dense", "small dense model, 256 KB of input a step forgotten"],
  ] as const;
  record(
    "memory",
    cases.map(([task, label]) => {
      const [disposing, forgetting] = [run(task, "dispose"), run(task, "forget")];
      return {
        case: label,
        rssMB: forgetting.rssBytes / MB,
        rssWhenDisposedMB: disposing.rssBytes / MB,
        rssRatio: forgetting.rssBytes / disposing.rssBytes,
        peakTensorMB: forgetting.tensorBytes / MB,
        peakTensorWhenDisposedMB: disposing.tensorBytes / MB,
      };
    }),
  );
}
