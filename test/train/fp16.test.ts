// fp16: losses are scaled, steps whose gradients overflow change nothing, and a run that goes on has its scale.
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { Generator } from "../../src/ops/index.js";
import type { Sample, StepEvent, TrainingArguments } from "../../src/train/index.js";
import { Trainer } from "../../src/train/index.js";

const root = mkdtempSync(join(tmpdir(), "bnb-fp16-"));
afterAll(() => rmSync(root, { recursive: true }));
let folders = 0;

const samples: Sample[] = Array.from({ length: 6 }, (_, i) => {
  const ids = Int32Array.from({ length: 4 + i }, (_, j) => (i * 7 + j * j * 3) % 32);
  return { ids, labels: ids };
});
const newModel = (dtype: "float16" | "float32") =>
  new LlamaForCausalLM(
    {
      ...{ vocabSize: 32, hiddenSize: 16, intermediateSize: 32, numHiddenLayers: 1, numAttentionHeads: 2 },
      ...{ initializerRange: 0.5 },
    },
    { device: "cpu", dtype, generator: new Generator(5) },
  );
const hashOf = (model: LlamaForCausalLM): string => {
  const hash = createHash("sha256");
  for (const parameter of model.parameters()) hash.update(parameter.dataSync() as Uint8Array);
  return hash.digest("hex");
};

async function run(dtype: "float16" | "float32", args: Partial<TrainingArguments>) {
  using model = newModel(dtype);
  const outputDir = args.outputDir ?? join(root, String(folders++));
  const settings = { perDeviceTrainBatchSize: 2, maxSteps: 8, learningRate: 1e-2, shuffle: false, saveSteps: 1 };
  const trainer = new Trainer({
    model,
    trainDataset: samples,
    args: { ...settings, fp16: dtype === "float16", ...args, outputDir },
  });
  const steps: (StepEvent & { hash: string })[] = [];
  const start = hashOf(model);
  trainer.on("step", (event) => steps.push({ ...event, hash: hashOf(model) }));
  await trainer.train();
  return { steps, start, outputDir };
}

it("skips steps that overflow, halves the scale for each, and learns as float32 does otherwise", async () => {
  const { steps, start, outputDir } = await run("float16", {});
  const skipped = steps.filter(({ isSkipped }) => isSkipped);
  // 2^16 times the gradients is beyond float16 at first.
  expect(steps[0]?.isSkipped).toBe(true);
  expect(skipped.length).toBeLessThan(7);
  steps.forEach(({ isSkipped, hash }, i) => {
    expect(hash === (steps[i - 1]?.hash ?? start)).toBe(isSkipped);
  });
  const state = readFileSync(join(outputDir, "checkpoint-8", "trainer_state.json"), "utf8");
  const { scaler } = JSON.parse(state).state.run;
  expect(scaler.scale).toBe(2 ** (16 - skipped.length));

  // The scale is no part of what is reported: norms are those of float32, up to the roundings of 16 bits.
  const { steps: wide } = await run("float32", {});
  const first = steps.findIndex(({ isSkipped }) => !isSkipped);
  const plain = await run("float32", { learningRate: 0, maxSteps: first + 1 });
  expect(steps[0]?.loss).toBeCloseTo(wide[0]?.loss as number, 1);
  expect(Math.abs((steps[first]?.gradNorm as number) / (plain.steps[first]?.gradNorm as number) - 1)).toBeLessThan(
    0.02,
  );
});

it("goes on with the scale that it had, to the bit", async () => {
  const whole = await run("float16", {});
  const controller = new AbortController();
  const outputDir = join(root, String(folders++));
  {
    using model = newModel("float16");
    const settings = { perDeviceTrainBatchSize: 2, maxSteps: 8, learningRate: 1e-2, shuffle: false, saveSteps: 1 };
    const args = { ...settings, fp16: true, outputDir, signal: controller.signal };
    const trainer = new Trainer({ model, trainDataset: samples, args });
    trainer.on("step", ({ step }) => step === 5 && controller.abort());
    await expect(trainer.train()).rejects.toMatchObject({ code: "ERR_BNB_ABORTED" });
  }
  const rest = await run("float16", { outputDir, resumeFromCheckpoint: true });
  expect(rest.steps.map(({ step }) => step)).toEqual([6, 7, 8]);
  expect(rest.steps.at(-1)?.hash).toBe(whole.steps.at(-1)?.hash);
});
