// `bnb finetune`: adapters for a model from a file of samples; QLoRA unless it is told otherwise.
import { dirname, join } from "node:path";
import type { CausalLM } from "../../models/index.js";
import { Generator } from "../../ops/index.js";
import { getPeftModel } from "../../peft/index.js";
import { memory } from "../../tensor/scope.js";
import { CheckpointFolder, isUnfinished } from "../../train/checkpoints.js";
import type { Dataset, LogEntry, SampleList, StepEvent, TrainResult } from "../../train/index.js";
import { countedTokens } from "../../train/sample.js";
import { StoredSamples } from "../../train/stored-samples.js";
import type { Call, Outcome } from "../command.js";
import { command, usageError } from "../command.js";
import type { FinetuneReport } from "../finetune/report.js";
import { finetunePage } from "../finetune/report.js";
import { beforeAndAfter, SHOWN } from "../finetune/samples.js";
import type { FinetuneSettings } from "../finetune/settings.js";
import { finetuneOptions, finetuneSettings, LONGEST, quantizationOf } from "../finetune/settings.js";
import type { Task } from "../finetune/task.js";
import { preference, supervised } from "../finetune/task.js";
import { loadModel, loadOptions } from "../load-model.js";
import { checkNewFolder, checkWritable, writePage } from "../new-folder.js";
import { readConfig } from "../read-config.js";
import type { Terminal } from "../terminal.js";
import { bytes, count } from "../terminal.js";

const options = { ...finetuneOptions, ...loadOptions };

/** `bnb finetune` as it is called. */
export const finetune = command({
  words: ["model"],
  about: `Trains adapters for a model and saves them as Python's peft does. The base is quantized to NF4 and stays as it is
(QLoRA). A row of the data has text, prompt and completion, or messages, of which the assistant's words are learned; or
prompt, chosen and rejected, of which is learned to prefer the chosen answer (DPO).
A run that was stopped or killed goes on with --resume, to the bit as if it had not been.`,
  options,
  notes: `A config file has the keys data, evalData, output, task, beta, base, maxLength, skipBadRows, onDisk, tooLong,
chatTemplate, prompts, report, lora (r, loraAlpha, targetModules and all else of a LoraConfig) and training
(learningRate, evalSteps, saveSteps and all else of TrainingArguments).`,
  async run(call) {
    const settings = await finetuneSettings(call.values);
    return settings.task === "dpo"
      ? tuned(preference(settings.beta), settings, call)
      : tuned(supervised, settings, call);
  },
});

async function tuned<S>(task: Task<S>, settings: FinetuneSettings, call: Call<typeof options>): Promise<Outcome> {
  const { values, words, terminal, signal } = call;
  const [name = ""] = words;
  const { output, data, evalData, lora, training, seed } = settings;
  const report = settings.report ?? join(output, "report.html");
  await checkFiles(settings, values.resume, name);
  const { base, quantizationConfig } = await baseOf(name, settings, call);
  const model = await loadModel(name, call, { quantizationConfig });
  const stored: StoredSamples<S>[] = [];
  try {
    const maxLength = lengthOf(model, name, settings);
    const reading = { task, model, settings, maxLength, terminal, signal, stored };
    const dataset = await read("data", data, reading);
    const evaluationData = evalData === null ? null : await read("evaluation", evalData, reading);
    const generator = new Generator(seed);
    const peft = getPeftModel(model, lora.with({ baseModelNameOrPath: name }), { generator });
    const trainer = task.trainer(peft, {
      args: { ...training, maxLength, signal },
      trainDataset: dataset.samples,
      ...(evaluationData && { evalDataset: evaluationData.samples }),
      generators: [generator],
    });
    showSteps(trainer, task, model, terminal);
    const began = performance.now();
    const result = await trainer.train().catch((error: unknown) => tellWhereItStands(error, output, terminal));
    const seconds = (performance.now() - began) / 1000;
    await peft.savePretrained(output);
    const shown = (evaluationData ?? dataset).samples.slice(0, SHOWN).map((sample) => task.parts(sample)[0]);
    const { chatTemplate, prompts } = settings;
    const texts = await beforeAndAfter(peft, prompts, shown, { chatTemplate, signal });
    const { trainable, all } = peft.trainableParameters();
    const flags: Readonly<Record<string, string>> = { nf4: "--4bit ", int8: "--8bit " };
    const asBase = quantizationConfig ? (flags[base] ?? "") : "";
    const isChat = (model.tokenizer?.chatTemplates.size ?? 0) > 0;
    const use = isChat ? "chat" : "generate";
    const commands = [
      `bnb ${use} ${quoted(name)} ${asBase}--lora ${quoted(output)}`,
      `bnb merge ${quoted(name)} ${quoted(output)} ${quoted(`${output}-merged`)}`,
    ];
    const evaluation = evaluationThatCounts(result);
    const evalLoss = evaluation?.evalLoss ?? null;
    const page: FinetuneReport = {
      ...{ task, model: name, base, data, samples: dataset.samples.length, tokens: tokensOf(task, dataset), trainable },
      ...{ parameters: all, steps: result.steps, loss: result.loss, evaluation, seconds, peakBytes: peakOf(model) },
      ...{ history: result.history, texts, settings: shownSettings(settings, maxLength), commands },
      version: call.version,
    };
    await writePage(report, finetunePage(page));
    terminal.line(
      `${output}: ${count(trainable)} parameters after ${count(result.steps)} steps, loss ${result.loss.toFixed(4)}` +
        `${evalLoss === null ? "" : `, evaluation ${evalLoss.toFixed(4)}`}; ${report} shows it`,
    );
    for (const line of commands) terminal.line(`  ${line}`);
    const { steps, loss, checkpoint, bestStep } = result;
    const done = { output, task: task.name, base, steps, loss, evalLoss, evaluation, trainable, checkpoint, bestStep };
    return { json: { ...done, report, texts, commands } };
  } finally {
    for (const samples of stored) samples.dispose();
    model.dispose();
  }
}

/** Finds what cannot be written before the model is loaded. */
async function checkFiles(settings: FinetuneSettings, resumes: boolean, model: string): Promise<void> {
  const { output, report, data, evalData } = settings;
  const isUsed = !resumes && (await new CheckpointFolder(output).steps()).length > 0;
  if (isUsed) throw usageError(`${output} holds a run already; --resume goes on with it, or give a new folder`);
  const folders = { "the model": model, "the data": dirname(data) };
  const inputs = evalData === null ? folders : { ...folders, "the evaluation data": dirname(evalData) };
  await checkNewFolder(output, { mayHold: resumes, option: "--resume", inputs, isRest });
  if (report !== null) await checkWritable("--report", report);
}

/** What a killed run leaves before its first checkpoint; the next one writes it anew. */
const isRest = (name: string): boolean =>
  isUnfinished(name) || /^(\.(data|evaluation)\.tokens\.\w+\.part|(data|evaluation)\.tokens)$/.test(name);

/** The format of the base, and how to get it there; null where the model is as it is to be. */
async function baseOf(name: string, { base }: FinetuneSettings, call: Call<typeof options>) {
  const { revision } = call.values;
  const config = await readConfig(name, { revision, signal: call.signal });
  const own = config["quantization_config"] as Record<string, unknown> | null | undefined;
  if (own && base === null) {
    const format = own["load_in_8bit"] === true ? "int8" : String(own["bnb_4bit_quant_type"] ?? "4 bits");
    return { base: format, quantizationConfig: null };
  }
  const wanted = base ?? "nf4";
  return { base: wanted, quantizationConfig: quantizationOf(wanted) };
}

function lengthOf(model: CausalLM, name: string, { maxLength }: FinetuneSettings): number {
  const { maxPositionEmbeddings: most } = model.config;
  if (maxLength !== null && maxLength > most) {
    throw usageError(`--max-length must be at most ${most}, the positions of ${name}, got ${maxLength}`);
  }
  return maxLength ?? Math.min(most, LONGEST);
}

interface Reading<S> {
  readonly task: Task<S>;
  readonly model: CausalLM;
  readonly settings: FinetuneSettings;
  readonly maxLength: number;
  readonly terminal: Terminal;
  readonly signal: AbortSignal;
  /** Gets what lies in files. */
  readonly stored: StoredSamples<S>[];
}

async function read<S>(what: string, path: string, reading: Reading<S>): Promise<Dataset<S, SampleList<S>>> {
  const { task, model, settings, maxLength, terminal, signal, stored } = reading;
  const { chatTemplate, skipBadRows, tooLong, output, onDisk } = settings;
  const options = {
    tokenizer: model.tokenizerFor("finetune"),
    maxLength,
    ...(chatTemplate !== undefined && { chatTemplate }),
    onBadRow: skipBadRows ? "skip" : "error",
    onTooLong: tooLong === "cut" ? "truncate" : tooLong,
    signal,
  } as const;
  const dataset = await task.load(path, options, onDisk ? join(output, `${what}.tokens`) : null);
  if (dataset.samples instanceof StoredSamples) stored.push(dataset.samples);
  const { samples, truncated, skipped } = dataset;
  const cut = truncated === 0 ? "" : `, ${count(truncated)} cut at ${count(maxLength)} tokens`;
  const learned = `${count(tokensOf(task, dataset))} tokens to learn`;
  terminal.line(`${what}: ${count(samples.length)} ${task.noun}, ${learned}${cut}`);
  for (const { place, reason } of skipped.slice(0, 5)) terminal.line(`  left out: ${place}: ${reason}`);
  if (skipped.length > 5) terminal.line(`  left out: ${count(skipped.length - 5)} more`);
  return dataset;
}

function tokensOf<S>({ parts }: Task<S>, { samples }: Dataset<S, SampleList<S>>): number {
  let tokens = 0;
  for (const sample of samples) for (const part of parts(sample)) tokens += countedTokens(part);
  return tokens;
}

function showSteps<S>(
  trainer: ReturnType<Task<S>["trainer"]>,
  task: Task<S>,
  model: CausalLM,
  terminal: Terminal,
): void {
  trainer.on("step", ({ step, steps, loss, learningRate, tokensPerSecond, secondsLeft }: StepEvent) => {
    const detail = [
      `step ${step}/${steps}`,
      `loss ${loss.toFixed(4)}`,
      `lr ${learningRate.toPrecision(3)}`,
      `${count(tokensPerSecond)} tokens/s`,
      `${duration(secondsLeft)} left`,
      bytes(peakOf(model)),
    ];
    terminal.progress("Training", step, steps, detail.join("  "));
  });
  trainer.on("evaluate", (entry) => {
    terminal.line(`step ${entry.step}: evaluation ${(entry.evalLoss as number).toFixed(4)}, ${task.words(entry)}`);
  });
}

const peakOf = (model: CausalLM): number => memory().devices[String(model.device)]?.peakBytes ?? 0;

/** 3725 as "1:02:05". */
function duration(seconds: number): string {
  const whole = Math.round(seconds);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n: number): string => String(n).padStart(2, "0");
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** A run that ended early has not lost what it had. */
async function tellWhereItStands(error: unknown, output: string, terminal: Terminal): Promise<never> {
  // With these options nothing goes on from there.
  if ((error as { code?: unknown }).code === "ERR_BNB_OPTION") throw error;
  const folder = new CheckpointFolder(output);
  const [newest] = await folder.steps();
  if (newest !== undefined) terminal.line(`${folder.pathOf(newest)} is whole; --resume goes on from there`);
  throw error;
}

/** That of the weights which are left. */
function evaluationThatCounts({ history, bestStep }: TrainResult): LogEntry | null {
  const all = history.filter(({ evalLoss }) => evalLoss !== undefined);
  const best = bestStep === null ? undefined : all.find(({ step }) => step === bestStep);
  return best ?? all.at(-1) ?? null;
}

function shownSettings(settings: FinetuneSettings, maxLength: number): [string, string][] {
  const { task, beta, lora, training } = settings;
  const { r, loraAlpha, loraDropout, targetModules } = lora;
  const { resumeFromCheckpoint: _, outputDir: __, ...told } = training;
  const all = {
    task,
    ...(beta !== undefined && { beta }),
    r,
    loraAlpha,
    loraDropout,
    targetModules,
    maxLength,
    ...told,
  };
  return Object.entries(all).map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]);
}

/** A word as a shell takes it. */
const quoted = (word: string): string => (/^[\w./:@%+=-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);
