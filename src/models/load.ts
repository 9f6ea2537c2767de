// fromPretrained without a family: from a folder with config.json and weights to a loaded model.
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import type { JsonObject } from "../hub/config-text.js";
import { parseConfig } from "../hub/config-text.js";
import type { LoadProgress, QuantizationLoss, TensorSource } from "../hub/index.js";
import { BitsAndBytesConfig, loadCheckpoint, openCheckpoint } from "../hub/index.js";
import type { ModelTies } from "../hub/quantize-linears.js";
import { defaultSkips, formatOf, mergeConfigs } from "../hub/quantize-linears.js";
import { RenamedSource } from "../hub/renamed-source.js";
import { resolveModel } from "../hub/resolve.js";
import { TransposedSource } from "../hub/transposed-source.js";
import type { Module } from "../nn/index.js";
import { setActivationQuant } from "../nn/index.js";
import type { ActivationQuant } from "../ops/activation-quant.js";
import { anActivationQuant } from "../ops/activation-quant.js";
import { aBlocksize } from "../ops/quant-checks.js";
import { aFloatDType, aFunction, anAbortSignal, anInstance, aString, either, oneOf, orNull } from "../tensor/checks.js";
import type { DType } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { optionTable } from "../tensor/options.js";
import { uninitialized } from "../tensor/placeholder.js";
import type { PlacementOptions } from "./decide-placement.js";
import { aDeviceMap, aMemoryMap, decidePlacement, wholeDevice } from "./decide-placement.js";
import type { ModelOptions } from "./parts/model-options.js";
import type { ModelPlacement } from "./placement.js";
import { rememberOrigin } from "./save.js";
import type { TextModel } from "./text-model.js";

/** Options of `fromPretrained`: how weights are quantized, which files count, and where modules go. */
export interface FromPretrainedOptions extends PlacementOptions {
  /** How linear layers are quantized as they load. A checkpoint that is quantized already needs none. */
  quantizationConfig?: BitsAndBytesConfig | null;
  /** Weights that share a scale in layers quantized to 4 bits here; files say their own. Default 64. */
  blocksize?: number;
  /** How a CPU may round activations before it multiplies them by 4-bit weights; `setActivationQuant`. Default "none". */
  activationQuant?: ActivationQuant;
  /** float32, float16 or bfloat16; default "auto": what config.json says, or float32. */
  dtype?: DType | "auto";
  /** Branch, tag or commit of a model on the hub. Default "main". */
  revision?: string;
  /** For private and gated models on the hub. Default HF_TOKEN, or what `hf auth login` left. */
  token?: string;
  /** Called as files come from the hub, and with each tensor that was read. */
  onProgress?: (progress: FromPretrainedProgress) => void;
  /** Called with what each linear layer lost as it was quantized; measuring it decodes the layer once. */
  onQuantized?: (loss: QuantizationLoss) => void;
  signal?: AbortSignal;
}

/** How far `fromPretrained` is: bytes of one file that are here, or tensors that are loaded. */
export type FromPretrainedProgress =
  | { readonly stage: "download"; readonly name: string; readonly bytes: number; readonly totalBytes: number }
  | (LoadProgress & { readonly stage: "load" });

/** @internal */
export const fromPretrainedOptions = optionTable<FromPretrainedOptions>({
  quantizationConfig: orNull(anInstance(() => BitsAndBytesConfig, "a BitsAndBytesConfig")),
  blocksize: aBlocksize,
  activationQuant: anActivationQuant,
  dtype: either(aFloatDType, oneOf(["auto"])),
  deviceMap: aDeviceMap,
  maxMemory: aMemoryMap,
  offloadFolder: aString,
  revision: aString,
  token: aString,
  onProgress: aFunction,
  onQuantized: aFunction,
  signal: anAbortSignal,
});

/** What loading must know of a family of models. */
export interface Family<M extends Module = Module> {
  /** The model of a config.json, with new weights; with a checkpoint, some parts are there only if it has them. */
  create(config: JsonObject, options: ModelOptions & { dtype: DType }, source: TensorSource | null): M;
  /** Path of the output, which is not quantized by default. Default "lm_head". */
  readonly head?: string;
  /** The name of the weight that the output embedding shares where the config ties them. */
  readonly embedding?: string;
  /** The model's name of a tensor that checkpoints call differently; null for one that has no use. */
  rename?(name: string): string | null;
  /** The config of the language model within one of a model that also takes images; only it is made, loaded and saved. */
  languageConfig?(config: JsonObject): JsonObject;
  /** Whether files hold the float weight of this name of the model as [in, out]. */
  isTransposed?(name: string): boolean;
}

/** @internal Loads the model of a folder, or of an id on the hub, as its family makes it; `addParts` adds what is not weights. */
export async function loadPretrained<M extends TextModel>(
  path: string,
  familyOf: (config: JsonObject) => Family<M>,
  options: FromPretrainedOptions,
  addParts: (model: M, folder: string, config: JsonObject) => Promise<void> = async () => {},
): Promise<M> {
  const { revision, token, signal, onProgress, onQuantized, blocksize, activationQuant = "none" } = options;
  const onDownload = (name: string, bytes: number, totalBytes: number): void =>
    onProgress?.({ stage: "download", name, bytes, totalBytes });
  const folder = await resolveModel(path, "model", { revision, token, signal, onDownload });
  const wholeText = await readConfigText(folder);
  const described = parseConfig(wholeText);
  const family = familyOf(described);
  const config = family.languageConfig?.(described) ?? described;
  const configText = config === described ? wholeText : textOf(config);
  const inFile = readQuantization(config);
  const given = options.quantizationConfig ?? null;
  if (given && !given.loadIn4bit && !given.loadIn8bit) {
    const rule = "quantizationConfig must have loadIn4bit or loadIn8bit";
    throw new BnbError("ERR_BNB_OPTION", `fromPretrained: ${rule}, got neither; leave it out to load floats`);
  }
  const quantizationConfig = mergeConfigs(given, inFile);
  const dtype = dtypeOf(config, options.dtype);
  const whole = wholeDevice(options);
  const file = await openCheckpoint(folder);
  const source = adapted(file, family);
  let model: M | undefined;
  let placement: ModelPlacement | undefined;
  try {
    const tensors = [...source.names()].length;
    checkLayers(config, tensors, `the checkpoint has ${tensors} tensors`);
    const made = uninitialized(() => family.create(config, { dtype, ...(whole ?? { device: "cpu" }) }, source));
    model = made;
    const ties = tiesOf(made, family);
    const loading = { source, config: quantizationConfig, ties, blocksize: blocksize ?? 64, dtype };
    const decided = whole ? null : await decidePlacement(made, loading, options);
    placement = decided?.placement;
    const { unexpected } = await loadCheckpoint(made, source, {
      quantizationConfig: withFloatUnits(quantizationConfig, defaultSkips(made, ties), placement?.floatUnits),
      ...ties,
      ...(decided && { onModule: (path: string) => decided.placement.loaded(path) }),
      ...(onProgress && { onProgress: (progress: LoadProgress) => onProgress({ stage: "load", ...progress }) }),
      ...(onQuantized && { onQuantized }),
      ...(blocksize !== undefined && { blocksize }),
      signal,
    });
    warnOfUnused(unexpected);
    if (decided && !decided.placement.isWhole) await decided.placement.attach(made, decided.tied);
    await addParts(made, folder, config);
    if (activationQuant !== "none") setActivationQuant(made, activationQuant);
  } catch (error) {
    placement?.dispose();
    model?.dispose();
    throw error;
  } finally {
    await source.close();
  }
  rememberOrigin(model, { folder, configText, quantizationConfig, dtype, isTransposed: family.isTransposed });
  return model.eval();
}

const textOf = (config: JsonObject): string => `${JSON.stringify(config, null, 2)}\n`;

/** A checkpoint with the names of the model, and its matrices as layers have them. */
function adapted(file: TensorSource, { rename, isTransposed }: Family): TensorSource {
  const source = rename ? new RenamedSource(file, rename) : file;
  if (!isTransposed) return source;
  const pathOf = (name: string): string => name.replace(/\.weight$/, "");
  return new TransposedSource(source, (name) => isTransposed(name) && formatOf(source, pathOf(name)) === "float");
}

/** The config, with modules that stay floats because they are offloaded. */
function withFloatUnits(
  config: BitsAndBytesConfig | null,
  skips: readonly string[],
  units: readonly string[] = [],
): BitsAndBytesConfig | null {
  if (!config || units.length === 0) return config;
  const { llmInt8Threshold, llmInt8HasFp16Weight, llmInt8SkipModules } = config;
  const more = units.map((path) => `${path.replaceAll(".", "\\.")}\\.`);
  return new BitsAndBytesConfig({
    loadIn8bit: true,
    llmInt8Threshold,
    llmInt8HasFp16Weight,
    llmInt8SkipModules: [...(llmInt8SkipModules ?? skips), ...more],
  });
}

/** @internal A model of a config.json with new weights. */
export function createModel<M extends Module>(
  described: JsonObject,
  familyOf: (config: JsonObject) => Family<M>,
  options: ModelOptions = {},
): M {
  const { create, isTransposed, languageConfig } = familyOf(described);
  const config = languageConfig?.(described) ?? described;
  const dtype = dtypeOf(config, options.dtype);
  checkLayers(config, MAX_LAYERS, `${MAX_LAYERS} are the most that are made`);
  const model = create(config, { ...options, dtype }, null);
  const configText = textOf(config);
  rememberOrigin(model, { folder: null, configText, quantizationConfig: null, dtype, isTransposed });
  return model.eval();
}

/** @internal What a model says of its head; call it before layers are replaced. */
export function tiesOf(model: Module, { head = "lm_head", embedding }: Family): ModelTies {
  const isTied = model.namedParameters().every(([name]) => name !== `${head}.weight`);
  return { head, tied: isTied && embedding !== undefined ? { [`${head}.weight`]: embedding } : {} };
}

/** A layer has tensors: a config that claims more layers than there can be would only take memory. */
function checkLayers(config: JsonObject, most: number, why: string): void {
  for (const key of ["num_hidden_layers", "n_layer", "num_layers"]) {
    const layers = config[key];
    if (typeof layers !== "number" || layers <= most) continue;
    throw new BnbError("ERR_BNB_FORMAT", `config.json: ${key} is ${layers}, and ${why}`);
  }
}

const MAX_LAYERS = 10_000;

async function readConfigText(folder: string): Promise<string> {
  const path = join(folder, "config.json");
  const found = await stat(path).catch((cause: Error) => {
    throw new BnbError("ERR_BNB_FILE", `${folder}: its config.json could not be read: ${cause.message}`, { cause });
  });
  if (found.size > MAX_CONFIG) {
    throw new BnbError("ERR_BNB_FORMAT", `config.json: must have at most ${MAX_CONFIG} bytes, has ${found.size}`);
  }
  return readFile(path, "utf8");
}

const MAX_CONFIG = 16 << 20;

function readQuantization(config: JsonObject): BitsAndBytesConfig | null {
  const json = config["quantization_config"] ?? null;
  return json === null ? null : BitsAndBytesConfig.fromJSON(json as JsonObject);
}

function dtypeOf(config: JsonObject, asked: DType | "auto" = "auto"): DType {
  if (asked !== "auto") return asked;
  const named = config["dtype"] ?? config["torch_dtype"] ?? "float32";
  if (aFloatDType.holds(named)) return named as DType;
  const rule = `config.json: dtype must be ${aFloatDType.rule}`;
  throw new BnbError("ERR_BNB_FORMAT", `${rule}, got ${JSON.stringify(named)}; give dtype to choose another`);
}

/** Buffers that older versions saved, and that follow from the config. */
const recomputed = /(^|\.)(rotary_emb\.inv_freq|attn\.masked_bias|attn\.bias|attention\.bias|attention\.masked_bias)$/;

function warnOfUnused(names: readonly string[]): void {
  const unused = names.filter((name) => !recomputed.test(name));
  if (unused.length === 0) return;
  const more = unused.length > 5 ? ` and ${unused.length - 5} more` : "";
  process.emitWarning(`fromPretrained: the model has no use for ${unused.slice(0, 5).join(", ")}${more}`, {
    type: "BnbWarning",
    code: "BNB_UNUSED_TENSORS",
  });
}
