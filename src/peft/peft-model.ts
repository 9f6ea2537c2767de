// PeftModel: a model with adapters in it.
import type { Member, Parameter } from "../nn/index.js";
import { Module, Params4bit } from "../nn/index.js";
import { aModule } from "../nn/module.js";
import type { Generator } from "../ops/index.js";
import { aGenerator } from "../ops/random.js";
import {
  aBoolean,
  aFunction,
  anInstance,
  arrayOf,
  aString,
  checkArgument,
  checkFunction,
  either,
} from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { withNearest } from "../tensor/nearest.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { AdapterLayer, MergeLoss } from "./adapter-layer.js";
import { LoraConfig } from "./config.js";
import { adapterLayersOf, inject, trainedBiases } from "./inject.js";
import type { SavedParameter } from "./saved-modules.js";

export interface AddAdapterOptions {
  /** Source of the initial values; default the global one. */
  generator?: Generator;
}
export interface MergeOptions {
  /** Which adapters, in this order; default the active ones. */
  adapterNames?: readonly string[];
  /** Called with what each quantized layer lost as it was quantized again. */
  onMerged?: (loss: MergeLoss) => void;
}
/** Parameters that learn, and all of them; packed weights count as what they stand for. */
export interface ParameterCount {
  readonly trainable: number;
  readonly all: number;
  /** trainable / all * 100. */
  readonly percent: number;
}

const addOptions = optionTable<AddAdapterOptions>({ generator: aGenerator });
const mergeOptions = optionTable<MergeOptions>({ adapterNames: arrayOf(aString), onMerged: aFunction });
const setOptions = optionTable<{ inferenceMode?: boolean }>({ inferenceMode: aBoolean });
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

  /** Makes one adapter active, or several, whose updates add up; they learn unless `inferenceMode` is true. */
  setAdapter(name: string | readonly string[], options: { inferenceMode?: boolean } = {}): void {
    checkArgument("setAdapter", "name", name, names);
    checkOptions("setAdapter", options, setOptions);
    const wanted = typeof name === "string" ? [name] : name;
    for (const item of wanted) this.#known("setAdapter", item);
    this.#refuseMerged("setAdapter");
    this.#frozen = options.inferenceMode ?? false;
    this.#activate([...new Set(wanted)]);
  }

  /** Whether adapters are added at present. */
  get isEnabled(): boolean {
    return this.#enabled;
  }

  /** The model computes as its base from now on. Biases that learned stay learned. */
  disableAdapters(): void {
    this.#enable(false);
  }

  /** Undoes disableAdapters. */
  enableAdapters(): void {
    this.#enable(true);
  }

  /** Runs `fn` while the model computes as its base: the reference of DPO. `fn` may be async. */
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
    for (const layer of this.layers.values()) layer.deleteAdapter(name);
    for (const parameter of this.#saved.values()) parameter.deleteAdapter(name);
    this.#configs.delete(name);
    const left = this.#active.filter((item) => item !== name);
    const next = [...this.#configs.keys()].slice(0, 1);
    this.#activate(left.length > 0 ? left : next);
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
    this.#merge("mergeAdapter", options, true);
  }

  /** Gives the base the weights back that `mergeAdapter` replaced, to the bit. */
  unmergeAdapter(): void {
    for (const layer of this.layers.values()) layer.unmerge();
  }

  /** Merges as mergeAdapter does, for good, and returns the base without adapters; the PeftModel is of no use any more. */
  mergeAndUnload(options: MergeOptions = {}): M {
    this.unmergeAdapter();
    this.#merge("mergeAndUnload", options, false);
    return this.#takeBase();
  }

  /** The base as it was, without adapters; the PeftModel is of no use any more. */
  unload(): M {
    this.unmergeAdapter();
    for (const parameter of this.#saved.values()) parameter.activate([]);
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

  #takeBase(): M {
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
    this.#enabled = on;
    for (const layer of this.layers.values()) layer.setEnabled(on);
    for (const parameter of this.#saved.values()) parameter.activate(on ? this.#active : []);
  }

  #activate(active: readonly string[]): void {
    this.#active = active;
    for (const layer of this.layers.values()) {
      layer.setActive(active);
      layer.setEnabled(this.#enabled);
    }
    for (const parameter of this.#saved.values()) parameter.activate(this.#enabled ? active : []);
    for (const [name, config] of this.#configs) {
      const learns = active.includes(name) && !this.#frozen;
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
