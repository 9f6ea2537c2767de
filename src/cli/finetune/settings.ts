// What a run of `bnb finetune` is told: its options over its config file over the defaults of QLoRA.
import { access } from "node:fs/promises";
import { BitsAndBytesConfig } from "../../hub/index.js";
import { LoraConfig } from "../../peft/index.js";
import { BnbError } from "../../tensor/errors.js";
import { resolveArguments } from "../../train/arguments.js";
import type { OptimName, TrainingArguments } from "../../train/index.js";
import { optimNames } from "../../train/index.js";
import type { OptionSpec } from "../command.js";
import { choice, number, usageError, wholeNumber } from "../command.js";
import type { BaseFormat, FinetuneConfig } from "./config-file.js";
import { baseFormats, readFinetuneConfig, tooLongChoices } from "./config-file.js";
import type { TaskName } from "./task.js";
import { taskOf, tasks } from "./task.js";

/** Options of the command, beside those that load a model. */
export const finetuneOptions = {
  data: { type: "string", value: "FILE", help: "samples: .jsonl, .csv, .parquet or .txt" },
  output: { type: "string", value: "DIR", help: "where adapter, checkpoints and report go" },
  "eval-data": { type: "string", value: "FILE", help: "samples that are measured and not learned" },
  config: { type: "string", value: "FILE", help: "YAML or JSON with all settings; options count before it" },
  task: {
    type: "string",
    value: "NAME",
    help: "sft: learn the samples; dpo: the better of two answers (default: by the data)",
  },
  beta: { type: "string", value: "X", help: "of dpo: how little the model may leave its base (default 0.1)" },
  resume: { type: "boolean", help: "go on from the newest checkpoint of --output, if there is one" },
  base: { type: "string", value: "FORMAT", help: "nf4, fp4, int8 or float (default nf4, or what the model is)" },
  r: { type: "string", value: "N", help: "rank of the adapters (default 16)" },
  alpha: { type: "string", value: "X", help: "they count alpha / r (default 2 r)" },
  dropout: { type: "string", value: "X", help: "dropout of what they see (default 0.05)" },
  targets: { type: "string", value: "NAMES", help: "layers, such as q_proj,v_proj (default all-linear)" },
  epochs: { type: "string", value: "X", help: "times that the data is gone through (default 3)" },
  steps: { type: "string", value: "N", help: "steps, instead of epochs" },
  "learning-rate": { type: "string", value: "X", help: "at its highest (default 2e-4; dpo 5e-5)" },
  "batch-size": { type: "string", value: "N", help: "samples computed at once (default 4)" },
  accumulate: { type: "string", value: "N", help: "batches of a step (default 4)" },
  optim: { type: "string", value: "NAME", help: "optimizer (default adamw_8bit)" },
  "max-length": { type: "string", value: "N", help: "tokens of a sample (default the model's, at most 2048)" },
  packing: { type: "boolean", help: "fill batches with as many samples as fit" },
  "too-long": { type: "string", value: "WHAT", help: "longer samples: cut, skip or error (default cut)" },
  "on-disk": { type: "boolean", help: "samples stay in a file of --output: for data larger than memory" },
  "skip-bad-rows": { type: "boolean", help: "leave out rows that cannot be used, instead of ending" },
  prompt: { type: "string", value: "TEXT", multiple: true, help: "for samples before and after; may be repeated" },
  seed: { type: "string", value: "N", help: "of adapters, order and dropout (default 42)" },
  report: { type: "string", value: "FILE", help: "the page (default report.html in --output)" },
} as const satisfies Record<string, OptionSpec>;

type Values = {
  readonly [K in keyof typeof finetuneOptions]: (typeof finetuneOptions)[K] extends { multiple: true }
    ? readonly string[]
    : (typeof finetuneOptions)[K]["type"] extends "boolean"
      ? boolean
      : string | undefined;
};

/** All of a run. */
export interface FinetuneSettings {
  readonly data: string;
  readonly evalData: string | null;
  readonly output: string;
  readonly task: TaskName;
  readonly beta: number | undefined;
  /** null: as the model is, or nf4. */
  readonly base: BaseFormat | null;
  /** null: what the model has, at most LONGEST. */
  readonly maxLength: number | null;
  readonly skipBadRows: boolean;
  readonly onDisk: boolean;
  readonly tooLong: (typeof tooLongChoices)[number];
  readonly chatTemplate: string | undefined;
  readonly prompts: readonly string[];
  readonly report: string | null;
  readonly lora: LoraConfig;
  readonly training: TrainingArguments;
  readonly seed: number;
}

/** Tokens of a sample where nothing else is said. */
export const LONGEST = 2048;

/** Reads everything before any work is done. Throws ERR_BNB_OPTION for what cannot be. */
export async function finetuneSettings(values: Values): Promise<FinetuneSettings> {
  const config: FinetuneConfig = values.config === undefined ? {} : await readFinetuneConfig(values.config);
  const data = values.data ?? config.data;
  const output = values.output ?? config.output;
  if (data === undefined) throw usageError("--data FILE is missing: what the model is to learn");
  if (output === undefined) throw usageError("--output DIR is missing: where the result goes");
  const evalData = values["eval-data"] ?? config.evalData ?? null;
  await checkReadable("--data", data);
  if (evalData !== null) await checkReadable("--eval-data", evalData);
  const said = values.task === undefined ? config.task : choice("--task", values.task, tasks);
  const task = said ?? (await taskOf(data));
  const beta = betaOf(values) ?? config.beta;
  if (beta !== undefined && task !== "dpo") throw usageError(`--beta is for --task dpo, got a run of ${task}`);
  const base = values.base === undefined ? config.base : choice("--base", values.base, baseFormats);
  const maxLength = count(values, "max-length", 2) ?? config.maxLength;
  const tooLong = values["too-long"] ?? config.tooLong ?? "cut";
  const training = argumentsOf(values, config, output, task);
  return {
    data,
    output,
    evalData,
    task,
    beta,
    base: base ?? null,
    maxLength: maxLength ?? null,
    onDisk: values["on-disk"] || (config.onDisk ?? false),
    skipBadRows: values["skip-bad-rows"] || (config.skipBadRows ?? false),
    tooLong: choice("--too-long", tooLong, tooLongChoices),
    chatTemplate: config.chatTemplate,
    prompts: values.prompt.length > 0 ? values.prompt : (config.prompts ?? []),
    report: values.report ?? config.report ?? null,
    lora: adaptersOf(values, config),
    training,
    seed: training.seed as number,
  };
}

/** Finds what cannot be read before the model is loaded. */
async function checkReadable(option: string, path: string): Promise<void> {
  await access(path).catch((cause: Error) => {
    throw new BnbError("ERR_BNB_OPTION", `${option} must be a readable file: ${cause.message}`, { cause });
  });
}

function betaOf(values: Values): number | undefined {
  const beta = amount(values, "beta", 0);
  if (beta === 0) throw usageError("--beta must be above 0, got 0");
  return beta;
}

function adaptersOf(values: Values, { lora = {} }: FinetuneConfig): LoraConfig {
  const r = count(values, "r", 1) ?? lora.r ?? 16;
  const { targets } = values;
  const named = targets === "all-linear" ? targets : targets?.split(",").map((name) => name.trim());
  return new LoraConfig({
    loraDropout: 0.05,
    targetModules: "all-linear",
    taskType: "CAUSAL_LM",
    ...lora,
    r,
    loraAlpha: amount(values, "alpha", 0) ?? lora.loraAlpha ?? 2 * r,
    ...(values.dropout !== undefined && { loraDropout: number("--dropout", values.dropout, 0, 1) }),
    ...(named !== undefined && { targetModules: named }),
  });
}

function argumentsOf(
  values: Values,
  { training = {} }: FinetuneConfig,
  output: string,
  task: TaskName,
): TrainingArguments {
  const given: Partial<TrainingArguments> = {
    numTrainEpochs: amount(values, "epochs", 0),
    // Steps of the config would count before epochs.
    maxSteps: count(values, "steps", 1) ?? (values.epochs === undefined ? undefined : -1),
    learningRate: amount(values, "learning-rate", 0),
    perDeviceTrainBatchSize: count(values, "batch-size", 1),
    gradientAccumulationSteps: count(values, "accumulate", 1),
    optim: values.optim === undefined ? undefined : choice("--optim", values.optim, optimNames as OptimName[]),
    packing: values.packing || undefined,
    seed: count(values, "seed", 0),
  } as Partial<TrainingArguments>;
  const said = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  const args: TrainingArguments = {
    perDeviceTrainBatchSize: 4,
    perDeviceEvalBatchSize: 4,
    gradientAccumulationSteps: 4,
    learningRate: task === "dpo" ? 5e-5 : 2e-4,
    lrSchedulerType: "cosine",
    ...(training.warmupSteps === undefined && { warmupRatio: 0.03 }),
    optim: "adamw_8bit",
    gradientCheckpointing: true,
    saveSteps: 50,
    loggingSteps: 1,
    seed: 42,
    ...training,
    ...said,
    outputDir: output,
    resumeFromCheckpoint: values.resume,
  };
  resolveArguments("training", args);
  return args;
}

type Named<T> = { [K in keyof Values]: Values[K] extends T ? K : never }[keyof Values];

function count(values: Values, name: Named<string | undefined>, min: number): number | undefined {
  const text = values[name] as string | undefined;
  return text === undefined ? undefined : wholeNumber(`--${name}`, text, min);
}

function amount(values: Values, name: Named<string | undefined>, min: number): number | undefined {
  const text = values[name] as string | undefined;
  return text === undefined ? undefined : number(`--${name}`, text, min);
}

/** How the base is quantized on its way into memory; null: not at all. */
export function quantizationOf(base: BaseFormat): BitsAndBytesConfig | null {
  if (base === "float") return null;
  if (base === "int8") return new BitsAndBytesConfig({ loadIn8bit: true });
  return new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: base });
}
