// Runs that are stopped and go on: to the bit what one that never stopped computes, wherever it stopped; broken checkpoints,
// other settings, losses that are no numbers, early stopping.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterAll, describe, expect, it, vi } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { Dropout, Linear4bit, replaceLinear } from "../../src/nn/index.js";
import { copyInto, Generator } from "../../src/ops/index.js";
import type { LoraConfigOptions } from "../../src/peft/index.js";
import { applyLora, getPeftModel, LoraConfig } from "../../src/peft/index.js";
import { full } from "../../src/tensor/create.js";
import { memory } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import type { LogEntry, Sample, TrainingArguments, TrainResult } from "../../src/train/index.js";
import { Trainer } from "../../src/train/index.js";

const folder = mkdtempSync(join(tmpdir(), "bnb-runs-"));
afterAll(() => rmSync(folder, { recursive: true }));
let folders = 0;
const newFolder = () => join(folder, String(folders++));

const samples: Sample[] = Array.from({ length: 11 }, (_, i) => {
  const ids = Int32Array.from({ length: 4 + ((i * 5) % 9) }, (_, j) => (i * 7 + j * j * 3) % 32);
  return { ids, labels: ids };
});
const config = { vocabSize: 32, hiddenSize: 64, intermediateSize: 64, numHiddenLayers: 1, numAttentionHeads: 4 };

const lora = { r: 64, loraDropout: 0.3, targetModules: ["q_proj", "down_proj"] };

/** The same model at each call, with dropout in its adapters and 8-bit states large enough to be such. */
function newModel(): LlamaForCausalLM {
  const model = new LlamaForCausalLM(config, { generator: new Generator(5), device: "cpu" } as never);
  const generator = new Generator(6);
  applyLora(model, { ...lora, generator });
  generators.set(model, generator);
  return model;
}
const generators = new WeakMap<LlamaForCausalLM, Generator>();

const settings: Omit<TrainingArguments, "outputDir"> = {
  perDeviceTrainBatchSize: 2,
  gradientAccumulationSteps: 4,
  numTrainEpochs: 2,
  learningRate: 1e-2,
  lrSchedulerType: "cosine",
  warmupSteps: 1,
  optim: "adamw_8bit",
  neftuneNoiseAlpha: 5,
  loggingSteps: 1,
  saveSteps: 1,
  saveTotalLimit: 3,
};

async function run(args: TrainingArguments, evalDataset?: Sample[]): Promise<{ result: TrainResult; weights: string }> {
  using model = newModel();
  const own = [generators.get(model) as Generator];
  const trainer = new Trainer({
    model,
    args,
    trainDataset: samples,
    generators: own,
    ...(evalDataset && { evalDataset }),
  });
  const result = await trainer.train();
  return { result, weights: weightsOf(model) };
}

function weightsOf(model: LlamaForCausalLM): string {
  const named = model.namedParameters().filter(([, parameter]) => parameter.requiresGrad);
  return named
    .map(([name, parameter]) => `${name} ${Buffer.from(parameter.dataSync().buffer as ArrayBuffer).toString("base64")}`)
    .join("\n");
}
const plain = ({ loss, step, gradNorm, evalLoss }: LogEntry) => ({ loss, step, gradNorm, evalLoss });

/** A signal that is found aborted the n-th time that somebody looks. */
const abortedAt = (n: number): AbortSignal => {
  let looks = 0;
  return {
    get aborted() {
      return ++looks > n;
    },
  } as AbortSignal;
};

describe("a run that was stopped", () => {
  it("is to the bit one that never was: within epochs and accumulations, with dropout, noise and 8-bit states", async () => {
    const whole = await run({ ...settings, outputDir: newFolder() });
    // 6 batches an epoch: steps of 4 and of 2.
    expect(whole.result.steps).toBe(4);
    for (let stop = 0; stop < 12; stop++) {
      const outputDir = newFolder();
      const signal = abortedAt(stop);
      await expect(run({ ...settings, outputDir, signal })).rejects.toMatchObject({ code: "ERR_BNB_ABORTED" });
      const rest = await run({ ...settings, outputDir, resumeFromCheckpoint: true });
      expect(rest.weights === whole.weights, `stopped at batch ${stop}`).toBe(true);
      expect(rest.result.history.map(plain)).toEqual(whole.result.history.map(plain));
    }
  });

  it("within an evaluation, too: that comes first when the run goes on", async () => {
    const args = { ...settings, evalSteps: 1, saveSteps: 0, perDeviceEvalBatchSize: 4 };
    const whole = await run({ ...args, outputDir: newFolder() }, samples);
    // The first look is that of the options; then steps of 4 and 2 batches, and 3 batches of an evaluation after each.
    for (const [stop, step] of [
      [5, 1],
      [7, 1],
      [22, 4],
      [24, 4],
    ] as const) {
      const outputDir = newFolder();
      const signal = abortedAt(stop);
      await expect(run({ ...args, outputDir, signal }, samples)).rejects.toMatchObject({ code: "ERR_BNB_ABORTED" });
      expect(readdirSync(outputDir)).toEqual([`checkpoint-${step}`]);
      const rest = await run({ ...args, outputDir, resumeFromCheckpoint: true }, samples);
      expect(rest.weights === whole.weights, `stopped at look ${stop}`).toBe(true);
      expect(rest.result.history.map(plain)).toEqual(whole.result.history.map(plain));
    }
  });

  it("and so is one that was killed at any moment, several times", async () => {
    const whole = await run({ ...settings, numTrainEpochs: 9, outputDir: newFolder() });
    const outputDir = newFolder();
    const script = `const { LlamaForCausalLM, Generator, applyLora, train } = require(process.argv[1]);
      const { config, settings, data, lora } = JSON.parse(process.argv[2]);
      const model = new LlamaForCausalLM(config, { generator: new Generator(5), device: "cpu" });
      const generator = new Generator(6);
      applyLora(model, { ...lora, generator });
      const trainDataset = data.map((ids) => ({ ids: Int32Array.from(ids), labels: Int32Array.from(ids) }));
      const trainer = new train.Trainer({ model, args: settings, trainDataset, generators: [generator] });
      for (const event of ["step", "save"]) trainer.on(event, () => console.log(event));
      trainer.train();`;
    const args = { ...settings, numTrainEpochs: 9, outputDir, resumeFromCheckpoint: true };
    const data = JSON.stringify({ config, settings: args, lora, data: samples.map(({ ids }) => [...ids]) });
    for (let kills = 0; kills < 3; kills++) {
      const child = spawn(process.execPath, ["-e", script, resolve("dist/index.js"), data], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      // Somewhere in the step or the writing after its first checkpoint, each time a little later.
      let told = "";
      child.stdout.on("data", (piece) => {
        const isFirst = !/save\n[\s\S]*step/.test(told);
        told += String(piece);
        if (isFirst && /save\n[\s\S]*step/.test(told)) setTimeout(() => child.kill("SIGKILL"), 3 * kills);
      });
      expect(await once(child, "exit")).toEqual([null, "SIGKILL"]);
      expect(readdirSync(outputDir).some((name) => name.startsWith("checkpoint-"))).toBe(true);
    }
    const rest = await run(args);
    expect(rest.weights === whole.weights).toBe(true);
    expect(rest.result.history.map(plain)).toEqual(whole.result.history.map(plain));
    expect(readdirSync(outputDir).sort()).toEqual(["checkpoint-16", "checkpoint-17", "checkpoint-18"]);
  }, 60_000);

  it("differs from a run with another seed", async () => {
    const [a, b] = [
      await run({ ...settings, outputDir: newFolder() }),
      await run({ ...settings, outputDir: newFolder(), seed: 1 }),
    ];
    expect(a.weights === b.weights).toBe(false);
  });

  it("goes on from the checkpoint before where the newest is broken, with a warning", async () => {
    const whole = await run({ ...settings, outputDir: newFolder() });
    const outputDir = newFolder();
    await run({ ...settings, outputDir });
    expect(readdirSync(outputDir).sort()).toEqual(["checkpoint-2", "checkpoint-3", "checkpoint-4"]);
    const flip = (path: string) => {
      const bytes = readFileSync(path);
      bytes[bytes.length - 5] = (bytes[bytes.length - 5] as number) ^ 1;
      writeFileSync(path, bytes);
    };
    flip(join(outputDir, "checkpoint-4", "trainable.safetensors"));
    flip(join(outputDir, "checkpoint-3", "trainer_state.json"));
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    const rest = await run({ ...settings, outputDir, resumeFromCheckpoint: true });
    const messages = warn.mock.calls.map(([message]) => String(message));
    warn.mockRestore();
    expect(messages.length).toBe(2);
    expect(messages[0]).toMatch(/checkpoint-4: the checkpoint must be as it was written, got a changed trainable/);
    expect(messages[0]).toMatch(/; the checkpoint before it is taken$/);
    expect(messages[1]).toMatch(
      /checkpoint-3: .*got a changed trainer_state\.json; the checkpoint before it is taken$/,
    );
    expect(rest.weights === whole.weights).toBe(true);
    await expect(
      run({ ...settings, outputDir, resumeFromCheckpoint: join(outputDir, "checkpoint-9") }),
    ).rejects.toThrow("checkpoint-9: the checkpoint must be as it was written, got none with a trainer_state.json");
  });

  it("begins anew where its only checkpoint is broken, and says so", async () => {
    const outputDir = newFolder();
    const whole = await run({ ...settings, outputDir });
    for (const name of readdirSync(outputDir)) {
      if (name !== "checkpoint-4") rmSync(join(outputDir, name), { recursive: true });
    }
    writeFileSync(join(outputDir, "checkpoint-4", "trainer_state.json"), "{}");
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    const again = await run({ ...settings, outputDir, resumeFromCheckpoint: true });
    const messages = warn.mock.calls.map(([message]) => String(message));
    warn.mockRestore();
    expect(messages).toEqual([
      `${join(outputDir, "checkpoint-4")}: the checkpoint must be as it was written, got a changed trainer_state.json; none is left: training begins anew`,
    ]);
    expect(again.weights === whole.weights).toBe(true);
  });

  it("does not go on with other settings, data or parameters, and does not begin over another run", async () => {
    const outputDir = newFolder();
    await run({ ...settings, outputDir });
    await expect(run({ ...settings, outputDir })).rejects.toThrow(
      /outputDir must hold no checkpoints of another run, got .*checkpoint-4; resumeFromCheckpoint goes on from it$/,
    );
    const args = { ...settings, outputDir, resumeFromCheckpoint: true };
    await expect(run({ ...args, learningRate: 1 })).rejects.toThrow(
      /learningRate must be 0\.01 as in .*checkpoint-4, got 1$/,
    );
    for (const [settings, want, got] of [
      [{ loraAlpha: 800 }, "r=64, scaling=0.125", "r=64, scaling=12.5"],
      [{ loraDropout: 0 }, "p=0.3", "p=0"],
    ] as const) {
      using other = new LlamaForCausalLM(config, { device: "cpu" });
      applyLora(other, { ...lora, ...settings });
      const trainer = new Trainer({ model: other, args, trainDataset: samples, generators: [new Generator(1)] });
      const line = (text: string) => `"\\(\\w+\\): \\w+\\(${text}\\)?"`;
      await expect(trainer.train()).rejects.toThrow(
        new RegExp(`Trainer: model must be ${line(want)} as in .*checkpoint-4, got ${line(got)}$`),
      );
    }
    using base = new LlamaForCausalLM(config, { device: "cpu" });
    replaceLinear(base, (k, n) => new Linear4bit(k, n, { bias: false }));
    applyLora(base, lora);
    await expect(
      new Trainer({ model: base, args, trainDataset: samples, generators: [new Generator(1)] }).train(),
    ).rejects.toThrow(/model must be "\(base_layer\): Linear\(.*checkpoint-4, got "\(base_layer\): Linear4bit\(/);
    using model = newModel();
    const other = { model, args, generators: [new Generator(1)] };
    await expect(new Trainer({ ...other, trainDataset: samples.slice(1) }).train()).rejects.toThrow(
      /trainDataset must be the data of .*checkpoint-4, got other samples$/,
    );
    for (const parameter of model.parameters()) parameter.requiresGrad = true;
    await expect(new Trainer({ ...other, trainDataset: samples }).train()).rejects.toThrow(
      /checkpoint-4 must hold model\.embed_tokens\.weight as float32 \[32, 64\], got none: it is of another model$/,
    );
  });
});

it("a checkpoint of an earlier version, which tells less, goes on to the bit; what it tells is compared", async () => {
  const outputDir = newFolder();
  const whole = await run({ ...settings, outputDir });
  const from = join(outputDir, "checkpoint-2");
  const path = join(from, "trainer_state.json");
  const { state } = JSON.parse(readFileSync(path, "utf8"));
  for (const name of ["maxLength", "dtype", "model", "packing"]) {
    expect(state.arguments).toHaveProperty(name);
    delete state.arguments[name];
  }
  for (const name of ["isEvaluationDue", "evaluationsSinceBest"]) delete state.run[name];
  const sha256 = createHash("sha256").update(JSON.stringify(state)).digest("hex");
  writeFileSync(path, `{"sha256":"${sha256}","state":${JSON.stringify(state)}}\n`);
  const args = { ...settings, outputDir, resumeFromCheckpoint: from };
  await expect(run({ ...args, seed: 3 })).rejects.toThrow(/^Trainer: seed must be 42 as in .*checkpoint-2, got 3$/);
  const again = await run(args);
  expect(again.weights).toBe(whole.weights);
  expect(again.result.history.map(plain)).toEqual(whole.result.history.map(plain));
});

describe("checkpoints of a run that went back", () => {
  const args = { ...settings, numTrainEpochs: 5, saveTotalLimit: 5, saveSteps: 3 };
  const checkpoints = (folder: string) => readdirSync(folder).map((name) => Number(name.slice(11)));

  it("to an older one: what is just written stays, and what lies before it; later ones go first", async () => {
    const outputDir = newFolder();
    await run({ ...args, outputDir });
    expect(checkpoints(outputDir).sort()).toEqual([10, 3, 6, 9]);
    using model = newModel();
    const from = { resumeFromCheckpoint: join(outputDir, "checkpoint-3"), saveSteps: 1, saveTotalLimit: 2 };
    const own = [generators.get(model) as Generator];
    const trainer = new Trainer({
      model,
      args: { ...args, ...from, outputDir },
      trainDataset: samples,
      generators: own,
    });
    const left: number[][] = [];
    trainer.on("save", () => left.push(checkpoints(outputDir).sort((a, b) => a - b)));
    await trainer.train();
    expect(left).toEqual([4, 5, 6, 7, 8, 9, 10].map((step) => [step - 1, step]));
  });

  it("behind a broken one: the whole one stays", async () => {
    const outputDir = newFolder();
    await run({ ...args, outputDir });
    writeFileSync(join(outputDir, "checkpoint-10", "trainable.safetensors"), "");
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    const signal = abortedAt(1);
    const again = run({ ...args, outputDir, resumeFromCheckpoint: true, saveTotalLimit: 1, signal });
    await expect(again).rejects.toMatchObject({ code: "ERR_BNB_ABORTED" });
    warn.mockRestore();
    expect(checkpoints(outputDir)).toEqual([9]);
  });

  it("into another folder: the best weights come along", async () => {
    const best = { ...args, learningRate: 0.5, evalSteps: 1, saveSteps: 1, loadBestModelAtEnd: true };
    const [outputDir, other] = [newFolder(), newFolder()];
    const { result, weights } = await run({ ...best, outputDir, saveTotalLimit: 99 }, samples);
    const { bestStep } = result;
    expect(bestStep).toBeLessThan(8);
    const from = { outputDir: other, resumeFromCheckpoint: join(outputDir, "checkpoint-8") };
    const rest = await run({ ...best, ...from }, samples);
    expect(rest.result.bestStep).toBe(bestStep);
    expect(rest.weights === weights).toBe(true);

    // Where they are nowhere, they do not count.
    rmSync(join(outputDir, `checkpoint-${bestStep}`), { recursive: true });
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    const without = await run({ ...best, ...from, outputDir: newFolder() }, samples);
    const [message] = warn.mock.calls.map(([text]) => String(text));
    warn.mockRestore();
    expect(message).toContain(`there is no checkpoint of step ${bestStep}, whose evaluation was the best`);
    expect(without.result.bestStep).toBeGreaterThan(8);
  });

  it("with another length of full samples is refused where it packs", async () => {
    const outputDir = newFolder();
    const packing = { ...settings, packing: true, maxLength: 12, outputDir };
    await run(packing);
    await expect(run({ ...packing, maxLength: 24, resumeFromCheckpoint: true })).rejects.toThrow(
      /^Trainer: maxLength must be 12 as in .*checkpoint-\d+, got 24$/,
    );
    await run({ ...settings, outputDir: newFolder(), maxLength: 12 });
  });
});

describe("the end of a run", () => {
  it("a loss that is no number: the step is named, weights and checkpoints stay", async () => {
    using model = newModel();
    const outputDir = newFolder();
    const trainer = new Trainer({ model, args: { ...settings, outputDir }, trainDataset: samples });
    let before = "";
    trainer.on("step", ({ step }) => {
      if (step !== 2) return;
      before = weightsOf(model);
      const frozen = model.namedParameters().find(([name]) => name === "model.norm.weight")?.[1] as Tensor;
      using broken = full(frozen.shape, Number.NaN, { device: frozen.device });
      noGrad(() => copyInto(frozen, broken));
    });
    await expect(trainer.train()).rejects.toThrow(
      "Trainer: the loss of step 3 must be finite, got NaN; the weights are",
    );
    expect(weightsOf(model) === before).toBe(true);
    expect(readdirSync(outputDir).sort()).toEqual(["checkpoint-1", "checkpoint-2"]);
  });

  it("the best weights are taken, and a run without progress ends early", async () => {
    const args = { ...settings, outputDir: newFolder(), learningRate: 0.5, numTrainEpochs: 10, evalSteps: 1 };
    const { result } = await run({ ...args, earlyStoppingPatience: 2, loadBestModelAtEnd: true, saveTotalLimit: 1 }, [
      ...samples,
    ]);
    const evaluations = result.history.filter(({ evalLoss }) => evalLoss !== undefined);
    const best = evaluations.reduce((a, b) => ((b.evalLoss as number) < (a.evalLoss as number) ? b : a));
    expect(result.bestStep).toBe(best.step);
    expect(result.steps).toBe(best.step + 2);
    expect(readdirSync(args.outputDir)).toContain(`checkpoint-${best.step}`);
  });

  it("samples of which no token counts weigh nothing, in batches of their own as among others", async () => {
    const masked = samples.map(({ ids }, i) => ({ ids, labels: i % 3 === 1 ? ids.map(() => -100) : ids }));
    const trained = async (trainDataset: Sample[], perDeviceTrainBatchSize: number) => {
      using model = newModel();
      for (const module of model.modules()) if (module instanceof Dropout) Object.assign(module, { p: 0 });
      const args = { ...settings, perDeviceTrainBatchSize, outputDir: newFolder(), neftuneNoiseAlpha: 0 };
      const own = { ...args, gradientAccumulationSteps: 12 / perDeviceTrainBatchSize, numTrainEpochs: 1 };
      const trainer = new Trainer({ model, args: own, trainDataset });
      const { loss } = await trainer.evaluate(trainDataset);
      return [(await trainer.train()).loss, loss];
    };
    const counting = masked.filter(({ labels }) => labels.some((label) => label !== -100));
    const [want, evaluation] = (await trained(counting, 12)) as [number, number];
    // Alone in a batch of the training, and of the evaluation.
    const [own, evaluated] = (await trained(masked, 1)) as [number, number];
    expect(own).toBeCloseTo(want, 5);
    expect(evaluated).toBeCloseTo(evaluation, 5);
    using model = newModel();
    const trainer = new Trainer({ model, args: { ...settings, outputDir: newFolder() }, trainDataset: samples });
    await expect(trainer.evaluate(masked.slice(1, 2))).rejects.toThrow(
      "Trainer.evaluate: the data must hold a sample with tokens that count, got none",
    );
  });

  it.each<[string, LoraConfigOptions]>([
    ["rows", { trainableTokenIndices: [3, 10, 20] }],
    ["adapters", { targetModules: ["embed_tokens"], initLoraWeights: false }],
    ["the table", { modulesToSave: ["embed_tokens"] }],
  ])("noise comes to embeddings of which %s learn", async (_, learning) => {
    const losses = async (neftuneNoiseAlpha: number) => {
      using model = new LlamaForCausalLM(config, { generator: new Generator(5), device: "cpu" } as never);
      using _peft = getPeftModel(model, new LoraConfig(learning), { generator: new Generator(6) });
      const args = { ...settings, outputDir: newFolder(), neftuneNoiseAlpha, maxSteps: 1, learningRate: 0 };
      const trainer = new Trainer({ model, args, trainDataset: samples });
      const { loss } = await trainer.evaluate(samples);
      return [(await trainer.train()).loss, loss, (await trainer.evaluate(samples)).loss];
    };
    const [plain, noisy] = [await losses(0), await losses(50)] as [number[], number[]];
    expect(Math.abs((noisy[0] as number) - (plain[0] as number))).toBeGreaterThan(1e-3);
    expect(noisy.slice(1)).toEqual(plain.slice(1));
  });

  it("an evaluation that is no number is never the best", async () => {
    class Blind extends Trainer {
      #calls = 0;
      override async evaluate() {
        const loss = [Number.NaN, 2, 1, Number.NaN][this.#calls++] as number;
        return { loss, perplexity: 0 };
      }
    }
    using model = newModel();
    const args = { ...settings, outputDir: newFolder(), evalSteps: 1, loadBestModelAtEnd: true };
    const trainer = new Blind({ model, args, trainDataset: samples, evalDataset: samples });
    expect((await trainer.train()).bestStep).toBe(3);
  });

  it("an optimizer that cannot be made leaves a trainer that may try again", async () => {
    using model = newModel();
    const trainer = new Trainer({
      model,
      args: { ...settings, outputDir: newFolder(), adamBeta1: 1 },
      trainDataset: samples,
    });
    for (let i = 0; i < 2; i++) await expect(trainer.train()).rejects.toThrow(/beta/);
  });

  it("leaves no tensors behind", async () => {
    const before = memory().tensors;
    const args = { ...settings, outputDir: newFolder() };
    await run(args);
    await run({ ...args, resumeFromCheckpoint: join(args.outputDir, "checkpoint-2") });
    expect(memory().tensors).toBe(before);
  });
});

describe("arguments", () => {
  const make = (args: Partial<TrainingArguments>) => () => {
    using model = newModel();
    return new Trainer({ model, args: { outputDir: "x", ...args } as TrainingArguments, trainDataset: samples });
  };
  it.each([
    [{ optim: "adam" as never }, "Trainer: optim must be one of adamw_torch, adamw_torch_fused, adamw_bnb_8bit"],
    [
      { optim: "rmsprop_bnb" as const, optimArgs: "centered=1" },
      "Trainer: keys of optimArgs must be among alpha, eps, momentum for rmsprop, got centered",
    ],
    [
      { bf16: true },
      'Trainer: with bf16 the model must be bfloat16, got float32; load it with dtype "bfloat16", without',
    ],
    [{ evalSteps: 2 }, "Trainer: evalSteps needs an evalDataset, got 2 without one"],
    [
      { optim: "ademamix" as const, optimArgs: "beta1=0.9=3" },
      'Trainer: beta1 of optimArgs must be a number, got "0.9=3"',
    ],
    [
      { reportTo: ["console", "tensorBoard"] },
      'Trainer: reportTo must be "console", "tensorboard", "none", the path of a file such as log.jsonl',
    ],
    [{ bf16: true, fp16: true }, "Trainer: bf16 and fp16 must not both be true"],
    [{ packing: true, groupByLength: true }, "Trainer: groupByLength must be false with packing, got true"],
    [{ warmupSteps: 1.5 }, "Trainer: warmupSteps must be an integer or a share below 1, got 1.5"],
    [{ maxSteps: 0 }, "Trainer: maxSteps must be at least 1, or -1, got 0"],
    [{ earlyStoppingPatience: 1 }, "need an evalDataset and evalSteps of at least 1"],
  ])("%j", (args, message) => {
    expect(make(args)).toThrow(message);
  });

  it("nothing to train", () => {
    using model = newModel();
    model.requiresGrad_(false);
    expect(() => new Trainer({ model, args: { outputDir: "x" }, trainDataset: samples })).toThrow(
      "Trainer: the model must have a parameter that requires a gradient, got none",
    );
  });
});
