// What of a model with adapters goes into the folder of one adapter, and comes from there.
import { join } from "node:path";
import type { WritableTensor } from "../hub/index.js";
import type { Module } from "../nn/index.js";
import { Embedding, Parameter } from "../nn/index.js";
import { isFloat } from "../tensor/dtype.js";
import type { Tensor } from "../tensor/tensor.js";
import { baseKey, loadTensors, openAdapter, saveAdapter, tensorsOf, WEIGHTS } from "./adapter-files.js";
import type { LoraConfig } from "./config.js";
import { originalText } from "./config-file.js";
import { adapterLayersOf, trainedBiases } from "./inject.js";
import { LoraAdapter } from "./lora-adapter.js";
import type { SavedParameter } from "./saved-modules.js";
import { isHead } from "./targets.js";

/** A model with adapters, as files see it. */
export interface Adapted {
  readonly model: Module;
  readonly savedParameters: ReadonlyMap<string, SavedParameter>;
}

/** Whether tables of embeddings are saved, too: see `SavePeftOptions`. */
export type SaveEmbeddings = boolean | "auto";

/** Saves one adapter into a folder. */
export async function saveOne(
  { model, savedParameters }: Adapted,
  name: string,
  config: LoraConfig,
  folder: string,
  saveEmbeddings: SaveEmbeddings,
  convertStart: boolean,
): Promise<void> {
  const tensors = new Map<string, WritableTensor>(wantedOf(model, savedParameters, name, config));
  const { initLoraWeights: start, loftqConfig, targetModules } = config;
  const isPart = start === "pissa" || start === "olora";
  if (isPart && convertStart) addStarts(model, name, tensors);
  else if (isPart) {
    const rule = `a base that "${start}" took a part from; convertStart: true saves it for the base as it was`;
    warnOfStart(folder, rule);
  } else if (start === "loftq" && (loftqConfig.loftqIter ?? 1) > 1) {
    const rule = `the 4-bit base that "loftq" made in ${loftqConfig.loftqIter} iterations, which another one quantized is not`;
    warnOfStart(folder, `${rule}; save that, too, or let loftqIter be 1`);
  }
  for (const [key, table] of tablesOf(model)) {
    const isTargeted = key.endsWith(".base_layer.weight");
    const isWanted = saveEmbeddings === "auto" ? isTargeted && hasLora(model, key, name) : saveEmbeddings;
    if (isWanted && !tensors.has(key)) tensors.set(key, table);
  }
  const saved = isPart && convertStart ? doubled(config) : config;
  const isShorthand = targetModules === "all-linear" && originalText(saved) === null;
  await saveAdapter(folder, isShorthand ? saved.with({ targetModules: pathsOf(model, name) }) : saved, tensors);
}

/** The layers that have LoRA: PEFT knows what "all-linear" means in models of transformers alone. */
function pathsOf(model: Module, name: string): string[] {
  const layers = [...adapterLayersOf(model)].filter(([, layer]) => layer.adapters.get(name) instanceof LoraAdapter);
  return layers.map(([path]) => path);
}

function hasLora(model: Module, key: string, name: string): boolean {
  const layer = [...adapterLayersOf(model)].find(([path]) => baseKey(`${path}.base_layer.weight`) === key)?.[1];
  return layer?.adapters.get(name) instanceof LoraAdapter;
}

/** B A - B0 A0 as one product of twice the rank, in the place of A and B. */
function addStarts(model: Module, name: string, tensors: Map<string, WritableTensor>): void {
  for (const [path, layer] of adapterLayersOf(model)) {
    const adapter = layer.adapters.get(name);
    if (!(adapter instanceof LoraAdapter) || !adapter.start) continue;
    const { r, loraA, loraB, start } = adapter;
    const [inputs, outputs] = [loraA.shape[1] as number, loraB.shape[0] as number];
    const a = Float32Array.from([...loraA.floatsSync(), ...start.a]);
    const b = new Float32Array(outputs * 2 * r);
    const now = loraB.floatsSync();
    for (let i = 0; i < outputs; i++) {
      for (let j = 0; j < r; j++) {
        b[i * 2 * r + j] = now[i * r + j] as number;
        b[i * 2 * r + r + j] = -(start.b[i * r + j] as number);
      }
    }
    const file = (data: Float32Array, shape: number[]): WritableTensor => {
      return { dtype: "F32", shape, bytes: new Uint8Array(data.buffer) };
    };
    tensors.set(baseKey(`${path}.lora_A.weight`), file(a, [2 * r, inputs]));
    tensors.set(baseKey(`${path}.lora_B.weight`), file(b, [outputs, 2 * r]));
  }
}

/** Settings of twice the rank and the same scale. */
function doubled(config: LoraConfig): LoraConfig {
  const factor = config.useRslora ? Math.SQRT2 : 2;
  const times = (patterns: Readonly<Record<string, number>>, by: number): Record<string, number> =>
    Object.fromEntries(Object.entries(patterns).map(([key, value]) => [key, value * by]));
  return config.with({
    r: 2 * config.r,
    loraAlpha: factor * config.loraAlpha,
    rankPattern: times(config.rankPattern, 2),
    alphaPattern: times(config.alphaPattern, factor),
    initLoraWeights: true,
  });
}

function warnOfStart(folder: string, base: string): void {
  process.emitWarning(`${folder}: the adapter belongs to ${base}`, { type: "BnbWarning", code: "BNB_ADAPTER_START" });
}

/** Opens a folder, adds its adapter by `add`, and loads the tensors into it; `remove` undoes it where that fails. */
export async function loadOne(
  { model, savedParameters }: Adapted,
  folder: string,
  name: string,
  add: (config: LoraConfig) => void,
  remove: () => void,
): Promise<void> {
  const { config, source } = await openAdapter(folder);
  try {
    add(config);
    try {
      const wanted = wantedOf(model, savedParameters, name, config);
      for (const [key, tensor] of [...wanted]) {
        // Older files name the bias of a wrapped layer by the layer.
        const older = key.replace(/\.base_layer\.bias$/, ".bias");
        if (older === key || source.has(key) || !source.has(older)) continue;
        wanted.delete(key);
        wanted.set(older, tensor);
      }
      await loadTensors(source, wanted, tablesOf(model), join(folder, WEIGHTS));
    } catch (error) {
      remove();
      throw error;
    }
  } finally {
    await source.close();
  }
}

/** All that an adapter consists of, by its names in the file. */
function wantedOf(
  model: Module,
  saved: ReadonlyMap<string, SavedParameter>,
  name: string,
  config: LoraConfig,
): Map<string, Tensor> {
  const found = tensorsOf(adapterLayersOf(model), name);
  for (const [path, parameter] of saved) {
    const own = parameter.of(name);
    if (own) found.set(baseKey(path), own);
  }
  for (const [path, bias] of trainedBiases(model, config))
    if (!found.has(baseKey(path))) found.set(baseKey(path), bias);
  return found;
}

/** The tables of embeddings and heads, of floats, by their names in the file. */
function tablesOf(model: Module): Map<string, Tensor> {
  const found = new Map<string, Tensor>();
  for (const [path, module] of model.namedModules()) {
    const isTable = module instanceof Embedding || isHead(path.replace(/\.base_layer$/, ""));
    const weight: unknown = isTable ? Reflect.get(module, "weight") : undefined;
    if (weight instanceof Parameter && isFloat(weight.dtype) && weight.constructor === Parameter) {
      found.set(baseKey(`${path}.weight`), weight);
    }
  }
  return found;
}
