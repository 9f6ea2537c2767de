// DPO against what torch and trl computed: log-probabilities, rewards, gradients and five steps.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM, LlamaForCausalLM } from "../../src/models/index.js";
import type { Parameter } from "../../src/nn/index.js";
import { copyInto, Generator } from "../../src/ops/index.js";
import type { LoraConfigOptions } from "../../src/peft/index.js";
import { getPeftModel, LoraConfig, PeftModel } from "../../src/peft/index.js";
import { tensor } from "../../src/tensor/create.js";
import { memory } from "../../src/tensor/scope.js";
import type {
  DPOTrainerOptions,
  LogEntry,
  PreferencePair,
  StepEvent,
  TrainingArguments,
} from "../../src/train/index.js";
import { DPOTrainer } from "../../src/train/index.js";
import { fixturePath, readSafetensors } from "../helpers/safetensors.js";

const folder = mkdtempSync(join(tmpdir(), "bnb-dpo-"));
afterAll(() => rmSync(folder, { recursive: true }));
let folders = 0;
const expected = JSON.parse(readFileSync(fixturePath("train/dpo/expected.json"), "utf8"));

const pairs: PreferencePair[] = expected.pairs.map(
  ({ prompt, chosen, rejected }: Record<"prompt" | "chosen" | "rejected", number[]>) => {
    const sample = (answer: number[]) => ({
      ids: Int32Array.from([...prompt, ...answer]),
      labels: Int32Array.from([...prompt.map(() => -100), ...answer]),
    });
    return { chosen: sample(chosen), rejected: sample(rejected) };
  },
);

async function adapted(name: string): Promise<PeftModel<CausalLM>> {
  const base = await AutoModelForCausalLM.fromPretrained(fixturePath("families/llama-plain/fp32"), {
    deviceMap: "cpu",
  });
  return PeftModel.fromPretrained(base, fixturePath(`train/dpo/${name}`), { isTrainable: true });
}

async function trained(name: string, args: Partial<TrainingArguments>, more: Partial<DPOTrainerOptions> = {}) {
  const model = await adapted(name);
  const trainer = new DPOTrainer({
    model,
    trainDataset: pairs,
    beta: expected.beta,
    args: {
      outputDir: join(folder, String(folders++)),
      perDeviceTrainBatchSize: 3,
      lrSchedulerType: "constant",
      loggingSteps: 1,
      maxGradNorm: 0,
      shuffle: false,
      ...args,
    },
    ...more,
  });
  const steps: StepEvent[] = [];
  const logs: LogEntry[] = [];
  trainer.on("step", (event) => steps.push(event));
  trainer.on("log", (entry) => logs.push(entry));
  await trainer.train();
  return { model, trainer, steps, logs };
}
const relative = (a: number | undefined, b: number): number => Math.abs((a as number) / b - 1);

describe("DPOTrainer", () => {
  it.each([
    ["all pairs at once", {}],
    ["pair by pair, accumulated", { perDeviceTrainBatchSize: 1, gradientAccumulationSteps: 3 }],
    ["blocks computed again", { gradientCheckpointing: true }],
  ])("one evaluation, %s: loss, rewards and gradient norm of torch", async (_, args) => {
    const { model, steps, logs } = await trained("adapter", { maxSteps: 1, learningRate: 0, ...args });
    const want = expected.evaluation;
    expect(relative(steps[0]?.loss, want.loss)).toBeLessThan(2e-5);
    expect(relative(steps[0]?.gradNorm, want.grad_norm)).toBeLessThan(1e-4);
    const mean = (values: number[]): number => values.reduce((sum, x) => sum + x, 0) / values.length;
    const [log] = logs;
    expect(log?.["rewardChosen"]).toBeCloseTo(mean(want.chosen_rewards), 4);
    expect(log?.["rewardRejected"]).toBeCloseTo(mean(want.rejected_rewards), 4);
    expect(log?.["rewardMargin"]).toBeCloseTo(want.margin, 4);
    expect(log?.["rewardAccuracy"]).toBeCloseTo(want.accuracy, 6);
    model.dispose();
  });

  it("five steps: losses, rewards, norms and adapters of trl", async () => {
    const before = memory().tensors;
    const { lr, weight_decay } = expected.training.optimizer;
    const { model, steps, logs } = await trained("init", { maxSteps: 5, learningRate: lr, weightDecay: weight_decay });
    const { loss, chosen_reward, rejected_reward, grad_norm } = expected.trl;
    expect(steps.length).toBe(5);
    steps.forEach((step, i) => {
      expect(relative(step.loss, loss[i])).toBeLessThan(2e-5);
      expect(relative(step.gradNorm, grad_norm[i])).toBeLessThan(1e-4);
      expect(logs[i]?.["rewardChosen"]).toBeCloseTo(chosen_reward[i], 4);
      expect(logs[i]?.["rewardRejected"]).toBeCloseTo(rejected_reward[i], 4);
    });
    const final = readSafetensors("train/dpo/final/adapter_model.safetensors");
    const named = new Map(model.model.namedParameters());
    expect(final.size).toBe(8);
    let [far, all] = [0, 0];
    for (const [name, { values }] of final) {
      const own = name.replace("base_model.model.", "").replace(/\.(lora_[AB])\.weight$/, ".default.$1");
      named
        .get(own)
        ?.floatsSync()
        .forEach((value, i) => {
          all++;
          if (Math.abs(value - (values[i] as number)) > 2e-4) far++;
        });
    }
    expect(all).toBe([...final.values()].reduce((sum, { values }) => sum + values.length, 0));
    expect(far / all).toBeLessThan(0.01);
    model.dispose();
    expect(memory().tensors).toBe(before);
  });

  it("the loss of an adapter that does nothing is log 2, whatever beta is", async () => {
    const { model, steps } = await trained("init", { maxSteps: 1, neftuneNoiseAlpha: 0 }, { beta: 3 });
    expect(steps[0]?.loss).toBeCloseTo(Math.log(2), 6);
    model.dispose();
  });

  it.each<[string, boolean, LoraConfigOptions]>([
    ["rows of a shared table", true, { trainableTokenIndices: [3, 10] }],
    ["adapters of the head", false, { targetModules: ["lm_head"], r: 1, initLoraWeights: false }],
  ])("%s: the gradient is that of finite differences", async (_, tieWordEmbeddings, settings) => {
    const config = { vocabSize: 24, hiddenSize: 16, intermediateSize: 16, numHiddenLayers: 1, numAttentionHeads: 2 };
    const base = new LlamaForCausalLM({ ...config, tieWordEmbeddings, initializerRange: 0.3 }, {
      generator: new Generator(4),
      device: "cpu",
    } as never);
    using model = getPeftModel(base, new LoraConfig(settings), { generator: new Generator(5) });
    const sample = (ids: number[]) => ({ ids: Int32Array.from(ids), labels: Int32Array.from([-100, ...ids.slice(1)]) });
    const own = [
      { chosen: sample([1, 3, 5, 10]), rejected: sample([1, 3, 7]) },
      { chosen: sample([2, 10, 3]), rejected: sample([2, 10, 20, 3]) },
    ];
    const args = { outputDir: join(folder, String(folders++)), maxSteps: 1, learningRate: 0, maxGradNorm: 0 };
    const trainer = new DPOTrainer({ model, trainDataset: own, args, beta: 0.5 });
    const put = (parameter: Parameter, values: Float32Array): void => {
      using moved = tensor(values, { shape: parameter.shape, device: parameter.device });
      noGrad(() => copyInto(parameter, moved));
    };
    const learning = model.parametersOf("default");
    // Away from where the model is its own reference.
    for (const parameter of learning) {
      put(
        parameter,
        Float32Array.from(parameter.floatsSync(), (x, i) => x + 0.3 * Math.sin(i + 1)),
      );
    }
    let squares = 0;
    for (const parameter of learning) {
      const at = Float32Array.from(parameter.floatsSync());
      for (const i of at.keys()) {
        const lossAt = async (change: number) => {
          put(
            parameter,
            at.map((v, j) => (j === i ? v + change : v)),
          );
          return (await trainer.evaluate(own)).loss;
        };
        squares += (((await lossAt(0.01)) - (await lossAt(-0.01))) / 0.02) ** 2;
      }
      put(parameter, at);
    }
    const norms: number[] = [];
    trainer.on("step", ({ gradNorm }) => norms.push(gradNorm));
    await trainer.train();
    expect(relative(norms[0], Math.sqrt(squares))).toBeLessThan(2e-3);
  });

  it("a quantized copy of the head is for neither the model nor the reference", async () => {
    const base = await AutoModelForCausalLM.fromPretrained(fixturePath("families/llama-plain/fp32"), {
      deviceMap: "cpu",
    });
    using model = getPeftModel(base.quantizeHead("nf4"), new LoraConfig({ targetModules: ["q_proj"] }));
    const args = { outputDir: join(folder, "head"), maxSteps: 1, learningRate: 0 };
    const trainer = new DPOTrainer({ model, trainDataset: pairs, args });
    const found = await trainer.evaluate(pairs);
    const { history } = await trainer.train();
    for (const name of ["rewardChosen", "rewardRejected"]) {
      expect(found[name]).toBe(0);
      expect(history[0]?.[name]).toBeCloseTo(0, 5);
    }
  });

  it("evaluates pairs as it trains on them", async () => {
    const model = await adapted("adapter");
    const args = { outputDir: join(folder, "e"), perDeviceEvalBatchSize: 2 };
    const trainer = new DPOTrainer({ model, trainDataset: pairs, args, beta: expected.beta });
    const want = expected.evaluation;
    const found = await trainer.evaluate(pairs);
    expect(Object.keys(found).sort()).toEqual([
      ...["loss", "rewardAccuracy", "rewardChosen", "rewardMargin", "rewardRejected"],
    ]);
    expect(relative(found.loss, want.loss)).toBeLessThan(2e-5);
    expect(found["rewardMargin"]).toBeCloseTo(want.margin, 4);
    expect(found["rewardAccuracy"]).toBeCloseTo(want.accuracy, 6);
    model.dispose();
  });

  it("an evaluation while it trains tells rewards, and no perplexity", async () => {
    const model = await adapted("adapter");
    const args = { outputDir: join(folder, "w"), maxSteps: 1, learningRate: 0 };
    const trainer = new DPOTrainer({ model, trainDataset: pairs, evalDataset: pairs, args, beta: expected.beta });
    const { history } = await trainer.train();
    const entry = history.find(({ evalLoss }) => evalLoss !== undefined);
    expect(relative(entry?.evalLoss, expected.evaluation.loss)).toBeLessThan(2e-5);
    expect(entry?.["evalRewardMargin"]).toBeCloseTo(expected.evaluation.margin, 4);
    expect(entry).not.toHaveProperty("evalPerplexity");
    model.dispose();
  });

  it("does not go on with another beta", async () => {
    const outputDir = join(folder, "beta");
    (await trained("init", { maxSteps: 1, outputDir })).model.dispose();
    const again = trained("init", { maxSteps: 1, outputDir, resumeFromCheckpoint: true }, { beta: 5 });
    await expect(again).rejects.toThrow(/^DPOTrainer: beta must be 0\.\d+ as in .*checkpoint-1, got 5$/);
  });

  it("refuses what is no pair, an answer without tokens, and a model without adapters", async () => {
    using base = await AutoModelForCausalLM.fromPretrained(fixturePath("families/llama-plain/fp32"), {
      deviceMap: "cpu",
    });
    const args = { outputDir: "x" };
    const make = (options: object) => () => new DPOTrainer({ args, trainDataset: pairs, ...options } as never);
    expect(make({ model: base })).toThrow("DPOTrainer: model must be a PeftModel of a model that continues texts, got");
    for (const [more, got] of [
      [{ initLoraWeights: "pissa" }, 'initLoraWeights "pissa"'],
      [{ initLoraWeights: "olora" }, 'initLoraWeights "olora"'],
      [{ bias: "all" }, 'bias "all"'],
      [{ bias: "lora_only" }, 'bias "lora_only"'],
    ] as const) {
      const other = getPeftModel(base, new LoraConfig({ targetModules: ["q_proj"], ...more }));
      expect(make({ model: other })).toThrow(
        `DPOTrainer: adapters must leave the base as it is, which is the reference, got ${got} of default`,
      );
      other.unload();
    }
    const model = getPeftModel(base, new LoraConfig({ targetModules: ["q_proj"] }));
    expect(make({ model, beta: 0 })).toThrow("DPOTrainer: beta must be a finite number above 0, got 0");
    const [pair] = pairs as [PreferencePair];
    expect(make({ model, trainDataset: [pair.chosen] })).toThrow(
      "DPOTrainer: trainDataset must be an array, each a pair of samples, chosen and rejected",
    );
    const mute = { ...pair, rejected: { ...pair.rejected, labels: pair.rejected.labels.map(() => -100) } };
    expect(make({ model, trainDataset: [pair, mute] })).toThrow(
      "DPOTrainer: both answers of a pair must have tokens that count, got none in pair 1",
    );
  });
});
