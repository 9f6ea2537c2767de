// Puts the parts of one adapter into a model: layers around its targets, rows of its embeddings, copies of whole modules.
import type { Module, Parameter } from "../nn/index.js";
import { Embedding } from "../nn/index.js";
import { BnbError } from "../tensor/errors.js";
import { withNearest } from "../tensor/nearest.js";
import { AdapterLayer } from "./adapter-layer.js";
import type { LoraConfig } from "./config.js";
import { originalText } from "./config-file.js";
import type { LoraOptions } from "./lora-adapter.js";
import { LoraEmbedding } from "./lora-embedding.js";
import { LoraLayer } from "./lora-layer.js";
import type { LinearLike } from "./lora-linear.js";
import { LoraLinear, withoutAdapter } from "./lora-linear.js";
import type { SavedParameter } from "./saved-modules.js";
import { savedParametersOf } from "./saved-modules.js";
import { checkStart, startFromWeight } from "./starts.js";
import type { Site } from "./targets.js";
import { findTargets, isNamed, namesOf, sitesOf } from "./targets.js";
import { TrainableTokens } from "./trainable-tokens.js";

export interface InjectOptions {
  readonly generator?: LoraOptions["generator"];
}

/** Layers with adapters by their paths; one that is used in several places has the first. */
export function adapterLayersOf(model: Module): Map<string, AdapterLayer> {
  const found = new Map<string, AdapterLayer>();
  for (const [path, module] of model.namedModules()) if (module instanceof AdapterLayer) found.set(path, module);
  return found;
}

/** Parts of paths that a classifier's head has: trained and saved with adapters of the task SEQ_CLS. */
const classifierHeads = ["classifier", "score"];

/** The modules that an adapter trains and saves as a whole, as names. */
export function savedNames(config: LoraConfig, sites: readonly Site[]): string[] {
  const asked = config.modulesToSave ?? [];
  if (config.taskType !== "SEQ_CLS") return [...asked];
  const added = classifierHeads.filter((name) => sites.some(({ path }) => isNamed(path, [name])));
  return [...new Set([...asked, ...added])];
}

/**
 * Adds an adapter to every part of the model that its config names, inactive. All is found and made before the model
 * changes; ERR_BNB_OPTION where a name matches nothing, unless the config is that of a file.
 */
export function inject(
  op: string,
  model: Module,
  name: string,
  config: LoraConfig,
  saved: Map<string, SavedParameter>,
  { generator }: InjectOptions,
): void {
  if (config.targetParameters?.length) {
    const rule = `${op}: targetParameters must be null, models hold experts as layers, which targetModules names`;
    throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}; got ${config.targetParameters.join(", ")}`);
  }
  const sites = sitesOf(model);
  const isLoaded = originalText(config) !== null;
  const whole = savedNames(config, sites);
  const targets = findTargets(op, sites, config, whole, isLoaded);
  const tokens = tokenTargets(op, sites, config);
  const parameters = wholeParameters(op, sites, whole, saved, isLoaded);
  if (targets.length + tokens.size + parameters.length === 0) {
    const rule = `${op}: the config must name something that learns`;
    throw new BnbError("ERR_BNB_OPTION", `${rule}: targetModules, modulesToSave or trainableTokenIndices, got none`);
  }
  const made = new Map<Module, AdapterLayer>();
  const layerOf = (module: Module, make: () => AdapterLayer): AdapterLayer => {
    if (module instanceof AdapterLayer) return module;
    const layer = made.get(module) ?? make();
    made.set(module, layer);
    return layer;
  };
  const added = new Map<AdapterLayer, () => void>();
  for (const { module, path } of targets) {
    const layer = layerOf(module, () =>
      module instanceof Embedding ? new LoraEmbedding(module) : new LoraLinear(module as LinearLike, withoutAdapter),
    );
    if (!(layer instanceof LoraLayer)) failBoth(op, path);
    const options = optionsOf(config, path, generator);
    const { initLoraWeights: kind, loftqConfig } = config;
    const start = kind === "pissa" || kind === "olora" || kind === "loftq" ? kind : null;
    if (start) checkStart(op, start, layer.baseLayer, path);
    if (added.has(layer)) continue;
    added.set(layer, () => {
      const adapter = layer.addAdapter(name, options);
      if (start) startFromWeight(start, layer as LoraLinear, adapter, loftqConfig.loftqIter);
    });
  }
  for (const [site, indices] of tokens) {
    const layer = layerOf(site.module, () => new TrainableTokens(site.module as Embedding));
    if (!(layer instanceof TrainableTokens)) failBoth(op, site.path);
    added.set(layer, () => layer.addTokens(name, indices));
  }
  const done: AdapterLayer[] = [];
  try {
    for (const [layer, add] of added) {
      add();
      done.push(layer);
    }
  } catch (error) {
    for (const layer of done) layer.deleteAdapter(name);
    throw error;
  }
  for (const { parent, field, module } of sites) {
    const layer = made.get(module);
    if (!layer) continue;
    for (const part of layer.modules()) part.training = module.training;
    parent.replaceMember(field, layer);
  }
  for (const parameter of parameters) {
    saved.set(parameter.path, parameter);
    parameter.addAdapter(name);
  }
}

function optionsOf(config: LoraConfig, path: string, generator: LoraOptions["generator"]): LoraOptions {
  const { loraDropout, useDora, loraBias, initLoraWeights } = config;
  const r = config.rankOf(path);
  const isPlain = typeof initLoraWeights === "boolean" || initLoraWeights === "gaussian";
  return {
    r,
    loraAlpha: config.scalingOf(path) * r,
    ...{ loraDropout, useDora, loraBias },
    initLoraWeights: isPlain ? initLoraWeights : true,
    ...(generator && { generator }),
  };
}

/** The embeddings whose rows learn, with the rows. */
function tokenTargets(op: string, sites: readonly Site[], config: LoraConfig): Map<Site, readonly number[]> {
  const asked = config.trainableTokenIndices;
  const found = new Map<Site, readonly number[]>();
  if (asked === null) return found;
  const embeddings = sites.filter(({ module }) => embeddingOf(module) !== null);
  const byName: [string | null, readonly number[]][] = Array.isArray(asked)
    ? [[null, asked as readonly number[]]]
    : Object.entries(asked as Readonly<Record<string, readonly number[]>>);
  for (const [item, indices] of byName) {
    const site = item === null ? embeddings[0] : embeddings.find(({ path }) => isNamed(path, [item]));
    if (!site || (embeddingOf(site.module) as Embedding).constructor !== Embedding) {
      const rule = `${op}: trainableTokenIndices must be of an embedding of floats`;
      throw new BnbError(
        "ERR_BNB_OPTION",
        `${rule}, got ${withNearest(item ?? "a model without", namesOf(embeddings))}`,
      );
    }
    found.set(site, indices);
  }
  return found;
}

function embeddingOf(module: Module): Embedding | null {
  const base = module instanceof AdapterLayer ? module.baseLayer : module;
  return base instanceof Embedding ? base : null;
}

/** The parameters of modules that are saved whole: those known from other adapters, and new ones. */
function wholeParameters(
  op: string,
  sites: readonly Site[],
  names: readonly string[],
  known: ReadonlyMap<string, SavedParameter>,
  isLoaded: boolean,
): SavedParameter[] {
  const found = new Map<string, SavedParameter>();
  for (const item of names) {
    const matching = sites.filter(({ path }) => isNamed(path, [item]));
    if (matching.length === 0 && !isLoaded) {
      const rule = `${op}: each of modulesToSave must name modules of the model`;
      throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${withNearest(item, namesOf(sites))}`);
    }
    for (const { path, module } of matching) {
      for (const parameter of savedParametersOf(op, path, module)) {
        found.set(parameter.path, known.get(parameter.path) ?? parameter);
      }
    }
  }
  return [...found.values()];
}

function failBoth(op: string, path: string): never {
  const rule = `${op}: an embedding must have either LoRA or trainable tokens`;
  throw new BnbError("ERR_BNB_OPTION", `${rule}, got both at ${path}`);
}

/** The base's own biases that learn with an adapter, by path. */
export function trainedBiases(model: Module, { bias }: LoraConfig): Map<string, Parameter> {
  if (bias === "none") return new Map();
  const layers = [...adapterLayersOf(model)].filter(([, layer]) => layer instanceof LoraLinear);
  const own = layers.flatMap(([path, layer]) =>
    layer.baseLayer.namedParameters(`${path}.base_layer`).filter(([name]) => name === `${path}.base_layer.bias`),
  );
  const all = model.namedParameters().filter(([name]) => /(^|\.)bias$/.test(name));
  return new Map(bias === "lora_only" ? own : all);
}
