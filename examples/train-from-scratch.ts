// A small language model of bytes, trained from random weights with AdamW8bit, then asked to continue a text.
// node build/examples/train-from-scratch.js TEXT [STEPS]
import { readFile } from "node:fs/promises";
import { Generator, generate, LlamaForCausalLM, optim, train } from "bitsandbytes-node";

const [path = "README.md", count = "300"] = process.argv.slice(2);
const steps = Number(count);
const { train: text, heldOut } = train.splitBytes(await readFile(path), { chunk: 1024 });

const model = new LlamaForCausalLM(
  {
    vocabSize: 256,
    hiddenSize: 128,
    intermediateSize: 384,
    numHiddenLayers: 2,
    numAttentionHeads: 4,
    numKeyValueHeads: 2,
    maxPositionEmbeddings: 512,
    tieWordEmbeddings: true,
  },
  { generator: new Generator(1) },
);
const parameters = model.parameters();
const optimizer = new optim.AdamW8bit(parameters, { lr: 3e-3 });
const scheduler = optim.cosineSchedule(optimizer, { warmupSteps: Math.ceil(steps / 10), totalSteps: steps });
const sizes = { batchSize: 4, sequenceLength: 128, device: model.device };
const perplexity = async (): Promise<string> =>
  Math.exp(await train.evaluate(model, train.evenBatches(heldOut, { ...sizes, count: 4 }))).toFixed(2);

console.log(`perplexity of a byte before: ${await perplexity()}`);
await train.train({
  model,
  optimizer,
  scheduler,
  parameters,
  steps,
  batches: train.randomBatches(text, { ...sizes, seed: 1 }),
  onStep: ({ step, loss }) => {
    if (step % Math.ceil(steps / 10) === 0) console.log(`step ${step}: loss ${loss.toFixed(3)}`);
  },
});
console.log(`perplexity of a byte after: ${await perplexity()}`);

const written: number[] = [];
for await (const byte of generate(model, Buffer.from("The "), { maxNewTokens: 80 })) written.push(byte);
console.log(`The ${Buffer.from(written).toString()}`);
