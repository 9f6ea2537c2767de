// Which linear layers of a model are quantized, and how: as its checkpoint holds them, or as a BitsAndBytesConfig wants.
import type { Module } from "../nn/index.js";
import { Linear, Linear4bit, Linear8bitLt, replaceLinear } from "../nn/index.js";
import { BnbError } from "../tensor/errors.js";
import { uninitialized } from "../tensor/placeholder.js";
import { BitsAndBytesConfig } from "./bits-and-bytes-config.js";
import { formatError } from "./safetensors-header.js";
import { SkipList } from "./skip-patterns.js";
import type { TensorSource } from "./source.js";

/** How a checkpoint holds the weight of a module. */
export type WeightFormat = "nf4" | "fp4" | "int8" | "float";

/** The format of the weight at `path`, by the tensors beside it. */
export function formatOf(source: TensorSource, path: string): WeightFormat {
  const state = `${path}.weight.quant_state.bitsandbytes__`;
  if (source.has(`${state}nf4`)) return "nf4";
  if (source.has(`${state}fp4`)) return "fp4";
  return source.has(`${path}.SCB`) ? "int8" : "float";
}

/** Whether any weight of the checkpoint is quantized. */
export function isQuantized(source: TensorSource): boolean {
  for (const name of source.names()) if (/\.quant_state\.bitsandbytes__|\.SCB$/.test(name)) return true;
  return false;
}

/** What a model says of itself, where a rule needs more than its modules. */
export interface ModelTies {
  /** Path of the output embedding. */
  readonly head: string;
  /** Names of weights that are other weights, such as `{ "lm_head.weight": "model.embed_tokens.weight" }`. */
  readonly tied: Readonly<Record<string, string>>;
}

/**
 * The modules that stay unquantized unless llmInt8SkipModules says otherwise, as transformers finds them: the output
 * embedding, both ends of ties, and the module of the last parameter.
 */
export function defaultSkips(model: Module, { head, tied }: ModelTies): string[] {
  const last = model.namedParameters().at(-1)?.[0] ?? "";
  const ends = Object.entries(tied).flat();
  return [...new Set([...ends, last, head].map((name) => name.replace(/\.weight$/, "")).filter((name) => name !== ""))];
}

/**
 * How the weight of each linear layer will be kept: as its checkpoint holds it, or as a config wants. Throws ERR_BNB_FORMAT where
 * the two contradict each other.
 */
export function formatsOf(
  model: Module,
  source: TensorSource,
  config: BitsAndBytesConfig | null,
  ties: ModelTies,
): { formats: Map<string, WeightFormat>; unmatched: readonly string[] } {
  const linears = model.namedModules().flatMap(([path, module]) => (module instanceof Linear ? [path] : []));
  const formats = new Map<string, WeightFormat>();
  if (isQuantized(source)) {
    for (const path of linears) formats.set(path, formatOf(source, path));
    checkAgreement(source, formats, config);
  } else if (config?.loadIn4bit || config?.loadIn8bit) {
    const wanted = config.loadIn8bit ? "int8" : config.bnb4bitQuantType;
    const { skipped, unmatched } = skippedModules(model, config, ties);
    for (const path of linears) formats.set(path, skipped.has(path) ? "float" : wanted);
    return { formats, unmatched };
  }
  return { formats, unmatched: [] };
}

/**
 * Replaces the linear layers of `model` that are to be quantized by layers whose weights wait to be loaded. A quantized
 * checkpoint decides for each module; of the config it takes what files do not hold. Throws ERR_BNB_FORMAT where the two
 * contradict each other.
 */
export function quantizeLinears(
  model: Module,
  source: TensorSource,
  config: BitsAndBytesConfig | null,
  ties: ModelTies,
  blocksize = 64,
): void {
  const { formats, unmatched } = formatsOf(model, source, config, ties);
  warnOfUnmatched(unmatched);
  const settings = config ?? new BitsAndBytesConfig();
  uninitialized(() =>
    replaceLinear(
      model,
      (inputs, outputs, bias, linear, path) =>
        quantizedLayer(inputs, outputs, bias, linear, formats.get(path) as WeightFormat, settings, blocksize),
      { skipModules: [], predicate: (path) => (formats.get(path) ?? "float") !== "float" },
    ),
  );
}

function quantizedLayer(
  inputs: number,
  outputs: number,
  bias: boolean,
  { weight: { dtype, device } }: Linear,
  format: WeightFormat,
  config: BitsAndBytesConfig,
  blocksize: number,
): Linear {
  const common = { bias, dtype, device };
  if (format === "int8") {
    const { llmInt8HasFp16Weight, llmInt8Threshold } = config;
    return new Linear8bitLt(inputs, outputs, {
      ...common,
      hasFp16Weights: llmInt8HasFp16Weight,
      threshold: llmInt8Threshold,
    });
  }
  return new Linear4bit(inputs, outputs, {
    ...common,
    blocksize,
    quantType: format === "nf4" ? "nf4" : "fp4",
    computeDtype: config.bnb4bitComputeDtype,
    compressStatistics: config.bnb4bitUseDoubleQuant,
    quantStorage: config.bnb4bitQuantStorage,
  });
}

/** Paths of modules that stay, and patterns of the user's that match none. */
function skippedModules(
  model: Module,
  config: BitsAndBytesConfig,
  ties: ModelTies,
): { skipped: Set<string>; unmatched: readonly string[] } {
  const given = config.llmInt8SkipModules;
  const list = new SkipList(given ?? defaultSkips(model, ties));
  const paths = model.namedModules().flatMap(([path]) => (path === "" ? [] : [path]));
  const skipped = new Set(paths.filter((path) => list.skips(path)));
  return { skipped, unmatched: given ? list.unmatched : [] };
}

function warnOfUnmatched(patterns: readonly string[]): void {
  if (patterns.length === 0) return;
  const names = patterns.map((text) => JSON.stringify(text)).join(", ");
  process.emitWarning(`llmInt8SkipModules: no module matches ${names}`, {
    type: "BnbWarning",
    code: "BNB_UNMATCHED_PATTERN",
  });
}

/** A quantized checkpoint beside a config that says otherwise is a mistake of one of them. */
function checkAgreement(
  source: TensorSource,
  formats: ReadonlyMap<string, WeightFormat>,
  config: BitsAndBytesConfig | null,
): void {
  if (!config) return;
  const wanted = config.loadIn8bit ? "int8" : config.loadIn4bit ? config.bnb4bitQuantType : "float";
  for (const [path, format] of formats) {
    if (format === "float" || format === wanted) continue;
    const file = source.info(`${path}.weight`).file;
    const rule = `the weight of ${path} is ${format}, and the quantization config says ${wanted}`;
    throw formatError(file, `${rule}: leave the config out to load the weights as they are`);
  }
}

/** The config of a user beside that of the file: what both say must agree, but for what files do not fix. */
export function mergeConfigs(
  given: BitsAndBytesConfig | null,
  inFile: BitsAndBytesConfig | null,
): BitsAndBytesConfig | null {
  if (!given || !inFile) return given ?? inFile;
  const fixed = ["loadIn8bit", "loadIn4bit", ...(inFile.loadIn4bit ? fixedBy4bit : [])] as const;
  for (const key of fixed) {
    if (given[key] === inFile[key]) continue;
    const rule = `${key} must be ${inFile[key]}, as the checkpoint is quantized already`;
    throw new BnbError("ERR_BNB_OPTION", `quantizationConfig: ${rule}, got ${given[key]}; leave the config out`);
  }
  return given;
}

const fixedBy4bit = ["bnb4bitQuantType", "bnb4bitUseDoubleQuant", "bnb4bitQuantStorage"] as const;
