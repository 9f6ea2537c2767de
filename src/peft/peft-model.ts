// PeftModel: a model with adapters in it.
import { join } from "node:path";
import type { Member, Parameter } from "../nn/index.js";
import { Module, Params4bit } from "../nn/index.js";
import { aModule } from "../nn/module.js";
import { aFiniteNumber, anInstance, arrayOf, aString, checkArgument, checkFunction, either } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { withNearest } from "../tensor/nearest.js";
import { checkOptions } from "../tensor/options.js";
import { adapterFolder } from "./adapter-files.js";
import type { AdapterLayer } from "./adapter-layer.js";
import { combinedConfig, fillCombination } from "./combine.js";
import { LoraConfig } from "./config.js";
import { adapterLayersOf, inject, trainedBiases } from "./inject.js";
import { LoraAdapter } from "./lora-adapter.js";
import { LoraLinear } from "./lora-linear.js";
import type {
  AddAdapterOptions,
  LoadAdapterOptions,
  MergeOptions,
  ParameterCount,
  PeftFromPretrainedOptions,
  SavePeftOptions,
  WeightedOptions,
} from "./peft-options.js";
import {
  addOptions,
  fromOptions,
  loadOptions,
  mergeOptions,
  saveOptions,
  setOptions,
  weightedOptions,
} from "./peft-options.js";
import { loadOne, saveOne } from "./persist.js";
import type { SavedParameter } from "./saved-modules.js";
import { restoreStart } from "./starts.js";

const names = either(aString, arrayOf(aString));
const aConfig = anInstance(() => LoraConfig, "a LoraConfig");

// Which models have adapters of a PeftModel: two of them would freeze each other's.
const adapted = new WeakSet<Module>();

/**
 * A model with adapters in it; `getPeftModel` and `PeftModel.fromPretrained` make it. `model` is the base, whose layers now
 * add the active adapters to what they compute: hand it to `generate`. Owns the base.
 */
export class PeftModel<M extends Module = Module> extends Module {
  /** The base model, with adapters around its layers. */
  model: M;
  readonly #configs = new Map<string, LoraConfig>();
  readonly #saved = new Map<string, SavedParameter>();
  #active: readonly string[] = [];
  #frozen = false;
  // Loaded without isTrainable.
  readonly #fixed = new Set<string>();
  #enabled = true;

  /** @internal Freezes the base. Throws ERR_BNB_OPTION for a model that has adapters. */
  constructor(model: M) {
    super();
    checkArgument("PeftModel", "model", model, aModule);
    if (model instanceof PeftModel || adapted.has(model) || adapterLayersOf(model).size > 0) {
      const rule = "PeftModel: model must have no adapters yet";
      throw new BnbError("ERR_BNB_OPTION", `${rule}, got one with some; addAdapter of its PeftModel adds another`);
    }
    this.model = model;
    this.training = model.training;
  }

  /** @internal The base becomes this one's; call it when its first adapter is there. */
  adopt(): void {
    adapted.add(this.model);
  }

  /** Settings of the adapters by name. */
  get peftConfig(): ReadonlyMap<string, LoraConfig> {
    return this.#configs;
  }

  /** Names of the adapters that take part, in their order; also while they are disabled. */
  get activeAdapters(): readonly string[] {
    return this.#active;
  }

  /** @internal */
  get layers(): Map<string, AdapterLayer> {
    return adapterLayersOf(this.model);
  }

  /** @internal */
  get savedParameters(): ReadonlyMap<string, SavedParameter> {
    return this.#saved;
  }

  /** Whatever the base computes. */
  forward(...inputs: Parameters<M["forward"]>): ReturnType<M["forward"]> {
    return this.model.forward(...(inputs as never[])) as ReturnType<M["forward"]>;
  }

  /**
   * Adds another adapter, which `setAdapter` makes active; the first is so at once. Throws ERR_BNB_OPTION for a name that is
   * taken and for targets that match nothing; nothing changes then.
   */
  addAdapter(name: string, config: LoraConfig, options: AddAdapterOptions = {}): void {
    this.addUnder("addAdapter", name, config, options);
  }

  /** @internal addAdapter, with another name in errors. */
  addUnder(op: string, name: string, config: LoraConfig, options: AddAdapterOptions = {}): void {
    checkArgument(op, "adapterName", name, aString);
    checkArgument(op, "config", config, aConfig);
    checkOptions(op, options, addOptions);
    if (!/^[\w-]+$/.test(name) || name === "base_layer" || name === "base") {
      const rule = `${op}: adapterName must be letters, digits, _ and -, and not base_layer`;
      throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${JSON.stringify(name)}`);
    }
    if (this.#configs.has(name)) {
      throw new BnbError("ERR_BNB_OPTION", `${op}: adapterName must be new, got ${name}, which exists`);
    }
    const biased = [...this.#configs].find(([, { bias }]) => bias !== "none");
    if (biased && config.bias !== "none") {
      const rule = `${op}: only one adapter may train the base's biases`;
      throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${name} beside ${biased[0]}`);
    }
    this.#refuseMerged(op);
    inject(op, this.model, name, config, this.#saved, options);
    if (this.#configs.size === 0) this.model.requiresGrad_(false);
    this.#configs.set(name, config);
    this.#activate(this.#active.length === 0 ? [name] : this.#active);
  }

  /**
   * Makes one adapter active, or several, whose updates add up; they learn unless `inferenceMode` is true. One that was
   * loaded without isTrainable learns only with `inferenceMode: false`.
   */
  setAdapter(name: string | readonly string[], options: { inferenceMode?: boolean } = {}): void {
    checkArgument("setAdapter", "name", name, names);
    checkOptions("setAdapter", options, setOptions);
    const wanted = typeof name === "string" ? [name] : name;
    for (const item of wanted) this.#known("setAdapter", item);
    this.#refuseMerged("setAdapter");
    this.#frozen = options.inferenceMode ?? false;
    // Asked for by name, an adapter learns unless it is said otherwise.
    if (options.inferenceMode === false) for (const item of wanted) this.#fixed.delete(item);
    this.#activate([...new Set(wanted)]);
  }

  /** Whether adapters are added at present. */
  get isEnabled(): boolean {
    return this.#enabled;
  }

  /** The model computes as its base from now on; merged adapters are unmerged. Biases that learned stay learned. */
  disableAdapters(): void {
    this.#enable(false);
  }

  /** Undoes disableAdapters. */
  enableAdapters(): void {
    this.#enable(true);
  }

  /**
   * Runs `fn` while the model computes as its base: the reference of DPO. `fn` may be async. Merged adapters are unmerged, and
   * stay so.
   */
  withoutAdapters<T>(fn: () => T): T {
    checkFunction("withoutAdapters", "fn", fn);
    const before = this.#enabled;
    this.#enable(false);
    let pending = false;
    try {
      const result = fn();
      if (result instanceof Promise) {
        pending = true;
        return result.finally(() => this.#enable(before)) as T;
      }
      return result;
    } finally {
      if (!pending) this.#enable(before);
    }
  }

  /** Removes an adapter. If it was the active one, the first that is left becomes so. */
  deleteAdapter(name: string): void {
    this.#known("deleteAdapter", name);
    this.#refuseMerged("deleteAdapter");
    for (const layer of this.layers.values()) {
      giveBack(layer, name);
      layer.deleteAdapter(name);
    }
    for (const parameter of this.#saved.values()) parameter.deleteAdapter(name);
    this.#freezeBiases(this.#configs.get(name) as LoraConfig);
    this.#configs.delete(name);
    this.#fixed.delete(name);
    const left = this.#active.filter((item) => item !== name);
    const next = [...this.#configs.keys()].slice(0, 1);
    this.#activate(left.length > 0 ? left : next);
  }

  /**
   * Adds an adapter, inactive, that does what the sum of others does, each with a weight. As in PEFT its other settings are
   * those of the first; with useRslora that includes a scale of sqrt(r). Throws ERR_BNB_OPTION where one of the adapters has
   * DoRA, whole modules or rows of tokens, and for different ranks with "linear".
   *
   * @example
   * model.addWeightedAdapter(["style", "facts"], [0.7, 0.5], "both", { combinationType: "cat" });
   * model.setAdapter("both");
   */
  addWeightedAdapter(
    adapters: readonly string[],
    weights: readonly number[],
    name: string,
    options: WeightedOptions = {},
  ): void {
    const op = "addWeightedAdapter";
    checkArgument(op, "adapters", adapters, arrayOf(aString));
    checkArgument(op, "weights", weights, arrayOf(aFiniteNumber));
    checkOptions(op, options, weightedOptions);
    if (adapters.length === 0 || adapters.length !== weights.length) {
      const rule = `${op}: there must be adapters, and a weight for each`;
      throw new BnbError("ERR_BNB_ARGUMENT", `${rule}, got ${adapters.length} and ${weights.length}`);
    }
    for (const item of adapters) this.#known(op, item);
    const configs = adapters.map((item) => this.#configs.get(item) as LoraConfig);
    const { combinationType = "svd", svdRank } = options;
    const layers = [...this.layers].filter(([, layer]) => adapters.some((item) => layer.adapters.has(item)));
    const paths = layers.map(([path]) => path);
    const config = combinedConfig(configs, paths, combinationType, svdRank);
    this.addUnder(op, name, config);
    fillCombination(this.layers, name, adapters, weights, combinationType);
  }

  /** Adds the adapter of a folder or of the hub as PEFT saves it, inactive. Errors as those of `fromPretrained`; nothing changes then. */
  async loadAdapter(folder: string, name: string, options: LoadAdapterOptions = {}): Promise<void> {
    checkArgument("loadAdapter", "folder", folder, aString);
    checkArgument("loadAdapter", "name", name, aString);
    checkOptions("loadAdapter", options, loadOptions);
    await this.loadUnder("loadAdapter", folder, name, options);
  }

  /** @internal loadAdapter, with another name in errors. */
  async loadUnder(op: string, folder: string, name: string, options: LoadAdapterOptions): Promise<void> {
    const { revision, token, signal } = options;
    const place = await adapterFolder(folder, { revision, token, signal });
    const add = (config: LoraConfig): void => this.addUnder(op, name, config);
    await loadOne(this, place, name, add, () => this.deleteAdapter(name));
    if (options.isTrainable) return;
    this.#fixed.add(name);
    this.#activate(this.#active);
  }

  /**
   * A model with the adapter of a folder, or of an id of the hub such as "org/adapter", as Python's PEFT saves it:
   * `adapter_config.json` and `adapter_model.safetensors`.
   * The model is changed in place, frozen, and belongs to the result.
   *
   * Throws ERR_BNB_FILE where there is no adapter, ERR_BNB_UNSUPPORTED for settings that have no meaning here,
   * ERR_BNB_FORMAT for tensors of another model and ERR_BNB_SHAPE for another rank or size, naming the first of them;
   * the model is then without adapters.
   *
   * @example
   * const base = await AutoModelForCausalLM.fromPretrained("llama", { quantizationConfig });
   * const model = await PeftModel.fromPretrained(base, "my-adapter");
   * for await (const text of streamText(model.model, "Hello")) process.stdout.write(text);
   */
  static async fromPretrained<M extends Module>(
    model: M,
    folder: string,
    options: PeftFromPretrainedOptions = {},
  ): Promise<PeftModel<M>> {
    checkArgument("PeftModel.fromPretrained", "folder", folder, aString);
    checkOptions("PeftModel.fromPretrained", options, fromOptions);
    const { adapterName = "default", ...rest } = options;
    const peft = new PeftModel(model);
    try {
      await peft.loadUnder("PeftModel.fromPretrained", folder, adapterName, rest);
    } catch (error) {
      peft.unload();
      throw error;
    }
    peft.adopt();
    return peft;
  }

  /**
   * Saves adapters as PEFT does, so that Python loads them: "default" into the folder, others into folders of their names
   * within it. Files get their names when they are complete. What was loaded and did not change gives the same bytes.
   */
  async savePretrained(folder: string, options: SavePeftOptions = {}): Promise<void> {
    checkArgument("PeftModel.savePretrained", "folder", folder, aString);
    checkOptions("PeftModel.savePretrained", options, saveOptions);
    const {
      selectedAdapters = [...this.#configs.keys()],
      saveEmbeddingLayers = "auto",
      convertStart = false,
    } = options;
    for (const name of selectedAdapters) this.#known("PeftModel.savePretrained", name);
    this.#refuseMerged("PeftModel.savePretrained");
    for (const name of selectedAdapters) {
      const own = name === "default" ? folder : join(folder, name);
      const config = this.#configs.get(name) as LoraConfig;
      await saveOne(this, name, config, own, saveEmbeddingLayers, convertStart);
    }
  }

  /** How many parameters learn. */
  trainableParameters(): ParameterCount {
    let [trainable, all] = [0, 0];
    for (const parameter of this.parameters()) {
      const shape = unpackedShape(parameter);
      const size = shape.reduce((product, length) => product * length, 1);
      all += size;
      if (parameter.requiresGrad) trainable += size;
    }
    return { trainable, all, percent: all === 0 ? 0 : (100 * trainable) / all };
  }

  /** Writes what `trainableParameters` counts to the console, as PEFT does. */
  printTrainableParameters(): void {
    const { trainable, all, percent } = this.trainableParameters();
    const count = (n: number): string => n.toLocaleString("en-US");
    console.log(
      `trainable params: ${count(trainable)} || all params: ${count(all)} || trainable%: ${percent.toFixed(4)}`,
    );
  }

  /**
   * Adds adapters to the weights of the base, which compute the same without their cost, up to rounding: float weights in
   * float32; quantized ones are quantized again, which loses something, see `onMerged`. What was replaced is kept
   * for `unmergeAdapter`. Throws ERR_BNB_NONFINITE where a weight would not be finite; what was merged is then undone.
   */
  mergeAdapter(options: MergeOptions = {}): void {
    if (!this.#enabled) {
      const rule = "mergeAdapter: the adapters must be enabled, as the model is to compute with them";
      throw new BnbError("ERR_BNB_ARGUMENT", `${rule}; enableAdapters() first`);
    }
    this.#merge("mergeAdapter", options, true);
  }

  /** Gives the base the weights back that `mergeAdapter` replaced, to the bit. */
  unmergeAdapter(): void {
    for (const layer of this.layers.values()) layer.unmerge();
    this.#placeSaved();
  }

  /** Merges as mergeAdapter does, for good, and returns the base without adapters; the PeftModel is of no use any more. */
  mergeAndUnload(options: MergeOptions = {}): M {
    this.unmergeAdapter();
    this.#merge("mergeAndUnload", options, options?.safeMerge === true);
    return this.#takeBase();
  }

  /** The base as it was, without adapters; the PeftModel is of no use any more. */
  unload(): M {
    this.unmergeAdapter();
    for (const parameter of this.#saved.values()) parameter.activate([]);
    for (const layer of this.layers.values()) for (const name of layer.adapters.keys()) giveBack(layer, name);
    return this.#takeBase();
  }

  #merge(op: string, options: MergeOptions, keepBefore: boolean): void {
    checkOptions(op, options, mergeOptions);
    const wanted = options.adapterNames ?? this.#active;
    for (const name of wanted) this.#known(op, name);
    this.#refuseMerged(op);
    const done: AdapterLayer[] = [];
    try {
      for (const [path, layer] of this.layers) {
        const loss = layer.merge(wanted, path, keepBefore);
        done.push(layer);
        if (loss) options.onMerged?.(loss);
      }
    } catch (error) {
      if (keepBefore) for (const layer of done) layer.unmerge();
      throw error;
    }
    for (const parameter of this.#saved.values()) parameter.activate(wanted);
  }

  /** The base's own, when nothing is left that they learned with. */
  #freezeBiases(config: LoraConfig): void {
    for (const bias of trainedBiases(this.model, config).values()) bias.requiresGrad = false;
  }

  #takeBase(): M {
    for (const config of this.#configs.values()) this.#freezeBiases(config);
    const held = holdersOf(this.model);
    for (const [parent, field, layer] of held) parent.replaceMember(field, layer.baseLayer);
    for (const [, , layer] of held) layer.disposeAdapters();
    for (const parameter of this.#saved.values()) parameter.release();
    this.#saved.clear();
    this.#configs.clear();
    this.#active = [];
    adapted.delete(this.model);
    return this.model;
  }

  #enable(on: boolean): void {
    if (!on) this.unmergeAdapter();
    this.#enabled = on;
    for (const layer of this.layers.values()) layer.setEnabled(on);
    this.#placeSaved();
  }

  /** What stands in the modules that are saved as a whole: what the active adapters have, or the base's. */
  #placeSaved(): void {
    for (const parameter of this.#saved.values()) parameter.activate(this.#enabled ? this.#active : []);
  }

  #activate(active: readonly string[]): void {
    this.#active = active;
    for (const layer of this.layers.values()) {
      layer.setActive(active);
      layer.setEnabled(this.#enabled);
    }
    this.#placeSaved();
    for (const [name, config] of this.#configs) {
      const learns = active.includes(name) && !this.#frozen && !this.#fixed.has(name);
      for (const parameter of this.parametersOf(name)) parameter.requiresGrad = learns;
      for (const bias of trainedBiases(this.model, config).values()) bias.requiresGrad = learns;
    }
  }

  /** The parameters of one adapter: what an optimizer is given. Biases of the base are not among them. */
  parametersOf(name: string): Parameter[] {
    this.#known("parametersOf", name);
    const inLayers = [...this.layers.values()].flatMap((layer) => layer.adapters.get(name)?.tensors ?? []);
    return [...inLayers, ...[...this.#saved.values()].flatMap((parameter) => parameter.of(name) ?? [])];
  }

  #known(op: string, name: string): void {
    checkArgument(op, "name", name, aString);
    if (this.#configs.has(name)) return;
    const known = [...this.#configs.keys()];
    const rule = `${op}: the adapter must be one of ${known.join(", ")}`;
    throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${withNearest(name, known)}`);
  }

  #refuseMerged(op: string): void {
    const merged = [...this.layers.values()].find((layer) => layer.mergedAdapters.length > 0)?.mergedAdapters;
    if (!merged) return;
    const rule = `${op}: no adapter must be merged, got ${merged.join(", ")}`;
    throw new BnbError("ERR_BNB_ARGUMENT", `${rule}; unmergeAdapter() first`);
  }

  override members(): Member[] {
    const saved = [...this.#saved].map(([path, value]) => ({ field: path, name: null, value }));
    return [...super.members(), ...saved];
  }
}

/** Undoes what an adapter that began as a part of the base's weight took from it, up to rounding. */
function giveBack(layer: AdapterLayer, name: string): void {
  const adapter = layer.adapters.get(name);
  if (layer instanceof LoraLinear && adapter instanceof LoraAdapter) restoreStart(layer, adapter);
}

/** Where layers with adapters are held. */
function holdersOf(model: Module): [parent: Module, field: string, layer: AdapterLayer][] {
  const layers = new Set<Module>(adapterLayersOf(model).values());
  return model
    .modules()
    .flatMap((parent) =>
      parent
        .members()
        .flatMap(({ field, value }): [Module, string, AdapterLayer][] =>
          value instanceof Module && layers.has(value) ? [[parent, field, value as AdapterLayer]] : [],
        ),
    );
}

function unpackedShape(parameter: Parameter): readonly number[] {
  return (parameter instanceof Params4bit ? parameter.quantState?.shape : null) ?? parameter.shape;
}
