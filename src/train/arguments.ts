// What a run is told, by the names that transformers' TrainingArguments have, and what it is with all defaults.
import type { Check } from "../tensor/checks.js";
import {
  aBoolean,
  aFunction,
  aNumberAbove,
  aNumberIn,
  anAbortSignal,
  anInteger,
  arrayOf,
  aString,
  either,
  oneOf,
  required,
} from "../tensor/checks.js";
import { isPlainObject } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { OptimName } from "./optim-names.js";
import { optimNames } from "./optim-names.js";
import type { ReportTarget } from "./reports.js";

/** How the learning rate goes after its warm-up. */
export const schedulerTypes = ["linear", "cosine", "constant", "constant_with_warmup"] as const;
/** How the learning rate goes on after its warm-up, by transformers' names. */
export type SchedulerType = (typeof schedulerTypes)[number];

/** Arguments of a trainer. Steps are those of the optimizer. */
export interface TrainingArguments {
  /** Where checkpoints go, and what is left at the end. */
  outputDir: string;
  /** Samples of a forward pass. Default 8. */
  perDeviceTrainBatchSize?: number;
  /** Samples of a forward pass of an evaluation. Default 8. */
  perDeviceEvalBatchSize?: number;
  /** Batches of a step; each token that counts has the same weight, in whatever batch it is. Default 1. */
  gradientAccumulationSteps?: number;
  /** Default 3; may be a fraction. */
  numTrainEpochs?: number;
  /** Counts before numTrainEpochs; -1, the default: it says nothing. */
  maxSteps?: number;
  /** Default 5e-5. */
  learningRate?: number;
  /** Default "linear": down to 0 at the last step. */
  lrSchedulerType?: SchedulerType;
  /** Steps over which the rate grows from 0, or, below 1, their share of all. Default 0. */
  warmupSteps?: number;
  /** The share of the steps, where warmupSteps is 0. Default 0. */
  warmupRatio?: number;
  /** Of all but biases and norms. Default 0. */
  weightDecay?: number;
  /** Largest norm of all gradients together; 0: none. Default 1. */
  maxGradNorm?: number;
  /** Default "adamw_torch_fused". */
  optim?: OptimName;
  /** More for the optimizer, such as "beta3=0.999,alpha=8". */
  optimArgs?: string;
  /** Default 0.9. */
  adamBeta1?: number;
  /** Default 0.999. */
  adamBeta2?: number;
  /** Default 1e-8. */
  adamEpsilon?: number;
  /** The model computes in bfloat16: says so, and is checked. */
  bf16?: boolean;
  /** The model computes in float16: losses are scaled by a factor that finds itself. */
  fp16?: boolean;
  /** Of each block of the model only its input is kept: less memory for a third more time, and the same bits. Default false. */
  gradientCheckpointing?: boolean;
  /** Of gradientCheckpointing: bytes of activations that may be kept, so that fewer blocks are computed again. Default 0. */
  activationBudget?: number;
  /** Steps between reports. Default 500. */
  loggingSteps?: number;
  /** Steps between evaluations; 0: one at the end alone. Default 0. */
  evalSteps?: number;
  /** Steps between checkpoints; 0: one at the end alone. Default 500. */
  saveSteps?: number;
  /** Checkpoints that are kept, the best one beside them. Default 2. */
  saveTotalLimit?: number;
  /** Whether the weights of the evaluation with the smallest loss are taken at the end. Default false. */
  loadBestModelAtEnd?: boolean;
  /** Evaluations without a smaller loss after which a run ends; 0: never. Default 0. */
  earlyStoppingPatience?: number;
  /** Of the order of the data, dropout and noise. Default 42. */
  seed?: number;
  /** Whether each epoch has an order of its own; else it is that of the data. Default true. */
  shuffle?: boolean;
  /** Samples of like length go together. Default false. */
  groupByLength?: boolean;
  /** Batches are filled with samples up to perDeviceTrainBatchSize * maxLength tokens. Default false. */
  packing?: boolean;
  /** Tokens of a full sample, for packing. Default: the longest of the data. */
  maxLength?: number;
  /** Noise on the embeddings while training (NEFTune, Jain et al., 2023), such as 5; 0: none. Default 0. */
  neftuneNoiseAlpha?: number;
  /** true: go on from the newest usable checkpoint of outputDir, if there is one; or the folder of one. Default false. */
  resumeFromCheckpoint?: boolean | string;
  /** Where reports go: "console", "tensorboard", the path of a .jsonl file, a function, or several of these. Default "none". */
  reportTo?: ReportTarget | readonly ReportTarget[];
  /** Ends the run: a checkpoint is written, then `train` rejects with `ERR_BNB_ABORTED`. */
  signal?: AbortSignal;
}

/** All of them but the signal. */
export type ResolvedArguments = Required<Omit<TrainingArguments, "signal" | "maxLength">>;

const aSteps = anInteger(0);
// A word alone is one of another program, or mistyped.
const isTarget = (v: unknown): boolean =>
  typeof v === "string" && (["console", "tensorboard", "none"].includes(v) || /[./\\]/.test(v));
const aTarget: Check = either(
  { rule: '"console", "tensorboard", "none", the path of a file such as log.jsonl', holds: isTarget },
  aFunction,
);
const argumentTable = optionTable<TrainingArguments>({
  outputDir: required(aString),
  perDeviceTrainBatchSize: anInteger(1),
  perDeviceEvalBatchSize: anInteger(1),
  gradientAccumulationSteps: anInteger(1),
  numTrainEpochs: aNumberAbove(0),
  maxSteps: anInteger(-1),
  learningRate: aNumberIn(0),
  lrSchedulerType: oneOf(schedulerTypes),
  warmupSteps: aNumberIn(0),
  warmupRatio: aNumberIn(0, 1),
  weightDecay: aNumberIn(0),
  maxGradNorm: aNumberIn(0),
  optim: oneOf(optimNames),
  optimArgs: aString,
  adamBeta1: aNumberIn(0, 1),
  adamBeta2: aNumberIn(0, 1),
  adamEpsilon: aNumberIn(0),
  bf16: aBoolean,
  fp16: aBoolean,
  gradientCheckpointing: aBoolean,
  activationBudget: anInteger(0),
  loggingSteps: anInteger(1),
  evalSteps: aSteps,
  saveSteps: aSteps,
  saveTotalLimit: anInteger(1),
  loadBestModelAtEnd: aBoolean,
  earlyStoppingPatience: aSteps,
  seed: anInteger(0, 2 ** 32 - 1),
  shuffle: aBoolean,
  groupByLength: aBoolean,
  packing: aBoolean,
  maxLength: anInteger(2),
  neftuneNoiseAlpha: aNumberIn(0),
  resumeFromCheckpoint: either(aBoolean, aString),
  reportTo: either(aTarget, arrayOf(aTarget)),
  signal: anAbortSignal,
});

/** The names of all arguments. */
export const argumentNames: readonly string[] = Object.keys(argumentTable.checks);

const defaults: Omit<ResolvedArguments, "outputDir"> = {
  perDeviceTrainBatchSize: 8,
  perDeviceEvalBatchSize: 8,
  gradientAccumulationSteps: 1,
  numTrainEpochs: 3,
  maxSteps: -1,
  learningRate: 5e-5,
  lrSchedulerType: "linear",
  warmupSteps: 0,
  warmupRatio: 0,
  weightDecay: 0,
  maxGradNorm: 1,
  optim: "adamw_torch_fused",
  optimArgs: "",
  adamBeta1: 0.9,
  adamBeta2: 0.999,
  adamEpsilon: 1e-8,
  bf16: false,
  fp16: false,
  gradientCheckpointing: false,
  activationBudget: 0,
  loggingSteps: 500,
  evalSteps: 0,
  saveSteps: 500,
  saveTotalLimit: 2,
  loadBestModelAtEnd: false,
  earlyStoppingPatience: 0,
  seed: 42,
  shuffle: true,
  groupByLength: false,
  packing: false,
  neftuneNoiseAlpha: 0,
  resumeFromCheckpoint: false,
  reportTo: [],
};

/** Those of a run that may differ when it goes on: they do not change what it computes. */
const free = new Set<string>([
  ...["outputDir", "perDeviceEvalBatchSize", "loggingSteps", "evalSteps", "saveSteps", "saveTotalLimit"],
  ...[
    "loadBestModelAtEnd",
    "earlyStoppingPatience",
    "gradientCheckpointing",
    "activationBudget",
    "resumeFromCheckpoint",
    "reportTo",
  ],
]);

/** Checks arguments and fills in the defaults. Throws ERR_BNB_OPTION for what cannot be. */
export function resolveArguments(op: string, given: TrainingArguments): ResolvedArguments {
  checkOptions(op, given, argumentTable);
  const set = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  const { signal: _, maxLength: __, ...resolved } = { ...defaults, ...set } as typeof defaults & TrainingArguments;
  const fail = (rule: string): never => {
    throw new BnbError("ERR_BNB_OPTION", `${op}: ${rule}`);
  };
  if (resolved.bf16 && resolved.fp16) fail("bf16 and fp16 must not both be true");
  if (resolved.packing && resolved.groupByLength) fail("groupByLength must be false with packing, got true");
  if (resolved.maxSteps === 0) fail("maxSteps must be at least 1, or -1, got 0");
  const { warmupSteps } = resolved;
  if (warmupSteps > 1 && !Number.isInteger(warmupSteps)) {
    fail(`warmupSteps must be an integer or a share below 1, got ${warmupSteps}`);
  }
  return resolved;
}

/** The arguments that a run and its continuation must share. */
export function binding(args: ResolvedArguments): Record<string, unknown> {
  return Object.fromEntries(Object.entries(args).filter(([key]) => !free.has(key)));
}

/**
 * Throws ERR_BNB_OPTION where a run is to go on with other settings than it had; of a text, the first line that differs. What
 * `had` lacks, as that of an earlier version does, is not known, and may be anything.
 */
export function checkBinding(
  op: string,
  place: string,
  had: unknown,
  settings: Readonly<Record<string, unknown>>,
): void {
  const before = isPlainObject(had) ? (had as Record<string, unknown>) : {};
  for (const [key, value] of Object.entries(settings)) {
    if (!Object.hasOwn(before, key)) continue;
    const [was, is] = [linesOf(before[key]), linesOf(value)];
    const at = [...is, undefined].findIndex((line, i) => line !== was[i]);
    if (at < 0) continue;
    const [wanted, got] = [was[at], is[at]].map((line) => JSON.stringify(line));
    throw new BnbError("ERR_BNB_OPTION", `${op}: ${key} must be ${wanted} as in ${place}, got ${got}`);
  }
}

const linesOf = (value: unknown): unknown[] =>
  typeof value === "string" ? value.split("\n").map((line) => line.trim()) : [value];

/** Steps of the warm-up of a run of `total` steps. */
export function warmupOf({ warmupSteps, warmupRatio }: ResolvedArguments, total: number): number {
  if (warmupSteps >= 1) return warmupSteps;
  return Math.ceil((warmupSteps > 0 ? warmupSteps : warmupRatio) * total);
}
