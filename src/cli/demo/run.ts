// The demo from the first byte to the last claim: train twice, quantize five ways, fine-tune, generate. Prints as
// it goes and returns everything it measured.
import { cpus } from "node:os";
import { LlamaForCausalLM } from "../../models/index.js";
import type { Parameter } from "../../nn/index.js";
import { Generator as RandomSource } from "../../ops/index.js";
import type { Optimizer8bit } from "../../optim/index.js";
import { AdamW, AdamW8bit, cosineSchedule } from "../../optim/index.js";
import { applyLora } from "../../peft/index.js";
import type { Device } from "../../tensor/device.js";
import type { Batch } from "../../train/index.js";
import { evaluate, evenBatches, randomBatches, splitBytes, train } from "../../train/index.js";
import { hashOfBase, layerSizes, modelBytes, optimizerBytes } from "../measure.js";
import type { Terminal } from "../terminal.js";
import { count } from "../terminal.js";
import { checkClaims } from "./checks.js";
import type { Corpus } from "./corpus.js";
import { formats, inFormat } from "./formats.js";
import type {
  CheckpointResult,
  DemoResults,
  FinetuneResult,
  OptimizerResult,
  SampleResult,
  VariantResult,
} from "./results.js";
import { roundTrip } from "./round-trip.js";
import { generationSpeed, streamSample } from "./sample.js";
import type { DemoSettings, RunSettings } from "./settings.js";

/** A shorter memory of squared gradients than the usual 0.999, as suits a run of some hundred steps. */
const betas: [number, number] = [0.9, 0.99];

/** What a run needs. */
export interface DemoOptions {
  settings: DemoSettings;
  text: Corpus;
  style: Corpus;
  seed: number;
  device: Device;
  version: string;
  terminal: Terminal;
  /** Where the trained model goes. */
  checkpoint: string;
  signal: AbortSignal;
}

interface Split {
  source: string;
  train: Uint8Array;
  heldOut: Uint8Array;
}

/** Runs all stages. Frees every model it makes. */
export async function runDemo(options: DemoOptions): Promise<DemoResults> {
  const started = performance.now();
  const { settings, seed, device, version, terminal } = options;
  const text: Split = { source: options.text.source, ...splitBytes(options.text.bytes) };
  const style: Split = { source: options.style.source, ...splitBytes(options.style.bytes) };
  const stage = new Stages(options, text, style);

  const trained = await stage.pretrain();
  const variants = await stage.compareFormats(trained.model);
  const checkpoint = await stage.checkpoint(trained.model);
  const { model: tuned, result: finetune } = await stage.finetune(trained.model);
  const samples = await stage.samples(trained.model, tuned);
  const parameters = trained.model.parameters().reduce((sum, { size }) => sum + size, 0);
  trained.model.dispose();
  tuned.dispose();

  const measured = {
    version,
    seed,
    settings,
    machine: {
      processor: device.name,
      threads: cpus().length,
      isa: device.isa,
      device: String(device),
      node: process.versions.node,
    },
    parameters,
    text: sizesOf(text),
    style: sizesOf(style),
    optimizers: trained.results,
    variants,
    checkpoint,
    finetune,
    samples,
    seconds: (performance.now() - started) / 1000,
  };
  const checks = checkClaims(measured);
  terminal.heading("Claims");
  for (const { claim, measured, holds } of checks) {
    terminal.write(holds ? "  ✓" : "  ✗", holds ? "green" : "red");
    terminal.line(` ${claim} (${measured})`);
  }
  return { ...measured, checks };
}

/** The stages share the options and the two texts. */
class Stages {
  readonly #options: DemoOptions;
  readonly #text: Split;
  readonly #style: Split;

  constructor(options: DemoOptions, text: Split, style: Split) {
    this.#options = options;
    this.#text = text;
    this.#style = style;
  }

  /** Trains twice from the same seed and keeps the model of the 32-bit run. */
  async pretrain(): Promise<{ model: LlamaForCausalLM; results: OptimizerResult[] }> {
    const { settings, terminal } = this.#options;
    const { steps, batchSize, sequenceLength } = settings.pretrain;
    terminal.heading("Training a byte-level Llama from scratch, twice from the same seed");
    terminal.line(`  ${this.#text.source}: ${count(this.#text.train.length)} bytes to train on;`);
    terminal.line(`  ${steps} steps of ${count(batchSize * sequenceLength)} bytes`);
    const first = await this.#trainWith("AdamW", (parameters, lr) => new AdamW(parameters, { lr, betas }));
    const second = await this.#trainWith("AdamW8bit", (parameters, lr) => new AdamW8bit(parameters, { lr, betas }));
    second.model.dispose();

    const results = [first.result, second.result];
    terminal.line();
    terminal.table(
      ["optimizer", "state bytes", "final loss", "held-out perplexity", "tokens/s"],
      results.map((run) => [
        run.name,
        count(run.stateBytes),
        run.finalLoss.toFixed(4),
        run.heldOutPerplexity.toFixed(3),
        count(run.tokensPerSecond),
      ]),
    );
    return { model: first.model, results };
  }

  async #trainWith(
    name: string,
    make: (parameters: Parameter[], lr: number) => Optimizer8bit,
  ): Promise<{ model: LlamaForCausalLM; result: OptimizerResult }> {
    const { settings, seed, device } = this.#options;
    const model = new LlamaForCausalLM(settings.model, { device, generator: new RandomSource(seed) });
    const parameters = model.parameters();
    const optimizer = make(parameters, settings.pretrain.learningRate);
    const run = await this.#train(name, model, optimizer, parameters, settings.pretrain, this.#text.train);
    const result = {
      name,
      stateBytes: optimizerBytes(optimizer, parameters),
      finalLoss: finalLoss(run.losses),
      heldOutPerplexity: await this.#perplexity(model, this.#text),
      ...run,
    };
    optimizer.dispose();
    return { model, result };
  }

  /** Perplexity, size and speed of the trained weights in each format. */
  async compareFormats(trained: LlamaForCausalLM): Promise<VariantResult[]> {
    const { settings, terminal } = this.#options;
    terminal.heading("The trained weights in five formats");
    const results: VariantResult[] = [];
    for (const format of formats) {
      const model = inFormat(trained, format);
      const bytes = modelBytes(model);
      const layers = layerSizes(model);
      results.push({
        name: format.name,
        bytes,
        ratio: (results[0]?.bytes ?? bytes) / bytes,
        bitsPerWeight: (8 * layers.bytes) / layers.weights,
        perplexity: await this.#perplexity(model, this.#text),
        tokensPerSecond: await generationSpeed(model, "# Usage\n", settings.speedTokens),
      });
      model.dispose();
    }
    const float = results[0] as VariantResult;
    terminal.table(
      ["format", "weight bytes", "ratio", "bits/weight", "perplexity", "change", "generated tokens/s"],
      results.map((variant) => [
        variant.name,
        count(variant.bytes),
        variant.ratio.toFixed(2),
        variant.bitsPerWeight.toFixed(2),
        variant.perplexity.toFixed(3),
        `${(100 * (variant.perplexity / float.perplexity - 1)).toFixed(2)} %`,
        count(variant.tokensPerSecond),
      ]),
    );
    return results;
  }

  /** The trained model through the files that other tools read. */
  async checkpoint(trained: LlamaForCausalLM): Promise<CheckpointResult> {
    const { terminal, checkpoint: folder } = this.#options;
    terminal.heading("The trained model as a checkpoint");
    const result = await roundTrip(trained, folder);
    const difference = result.largestDifference;
    terminal.line(`  ${folder}: ${count(result.bytes)} bytes, as transformers reads it`);
    terminal.line(`  loaded from there in NF4: logits differ by ${difference} from the model quantized in memory`);
    return result;
  }

  /** QLoRA: adapters over the frozen NF4 weights learn the second style. */
  async finetune(trained: LlamaForCausalLM): Promise<{ model: LlamaForCausalLM; result: FinetuneResult }> {
    const { settings, seed, terminal } = this.#options;
    const { r, loraAlpha, loraDropout, targetModules, ...run } = settings.finetune;
    terminal.heading("Fine-tuning LoRA adapters over the frozen NF4 base");
    terminal.line(`  ${this.#style.source}: ${count(this.#style.train.length)} bytes`);

    const model = inFormat(trained, formats.find(({ name }) => name === "NF4") as (typeof formats)[number]);
    const perplexityBefore = await this.#perplexity(model, this.#style);
    const baseHashBefore = await hashOfBase(model);
    const generator = new RandomSource(seed + 1);
    const adapters = applyLora(model, { r, loraAlpha, loraDropout, targetModules, generator });
    const optimizer = new AdamW8bit(adapters, { lr: run.learningRate, betas });
    const { losses, tokensPerSecond } = await this.#train("QLoRA", model, optimizer, adapters, run, this.#style.train);
    const result = {
      adapterParameters: adapters.reduce((sum, { size }) => sum + size, 0),
      losses,
      tokensPerSecond,
      stateBytes: optimizerBytes(optimizer, adapters),
      perplexityBefore,
      perplexityAfter: await this.#perplexity(model, this.#style),
      baseHashBefore,
      baseHashAfter: await hashOfBase(model),
    };
    optimizer.dispose();
    terminal.line(
      `  held-out perplexity of this style: ${perplexityBefore.toFixed(3)} before, ` +
        `${result.perplexityAfter.toFixed(3)} after (${count(result.adapterParameters)} trained parameters)`,
    );
    return { model, result };
  }

  /** A text of each model, streamed. */
  async samples(trained: LlamaForCausalLM, tuned: LlamaForCausalLM): Promise<SampleResult[]> {
    const { settings, seed, terminal } = this.#options;
    const wanted = [
      { title: "Trained from scratch (float32)", model: trained, prompt: "## Usage\n\n" },
      { title: "Fine-tuned (NF4 and LoRA)", model: tuned, prompt: "export interface " },
    ];
    const results: SampleResult[] = [];
    for (const { title, model, prompt } of wanted) {
      terminal.heading(title);
      terminal.write(prompt, "cyan");
      const write = (piece: string) => terminal.write(piece);
      const sample = await streamSample(model, { title, prompt, maxNewTokens: settings.sampleTokens, seed, write });
      results.push(sample);
      const figures = `${count(sample.tokensPerSecond)} tokens/s, event loop delay p99 ${sample.eventLoopP99Ms.toFixed(1)} ms`;
      terminal.line(`\n${figures}`, "dim");
    }
    return results;
  }

  async #train(
    label: string,
    model: LlamaForCausalLM,
    optimizer: Optimizer8bit,
    parameters: Parameter[],
    settings: RunSettings,
    bytes: Uint8Array,
  ): Promise<{ losses: number[]; tokensPerSecond: number }> {
    const { seed, device, terminal, signal } = this.#options;
    const { steps, warmupSteps } = settings;
    return train({
      model,
      optimizer,
      parameters,
      steps,
      batches: batchesOf(bytes, settings, seed, device),
      scheduler: cosineSchedule(optimizer, { warmupSteps, totalSteps: steps }),
      onStep: ({ step, loss, tokensPerSecond, secondsLeft }) => {
        const speed = `${count(tokensPerSecond)} tokens/s`;
        terminal.progress(label, step, steps, `loss ${loss.toFixed(3)}  ${speed}  ${Math.ceil(secondsLeft)} s left`);
      },
      signal,
    });
  }

  async #perplexity(model: LlamaForCausalLM, { heldOut }: Split): Promise<number> {
    const { settings, device } = this.#options;
    const { batchSize, sequenceLength } = settings.pretrain;
    const count = settings.evaluationBatches;
    return Math.exp(await evaluate(model, evenBatches(heldOut, { batchSize, sequenceLength, count, device })));
  }
}

/** Short windows first, then long ones, of as many bytes a step. */
function* batchesOf(bytes: Uint8Array, settings: RunSettings, seed: number, device: Device): Generator<Batch> {
  const { batchSize, sequenceLength, shortSteps } = settings;
  const short = { batchSize: 4 * batchSize, sequenceLength: sequenceLength / 4 };
  const early = randomBatches(bytes, { ...short, seed, device });
  for (let step = 0; step < shortSteps; step++) yield early.next().value as Batch;
  yield* randomBatches(bytes, { batchSize, sequenceLength, seed: seed + 1, device });
}

/** Mean over the last tenth: one batch alone says little. */
function finalLoss(losses: readonly number[]): number {
  const last = losses.slice(-Math.max(1, Math.round(losses.length / 10)));
  return last.reduce((sum, loss) => sum + loss, 0) / last.length;
}

function sizesOf({ source, train, heldOut }: Split): { source: string; trainBytes: number; heldOutBytes: number } {
  return { source, trainBytes: train.length, heldOutBytes: heldOut.length };
}
