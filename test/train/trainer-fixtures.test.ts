// The trainer against what transformers' Trainer gave, and packing against a block-diagonal mask.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import { PeftModel } from "../../src/peft/index.js";
import type { Sample, StepEvent, TrainingArguments } from "../../src/train/index.js";
import { Trainer } from "../../src/train/index.js";
import type { FixtureTensor } from "../helpers/safetensors.js";
import { fixturePath, readSafetensors } from "../helpers/safetensors.js";

const folder = mkdtempSync(join(tmpdir(), "bnb-train-"));
afterAll(() => rmSync(folder, { recursive: true }));

const base = (name = "llama-plain") =>
  AutoModelForCausalLM.fromPretrained(fixturePath(`families/${name}/fp32`), { deviceMap: "cpu" });
const json = (path: string) => JSON.parse(readFileSync(fixturePath(`train/${path}`), "utf8"));
const numbers = ({ values }: FixtureTensor): Int32Array => Int32Array.from(values as Iterable<number>, Number);

/** Rows of a padded batch, without their padding. */
function rows(file: Map<string, FixtureTensor>, prefix: string): Sample[] {
  const [ids, labels, mask] = ["input_ids", "labels", "attention_mask"].map(
    (key) => file.get(`${prefix}.${key}`) as FixtureTensor,
  );
  const [count = 0, width = 0] = (ids as FixtureTensor).shape;
  return Array.from({ length: count }, (_, i) => {
    const length = numbers(mask as FixtureTensor)
      .subarray(i * width, (i + 1) * width)
      .reduce((sum, m) => sum + m, 0);
    const row = (of: FixtureTensor) => numbers(of).slice(i * width, i * width + length);
    return { ids: row(ids as FixtureTensor), labels: row(labels as FixtureTensor) };
  });
}

describe("accumulation over unequal lengths", () => {
  const trace = json("accumulation/trace.json");
  const file = readSafetensors("train/accumulation/micro_batches.safetensors");
  const samples = Array.from({ length: 18 }, (_, k) => rows(file, String(k))).flat();
  const { hyperparameters: h } = trace;
  const args = (name: string): TrainingArguments => ({
    outputDir: join(folder, name),
    perDeviceTrainBatchSize: h.batch,
    gradientAccumulationSteps: h.accumulation,
    maxSteps: h.steps,
    learningRate: h.lr,
    weightDecay: h.weight_decay,
    warmupSteps: h.warmup_steps,
    maxGradNorm: h.max_grad_norm,
    shuffle: false,
  });

  it.each(["full", "lora"])("gives the losses, norms and weights of transformers: %s", async (run) => {
    using model = await base();
    if (run === "lora") {
      const adapter = fixturePath("train/accumulation/lora-init");
      await PeftModel.fromPretrained(model, adapter, { isTrainable: true });
    }
    const trainer = new Trainer({ model, args: args(run), trainDataset: samples });
    const steps: StepEvent[] = [];
    trainer.on("step", (event) => steps.push(event));
    await trainer.train();
    const want = trace.runs[run].steps;
    expect(steps.length).toBe(want.length);
    steps.forEach(({ loss, gradNorm, learningRate }, i) => {
      expect(learningRate).toBeCloseTo(want[i].lr, 12);
      expect(Math.abs(loss - want[i].loss)).toBeLessThan(2e-5 * want[i].loss);
      expect(Math.abs(gradNorm / want[i].grad_norm_before_clip - 1)).toBeLessThan(1e-4);
    });
    const final = readSafetensors(`train/accumulation/final_${run}.safetensors`);
    const named = new Map(model.namedParameters());
    let [far, all] = [0, 0];
    for (const [name, { values }] of final) {
      const found = named.get(name) ?? named.get(name.replace(/\.(lora_[AB])\.weight$/, ".default.$1"));
      expect(found, name).toBeDefined();
      found?.floatsSync().forEach((value, i) => {
        all++;
        if (Math.abs(value - (values[i] as number)) > 2e-4) far++;
      });
    }
    expect(all).toBeGreaterThan(1000);
    expect(far / all).toBeLessThan(0.01);
  });
});

describe("packing", () => {
  const file = readSafetensors("train/packing.safetensors");
  const expected = json("packing.json");

  it.each(["llama-plain", "mistral-window", "opt"])("%s: packed samples do not see each other", async (name) => {
    using model = await base(name);
    const { lengths, loss, grad_norm, loss_when_packed_without_mask_and_positions } = expected[name];
    const ids = numbers(file.get(`${name}.input_ids`) as FixtureTensor);
    const [first = 0] = lengths as number[];
    const samples = [ids.slice(0, first), ids.slice(first)].map((row) => ({ ids: row, labels: row }));
    expect(samples[1]?.ids.length).toBe(lengths[1]);
    const args = {
      outputDir: join(folder, name),
      maxSteps: 1,
      packing: true,
      perDeviceTrainBatchSize: 2,
      learningRate: 0,
    };
    const trainer = new Trainer({ model, trainDataset: samples, args: { ...args, shuffle: false } });
    const steps: StepEvent[] = [];
    trainer.on("step", (event) => steps.push(event));
    await trainer.train();
    expect(steps[0]?.loss).toBeCloseTo(loss, 4);
    expect(Math.abs((steps[0]?.loss ?? 0) - loss_when_packed_without_mask_and_positions)).toBeGreaterThan(0.01);
    expect(Math.abs((steps[0]?.gradNorm ?? 0) / grad_norm - 1)).toBeLessThan(1e-4);
    // The same, sample by sample in batches of one, as an evaluation.
    const alone = await new Trainer({
      model,
      trainDataset: samples,
      args: { ...args, packing: false, perDeviceEvalBatchSize: 1 },
    }).evaluate(samples);
    const [sum, count] = expected[name].nll_sum_and_count_per_sample.reduce(
      ([s, n]: [number, number], [a, b]: [number, number]) => [s + a, n + b],
      [0, 0],
    );
    expect(alone.loss).toBeCloseTo(sum / count, 4);
    expect(alone.perplexity).toBeCloseTo(Math.exp(alone.loss), 6);
  });
});
