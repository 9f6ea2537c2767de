// savePretrained: a model as a folder that transformers reads. What was loaded and did not change is written as it was.
import { readdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { quantizationText, withKeys } from "../hub/config-text.js";
import type { BitsAndBytesConfig, SaveCheckpointOptions } from "../hub/index.js";
import type { Replacement } from "../hub/replace-files.js";
import { replaceFiles } from "../hub/replace-files.js";
import { stageCheckpoint, throwIfAborted } from "../hub/save-checkpoint.js";
import { TensorToWrite } from "../hub/tensor-to-write.js";
import { Linear4bit, Linear8bitLt, Module, Params4bit } from "../nn/index.js";
import { aFunction, aNumberAbove, anAbortSignal, anInstance, aString, checkArgument } from "../tensor/checks.js";
import type { DType } from "../tensor/dtype.js";
import { isFloat } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { CausalLM } from "./causal-lm.js";
import { Encoder } from "./encoder.js";
import { embedFiles } from "./sentence-transformers.js";
import type { Placement, SavedTensor } from "./text-model.js";
import { TextModel } from "./text-model.js";

/** Where a model came from. */
interface Origin {
  /** null for a model that was made from a config alone. */
  readonly folder: string | null;
  readonly configText: string;
  readonly quantizationConfig: BitsAndBytesConfig | null;
  readonly dtype: DType;
  /** Of the model's names of float weights, those that files hold as [in, out]. */
  readonly isTransposed?: ((name: string) => boolean) | undefined;
}
const origins = new WeakMap<Module, Origin>();

/** @internal */
export function rememberOrigin(model: Module, origin: Origin): void {
  origins.set(model, origin);
}

/** @internal The dtype that a model was loaded in. */
export const originDType = (model: Module): DType | undefined => origins.get(model)?.dtype;

/** @internal The model is no longer quantized. */
export function forgetQuantization(model: Module): void {
  const origin = origins.get(model);
  if (origin) origins.set(model, { ...origin, quantizationConfig: null });
}

/** Options of `savePretrained`. */
export type SavePretrainedOptions = Pick<SaveCheckpointOptions, "maxShardSize" | "onProgress" | "signal">;
const saveOptions = optionTable<SavePretrainedOptions>({
  maxShardSize: aNumberAbove(0),
  onProgress: aFunction,
  signal: anAbortSignal,
});
const aModel = anInstance(() => Module, "a model");

/** Files of a model beside its weights, which are copied along. */
const companions =
  /^((generation_config|config_sentence_transformers)\.json|tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|spiece\.model|chat_template\.(jinja|json))$/;

/**
 * Saves a model that `fromPretrained` or `fromConfig` made, or a `LlamaForCausalLM` of floats: weights as they are,
 * quantized ones with their statistics, config.json with its quantization_config, the files of the tokenizer, and an encoder's `embedDefaults` as
 * sentence-transformers reads them. Files
 * get their names when all are complete. A model that was only loaded gives the bytes that it came from. Of one whose
 * layers wait in host memory or on disk, one layer at a time is brought; it may go on generating.
 *
 * Throws ERR_BNB_UNSUPPORTED if llmInt8EnableFp32CpuOffload keeps layers float32.
 *
 * @example
 * const model = await AutoModelForCausalLM.fromPretrained(folder, { quantizationConfig });
 * await savePretrained(model, "model-nf4");
 */
export async function savePretrained(
  model: Module,
  folder: string,
  options: SavePretrainedOptions = {},
): Promise<void> {
  checkArgument("savePretrained", "model", model, aModel);
  checkArgument("savePretrained", "folder", folder, aString);
  checkOptions("savePretrained", options, saveOptions);
  await replaceFiles((files) => stagePretrained(files, model, folder, options));
}

/** @internal As savePretrained; the files get their names with the others of `files`. */
export async function stagePretrained(
  files: Replacement,
  model: Module,
  folder: string,
  options: SavePretrainedOptions = {},
): Promise<void> {
  const origin = origins.get(model) ?? originInCode(model);
  if (!origin) {
    const rule = "savePretrained: model must come from fromPretrained or fromConfig, or be a float Llama";
    throw new BnbError("ERR_BNB_ARGUMENT", `${rule}; saveCheckpoint saves the weights of any model`);
  }
  const { folder: from, isTransposed } = origin;
  const isElsewhere = from !== null && resolve(folder) !== resolve(from);
  let others: string[] = [];
  const placement = model instanceof TextModel && model.isOffloaded ? model.placement : null;
  if (placement) refuseFloatUnits(placement);
  try {
    const saved = placement ? await placement.savedTensors(() => throwIfAborted(options.signal)) : inMemory(model);
    const entries = [...saved].map(([name, { tensor, place }]) => {
      const turns = isFloat(tensor.dtype) && !(tensor instanceof Params4bit) && isTransposed?.(name);
      return [name, turns || place ? new TensorToWrite(tensor, { turns, place }) : tensor] as const;
    });
    if (isElsewhere) others = (await readdir(from)).filter((name) => companions.test(name));
    await stageCheckpoint(files, folder, entries, { ...options, totalParameters: countParameters(model) });
  } finally {
    placement?.release();
  }
  await files.write(join(folder, "config.json"), (file) => file.writeFile(configOf(origin)));
  if (model instanceof Encoder && Object.keys(model.embedDefaults).length > 0) {
    for (const [name, text] of embedFiles(model.embedDefaults, model.config.hiddenSize)) {
      await files.write(join(folder, name), (file) => file.writeFile(text));
    }
  }
  if (from !== null) for (const name of others) await files.copy(join(from, name), join(folder, name));
}

const inMemory = (model: Module): Map<string, SavedTensor> =>
  new Map([...model.stateDict()].map(([name, tensor]) => [name, { tensor, place: null }]));

/** The files would not be those of the config, and another dtype would not read the values as they are. */
function refuseFloatUnits({ floatUnits }: Placement): void {
  if (floatUnits.length === 0) return;
  const rule = "savePretrained: all layers must be quantized as the config says";
  const which = `${floatUnits[0]}${floatUnits.length > 1 ? ` and ${floatUnits.length - 1} more` : ""}`;
  const advice = "load the model without it, and layers wait in 8 bits";
  throw new BnbError(
    "ERR_BNB_UNSUPPORTED",
    `${rule}, got ${which} in float32 by llmInt8EnableFp32CpuOffload; ${advice}`,
  );
}

/** What a model of floats that was made in code says of itself; quantized layers would need more words. */
function originInCode(model: Module): Origin | undefined {
  if (!(model instanceof CausalLM)) return undefined;
  const toJSON = (model.config as { toJSON?: unknown }).toJSON;
  if (typeof toJSON !== "function") return undefined;
  if (model.modules().some((module) => module instanceof Linear4bit || module instanceof Linear8bitLt))
    return undefined;
  const { config, dtype } = model;
  const configText = `${JSON.stringify({ ...(toJSON.call(config) as object), dtype }, null, 2)}\n`;
  return { folder: null, configText, quantizationConfig: null, dtype };
}

/** The config.json that the model came with, and in it how it was quantized and the dtype that it was loaded in. */
function configOf({ configText, quantizationConfig, dtype }: Origin): string {
  const config = JSON.parse(configText) as Record<string, unknown>;
  const changes: Record<string, string | null> = {};
  const dtypeKey = "torch_dtype" in config && !("dtype" in config) ? "torch_dtype" : "dtype";
  if (config[dtypeKey] !== dtype) changes[dtypeKey] = JSON.stringify(dtype);
  const before = JSON.stringify(config["quantization_config"] ?? null);
  const isSame = quantizationConfig === null ? before === "null" : sameJson(config, quantizationConfig);
  if (!isSame) changes["quantization_config"] = quantizationConfig && quantizationText(quantizationConfig);
  return Object.keys(changes).length === 0 ? configText : withKeys(configText, changes);
}

/** Whether the file says already what the config does, by its own keys or by leaving them to their defaults. */
function sameJson(config: Record<string, unknown>, now: BitsAndBytesConfig): boolean {
  const before = config["quantization_config"] as Record<string, unknown> | undefined;
  if (!before) return false;
  const json = now.toJSON();
  return Object.entries(json).every(([key, value]) => JSON.stringify(before[key]) === JSON.stringify(value));
}

/** Elements of all parameters, of packed ones those that they stand for. */
function countParameters(model: Module): number {
  return model.parameters().reduce((sum, parameter) => {
    const shape = parameter instanceof Params4bit ? (parameter.quantState?.shape ?? parameter.shape) : parameter.shape;
    return sum + shape.reduce((product, size) => product * size, 1);
  }, 0);
}
