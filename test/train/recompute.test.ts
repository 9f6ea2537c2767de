// gradientCheckpointing: every family learns the same bits with it as without, also adapters with dropout over a frozen
// 4-bit base; and a step needs less memory.
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { BitsAndBytesConfig } from "../../src/hub/index.js";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM, LlamaForCausalLM } from "../../src/models/index.js";
import { Generator } from "../../src/ops/index.js";
import { applyLora, getPeftModel, LoraConfig } from "../../src/peft/index.js";
import { emptyCache, memory } from "../../src/tensor/scope.js";
import type { Sample, TrainingArguments } from "../../src/train/index.js";
import { Trainer } from "../../src/train/index.js";
import { fixturePath } from "../helpers/safetensors.js";

const root = mkdtempSync(join(tmpdir(), "bnb-recompute-"));
afterAll(() => rmSync(root, { recursive: true }));
let folders = 0;

const samples: Sample[] = Array.from({ length: 6 }, (_, i) => {
  const ids = Int32Array.from({ length: 5 + i }, (_, j) => 3 + ((i * 7 + j * j * 3) % 40));
  return { ids, labels: ids };
});
const settings: Partial<TrainingArguments> = {
  ...{ perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 2, maxSteps: 2, learningRate: 1e-2, saveSteps: 0 },
};

async function weightsAfter(
  model: CausalLM,
  gradientCheckpointing: boolean,
  generators: Generator[] = [],
  activationBudget = 0,
) {
  const args = { ...settings, outputDir: join(root, String(folders++)), gradientCheckpointing, activationBudget };
  const trainer = new Trainer({ model, trainDataset: samples, generators, args });
  const { loss } = await trainer.train();
  expect(model.gradientCheckpointing).toBe(false);
  const learned = model.namedParameters().filter(([, { requiresGrad }]) => requiresGrad);
  const hash = createHash("sha256");
  for (const [name, parameter] of learned) hash.update(name).update(parameter.dataSync());
  model.dispose();
  return { loss, parameters: learned.length, hash: hash.digest("hex") };
}

it.each(["llama-plain", "gemma2", "gpt2", "gpt-neox", "opt", "falcon", "mixtral"])("%s, all of it", async (family) => {
  const load = () => AutoModelForCausalLM.fromPretrained(fixturePath(`families/${family}/fp32`), { deviceMap: "cpu" });
  const [kept, again] = [await weightsAfter(await load(), false), await weightsAfter(await load(), true)];
  expect(kept.parameters).toBeGreaterThan(10);
  expect(again).toEqual(kept);
});

it("adapters with dropout over a frozen 4-bit base, in all blocks and in the last one", async () => {
  for (const layersToTransform of [null, [1]]) {
    const make = async (): Promise<[CausalLM, Generator]> => {
      const quantizationConfig = new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" });
      const path = fixturePath("families/llama-plain/fp32");
      const model = await AutoModelForCausalLM.fromPretrained(path, { deviceMap: "cpu", quantizationConfig });
      const generator = new Generator(2);
      const config = { r: 4, loraDropout: 0.4, targetModules: ["q_proj", "down_proj"], layersToTransform };
      getPeftModel(model, new LoraConfig(config), { generator });
      return [model, generator];
    };
    const [[a, ownA], [b, ownB]] = [await make(), await make()];
    const kept = await weightsAfter(a, false, [ownA]);
    expect(await weightsAfter(b, true, [ownB])).toEqual(kept);
    expect(ownB.state).toEqual(ownA.state);
    // With room for one more block: the first is computed again, the second is kept.
    const [c, ownC] = await make();
    expect(await weightsAfter(c, true, [ownC], 10_000_000)).toEqual(kept);
    expect([ownC.state, c.activationBudget]).toEqual([ownA.state, 0]);
  }
});

it("a step needs less memory", async () => {
  const ids = Int32Array.from({ length: 256 }, (_, i) => (i * i) % 64);
  const peakOf = async (gradientCheckpointing: boolean, activationBudget = 0): Promise<number> => {
    using model = new LlamaForCausalLM(
      {
        ...{ vocabSize: 64, hiddenSize: 64, intermediateSize: 128, numHiddenLayers: 8, numAttentionHeads: 4 },
        ...{ maxPositionEmbeddings: 256 },
      },
      { device: "cpu", generator: new Generator(1) },
    );
    applyLora(model, { r: 4, targetModules: ["q_proj", "v_proj"] });
    const args = { outputDir: join(root, String(folders++)), maxSteps: 1, gradientCheckpointing, activationBudget };
    const trainer = new Trainer({ model, trainDataset: [{ ids, labels: ids }], args });
    emptyCache();
    const before = memory().liveBytes;
    await trainer.train();
    return memory().peakBytes - before;
  };
  const kept = await peakOf(false);
  const least = await peakOf(true);
  expect(least).toBeLessThan(kept / 2);
  // A budget is used, and not exceeded.
  const budget = Math.floor((kept - least) / 2);
  const between = await peakOf(true, budget);
  expect(between).toBeGreaterThan(least + budget / 2);
  expect(between).toBeLessThanOrEqual(least + budget);
});
