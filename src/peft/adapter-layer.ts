// What layers with adapters share: several adapters by name, which of them are active, and whether they are merged.
import { noGrad } from "../autograd/no-grad.js";
import type { Member, Parameter, StateDict } from "../nn/index.js";
import { Module } from "../nn/index.js";
import { clone, mul, sub, sum } from "../ops/index.js";
import { firstNonFinite } from "../ops/non-finite.js";
import { BnbError } from "../tensor/errors.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { floatWeight, quantizedFormat } from "./base-weight.js";

/** What merging into a quantized layer lost. */
export interface MergeLoss {
  /** Path of the layer. */
  readonly name: string;
  readonly format: "nf4" | "fp4" | "int8";
  /**
   * Root of the mean squared difference between the merged weights that the layer computes with and those before they were
   * quantized again, relative to their root mean square: of inputs that are white noise, the error of the outputs.
   */
  readonly relative: number;
}

/** What one adapter holds for one layer. */
export interface LayerAdapter extends Module {
  /** Every tensor that learns. */
  readonly tensors: Parameter[];
}

/** A base layer that stays as it is, and adapters beside it. */
export abstract class AdapterLayer<Base extends Module = Module, A extends LayerAdapter = LayerAdapter> extends Module {
  baseLayer: Base;
  readonly #adapters = new Map<string, A>();
  #active: readonly string[] = [];
  #enabled = true;
  #merged: readonly string[] = [];
  // What merging replaced, as the layer saves it.
  #before: StateDict | null = null;

  constructor(base: Base) {
    super();
    this.baseLayer = base;
  }

  /** The weight with an adapter in it, float32. */
  protected abstract mergedWith(adapter: A, weight: Tensor): Tensor;

  /** Adapters by name. */
  get adapters(): ReadonlyMap<string, A> {
    return this.#adapters;
  }

  /** Names of the adapters that take part, in their order. */
  get activeAdapters(): readonly string[] {
    return this.#active;
  }

  /** Names of the adapters that are part of the base's weight now. */
  get mergedAdapters(): readonly string[] {
    return this.#merged;
  }

  /** Those of the names that this layer has become active. */
  setActive(names: readonly string[]): void {
    this.#active = names.filter((name) => this.#adapters.has(name));
  }

  setEnabled(on: boolean): void {
    this.#enabled = on;
  }

  /** The adapters that the forward pass adds: none while they are disabled, or merged into the weight. */
  protected get applied(): A[] {
    if (!this.#enabled || this.#merged.length > 0) return [];
    return this.#active.map((name) => this.#adapters.get(name) as A);
  }

  protected put(name: string, adapter: A): A {
    adapter.train(this.training);
    this.#adapters.set(name, adapter);
    return adapter;
  }

  deleteAdapter(name: string): void {
    this.#adapters.get(name)?.dispose();
    this.#adapters.delete(name);
    this.setActive(this.#active);
  }

  /**
   * Adds the adapters to the base's weight, which stays in its format: quantized weights are decoded, changed and quantized
   * again. With `keepBefore` the old one is kept for `unmerge`. Returns what quantizing lost; null for floats.
   *
   * Throws ERR_BNB_NONFINITE where the result would not be finite, and changes nothing then.
   */
  merge(names: readonly string[], path: string, keepBefore: boolean): MergeLoss | null {
    const adapters = names.flatMap((name) => this.#adapters.get(name) ?? []);
    if (adapters.length === 0 || this.#merged.length > 0) return null;
    const loss = noGrad(() =>
      tidy(() => {
        const before = floatWeight(this.baseLayer);
        const merged = adapters.reduce((weight, adapter) => this.mergedWith(adapter, weight), before);
        const bad = firstNonFinite(merged);
        if (bad) {
          const rule = `merge: the merged weight of ${path} must be finite`;
          throw new BnbError("ERR_BNB_NONFINITE", `${rule}, got ${bad.value} at ${bad.index}`);
        }
        const biases = this.biasUpdate(adapters, path);
        const kept = keepBefore ? copies(this.baseLayer, biases !== null) : null;
        this.#load(merged, biases);
        this.#before = kept;
        return this.#lossOf(merged, path);
      }),
    );
    this.#merged = names.filter((name) => this.#adapters.has(name));
    return loss;
  }

  /** The base's bias with that of the adapters, float32; null where they have none. */
  protected biasUpdate(_adapters: readonly A[], _path: string): Tensor | null {
    return null;
  }

  #load(weight: Tensor, bias: Tensor | null): void {
    const base = this.baseLayer;
    const state = quantizedFormat(base)?.state;
    const values: Record<string, Tensor> = { weight: state ? weight.cast(state.dtype) : weight };
    if (bias) values["bias"] = bias;
    base.loadStateDict(values, { strict: false });
  }

  #lossOf(wanted: Tensor, name: string): MergeLoss | null {
    const format = quantizedFormat(this.baseLayer)?.format;
    if (!format) return null;
    const error = lengthOf(sub(floatWeight(this.baseLayer), wanted));
    const size = lengthOf(wanted);
    return { name, format, relative: size === 0 ? 0 : error / size };
  }

  /** Gives the base the weight back that it had before `merge`. */
  unmerge(): void {
    if (this.#merged.length === 0) return;
    if (this.#before) noGrad(() => this.baseLayer.loadStateDict(this.#before as StateDict, { strict: false }));
    this.#forget();
    this.#merged = [];
  }

  #forget(): void {
    for (const tensor of this.#before?.values() ?? []) tensor.dispose();
    this.#before = null;
  }

  override members(): Member[] {
    const own = super.members();
    return [...own, ...[...this.#adapters].map(([name, value]) => ({ field: name, name, value }))];
  }

  /** Frees the adapters and leaves the base. */
  disposeAdapters(): void {
    for (const name of [...this.#adapters.keys()]) this.deleteAdapter(name);
    this.#forget();
  }

  override dispose(): void {
    super.dispose();
    this.#forget();
  }
}

function lengthOf(matrix: Tensor): number {
  return Math.sqrt(sum(mul(matrix, matrix)).itemSync());
}

/** Copies of the weight, with its statistics, and of the bias if it changes. */
function copies(layer: Module, withBias: boolean): StateDict {
  const entries = [...layer.stateDict()].filter(([name]) => withBias || name !== "bias");
  return new Map(entries.map(([name, tensor]) => [name, keep(clone(tensor))]));
}
