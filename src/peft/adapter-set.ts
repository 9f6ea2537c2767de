// Several adapters over one base, each for the rows of its own texts: their matrices lie in tables, one A and one B for each
// layer, and a step says which rows have which. The base stays as it is; nothing is merged.
import { join } from "node:path";
import { noGrad } from "../autograd/no-grad.js";
import type { AdapterUse, StepAdapters } from "../generation/step-adapters.js";
import type { CausalLM } from "../models/index.js";
import type { UnaryModule } from "../nn/index.js";
import { Embedding } from "../nn/index.js";
import { cast, concat, loraRows, mul, reshape, slice, to, transpose } from "../ops/index.js";
import { anObjectWith, aString, checkArgument } from "../tensor/checks.js";
import { zeros } from "../tensor/create.js";
import { BnbError } from "../tensor/errors.js";
import { withNearest } from "../tensor/nearest.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { baseKey, loadTensors, openAdapter, WEIGHTS } from "./adapter-files.js";
import { deviceOf } from "./base-weight.js";
import type { LoraConfig } from "./config.js";
import { adapterLayersOf, savedNames } from "./inject.js";
import type { LinearLike } from "./lora-linear.js";
import type { Site } from "./targets.js";
import { findTargets, isHead, sitesOf } from "./targets.js";

/** One adapter, as long as a name or a text holds it. */
interface Entry {
  readonly key: number;
  users: number;
  isUnloaded: boolean;
}

/** The matrices of one layer: A [adapters, rank, in] and B [adapters, rank, out] with its scale, of the model's dtype. */
interface Tables {
  readonly a: Tensor;
  readonly b: Tensor;
}

/** A layer that adapters are for. */
interface Target {
  readonly layer: LinearLike;
  readonly forward: LinearLike["forward"];
  tables: Tables;
}

/** What one adapter has for a layer: A [rank, in] and B [rank, out] with its scale. */
interface Piece {
  readonly a: Tensor;
  readonly b: Tensor;
}

/** Ranks of a table are a multiple of it, so that its rows fill whole vectors. */
const rankStep = 16;

/**
 * Adapters of one model by name, for an `Engine` or a server that computes texts of different ones together.
 *
 * Takes what Python's PEFT saves as plain LoRA on linear layers below the head, of any ranks; matrices are kept in the dtype of
 * the model, which must have no adapters of its own and outlive this. Dispose it after the engines that use it.
 *
 * @example
 * const adapters = new AdapterSet(model);
 * await adapters.load("style", "./style-lora");
 * const engine = new Engine(model, { adapters });
 * for await (const token of engine.submit("Hello", { adapter: "style" })) console.log(token);
 */
export class AdapterSet implements StepAdapters, Disposable {
  readonly #model: CausalLM;
  readonly #targets = new Map<LinearLike, Target>();
  readonly #names = new Map<string, Entry>();
  /** In the order of the tables. */
  readonly #entries: Entry[] = [];
  #nextKey = 1;
  #version = 0;
  #disposed = false;

  constructor(model: CausalLM) {
    checkArgument("AdapterSet", "model", model, anObjectWith("a language model", "step", "kvLayout"));
    this.#model = model;
  }

  /** Names of the adapters that texts may have, in the order in which they came. */
  get names(): string[] {
    return [...this.#names.keys()];
  }

  has(name: string): boolean {
    return this.#names.has(name);
  }

  get size(): number {
    return this.#entries.length;
  }

  /** @internal */
  get version(): number {
    return this.#version;
  }

  /** Bytes of all matrices. */
  get nbytes(): number {
    return [...this.#targets.values()].reduce((sum, { tables: { a, b } }) => sum + a.nbytes + b.nbytes, 0);
  }

  /**
   * Adds the adapter of a folder as PEFT saves it. Throws ERR_BNB_OPTION for a name that is taken, ERR_BNB_UNSUPPORTED for an
   * adapter that is more than LoRA on linear layers, and otherwise as `PeftModel.fromPretrained`; nothing changes then.
   */
  async load(name: string, folder: string): Promise<void> {
    const op = "AdapterSet.load";
    checkArgument(op, "name", name, aString);
    checkArgument(op, "folder", folder, aString);
    this.#check(op, name);
    const pieces = await this.#read(op, folder);
    try {
      // Another may have come meanwhile.
      this.#check(op, name);
      const entry = { key: this.#nextKey++, users: 0, isUnloaded: false };
      this.#rebuild([...this.#entries.map((_, i) => i), pieces]);
      this.#entries.push(entry);
      this.#names.set(name, entry);
    } finally {
      for (const { a, b } of pieces.values()) {
        a.dispose();
        b.dispose();
      }
    }
  }

  /** Takes a name away. Texts that have begun with its adapter end with it; then it is freed. */
  unload(name: string): void {
    const entry = this.#entry("AdapterSet.unload", name);
    this.#names.delete(name);
    entry.isUnloaded = true;
    this.#freeUnused(entry);
  }

  /** @internal */
  use(op: string, name: string): AdapterUse {
    return this.#use(this.#entry(op, name));
  }

  /** @internal */
  during<T>(segment: Tensor, fn: () => T): T {
    if (this.#disposed) throw new BnbError("ERR_BNB_DISPOSED", "generate: the adapters of the engine were disposed");
    const targets = [...this.#targets.values()];
    for (const target of targets) target.layer.forward = (x) => withAdapters(target, x, segment);
    try {
      return fn();
    } finally {
      for (const { layer, forward } of targets) layer.forward = forward;
    }
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const target of this.#targets.values()) freeTables(target.tables);
    this.#targets.clear();
    this.#names.clear();
    this.#version++;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #check(op: string, name: string): void {
    if (this.#disposed) throw new BnbError("ERR_BNB_DISPOSED", `${op}: the adapters were disposed`);
    if (adapterLayersOf(this.#model).size > 0) {
      const rule = `${op}: the model must have no adapters of its own`;
      throw new BnbError("ERR_BNB_OPTION", `${rule}, got one with some; unload() or mergeAndUnload() gives the base`);
    }
    if (!this.#names.has(name)) return;
    throw new BnbError("ERR_BNB_OPTION", `${op}: name must be new, got ${name}, which exists`);
  }

  #entry(op: string, name: string): Entry {
    checkArgument(op, "adapter", name, aString);
    const entry = this.#names.get(name);
    if (entry) return entry;
    const rule = `${op}: the adapter must be one of ${this.names.join(", ") || "none"}`;
    throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${withNearest(name, this.names)}`);
  }

  #use(entry: Entry): AdapterUse {
    entry.users++;
    let isOver = false;
    const dispose = (): void => {
      if (isOver) return;
      isOver = true;
      entry.users--;
      this.#freeUnused(entry);
    };
    const indexOf = (): number => this.#entries.indexOf(entry);
    return {
      key: entry.key,
      get index() {
        return indexOf();
      },
      again: () => this.#use(entry),
      [Symbol.dispose]: dispose,
    };
  }

  #freeUnused(entry: Entry): void {
    const at = this.#entries.indexOf(entry);
    if (entry.users > 0 || !entry.isUnloaded || at < 0) return;
    this.#rebuild(this.#entries.map((_, i) => i).filter((i) => i !== at));
    this.#entries.splice(at, 1);
  }

  /** The matrices of a folder by their layers, owned by the caller. */
  async #read(op: string, folder: string): Promise<Map<LinearLike, Piece>> {
    const { config, source } = await openAdapter(folder);
    const wanted = new Map<string, Tensor>();
    try {
      const sites = sitesOf(this.#model);
      refuseMore(folder, config, savedNames(config, sites));
      const found = findTargets(op, sites, config, [], true);
      refusePlaces(folder, found);
      const linear = new Map(found.map(({ module, path }) => [module as LinearLike, path]));
      for (const [layer, path] of linear) {
        const device = deviceOf(layer);
        const make = (...shape: number[]): Tensor => keep(zeros(shape, { device }));
        const r = config.rankOf(path);
        wanted.set(baseKey(`${path}.lora_A.weight`), make(r, layer.inFeatures));
        wanted.set(baseKey(`${path}.lora_B.weight`), make(layer.outFeatures, r));
      }
      await loadTensors(source, wanted, new Map(), join(folder, WEIGHTS));
      const { dtype } = this.#model;
      return new Map(
        [...linear].map(([layer, path]) => {
          const [a, b] = ["A", "B"].map((one) => wanted.get(baseKey(`${path}.lora_${one}.weight`)) as Tensor);
          const made = tidy(() => {
            const scaled = transpose(mul(b as Tensor, config.scalingOf(path)));
            return [keep(cast(a as Tensor, dtype)), keep(cast(scaled, dtype))] as const;
          });
          if (made[0] === a) wanted.delete(baseKey(`${path}.lora_A.weight`));
          return [layer, { a: made[0], b: made[1] }];
        }),
      );
    } finally {
      for (const tensor of wanted.values()) tensor.dispose();
      await source.close();
    }
  }

  /** Makes the tables anew, of adapters that are in them (by their numbers) and of new ones. */
  #rebuild(order: readonly (number | ReadonlyMap<LinearLike, Piece>)[]): void {
    const coming = order.flatMap((from) => (typeof from === "number" ? [] : [...from.keys()]));
    const made = new Map<LinearLike, Tables | null>();
    try {
      for (const layer of new Set([...this.#targets.keys(), ...coming])) {
        const known = this.#targets.get(layer)?.tables;
        const piece = (from: (typeof order)[number]) =>
          typeof from === "number" ? pieceOf(known, from) : from.get(layer);
        made.set(
          layer,
          tidy(() => tablesOf(order.map(piece))),
        );
      }
    } catch (error) {
      for (const tables of made.values()) if (tables) freeTables(tables);
      throw error;
    }
    for (const [layer, tables] of made) {
      const target = this.#targets.get(layer);
      if (target) freeTables(target.tables);
      if (!tables) this.#targets.delete(layer);
      else if (target) target.tables = tables;
      else this.#targets.set(layer, { layer, forward: replaceable(layer), tables });
    }
    this.#version++;
  }
}

/** What a layer makes of x, and its adapters of the rows that have some. */
function withAdapters({ layer, forward, tables: { a, b } }: Target, x: Tensor, segment: Tensor): Tensor {
  const own = segment.device === x.device ? segment : to(segment, x.device);
  return loraRows(forward.call(layer, x), x, a, b, own);
}

/** The forward of a layer, which from now on can be another without the field being seen. */
function replaceable(layer: LinearLike): UnaryModule["forward"] {
  const { forward } = layer;
  Object.defineProperty(layer, "forward", { value: forward, writable: true, configurable: true, enumerable: false });
  return forward;
}

/** An adapter's matrices as they lie in a table; undefined where it has none there. */
function pieceOf(tables: Tables | undefined, index: number): Piece | undefined {
  if (!tables) return undefined;
  const of = (table: Tensor): Tensor => reshape(slice(table, 0, index, index + 1), table.shape.slice(1));
  return { a: of(tables.a), b: of(tables.b) };
}

/** Tables of pieces, with zeros where there are none; null where there is no piece at all. */
function tablesOf(pieces: readonly (Piece | undefined)[]): Tables | null {
  const present = pieces.filter((piece) => piece !== undefined);
  if (present.length === 0) return null;
  const most = Math.max(...present.map(({ a }) => a.shape[0] as number));
  const rank = Math.ceil(most / rankStep) * rankStep;
  const table = (which: "a" | "b"): Tensor => {
    const { shape, dtype, device } = (present[0] as Piece)[which];
    const width = shape[1] as number;
    const parts = pieces.map((piece) => {
      const rows = piece?.[which];
      const missing = rank - (rows?.shape[0] ?? 0);
      const padding = missing > 0 ? [zeros([missing, width], { dtype, device })] : [];
      return reshape(concat([...(rows ? [rows] : []), ...padding], 0), [1, rank, width]);
    });
    return keep(concat(parts, 0));
  };
  return noGrad(() => ({ a: table("a"), b: table("b") }));
}

function freeTables({ a, b }: Tables): void {
  a.dispose();
  b.dispose();
}

/** Throws ERR_BNB_UNSUPPORTED for what an adapter has beside A and B of linear layers. */
function refuseMore(folder: string, config: LoraConfig, saved: readonly string[]): void {
  const { initLoraWeights: init } = config;
  const more: readonly (readonly [boolean, string])[] = [
    [config.useDora, "DoRA (use_dora)"],
    [config.loraBias, "biases of its own (lora_bias)"],
    [config.bias !== "none", "biases of the base (bias)"],
    [saved.length > 0, `whole modules (modules_to_save: ${saved.join(", ")})`],
    [config.trainableTokenIndices !== null, "rows of embeddings (trainable_token_indices)"],
    [(config.targetParameters?.length ?? 0) > 0, "parameters (target_parameters)"],
    [init === "pissa" || init === "olora", `a part of the base's weight (init_lora_weights: ${String(init)})`],
  ];
  const found = more.find(([is]) => is);
  if (!found) return;
  const rule = `${folder}: an adapter beside others must be LoRA on linear layers alone`;
  throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got one with ${found[1]}; merge it into a model of its own`);
}

/** Throws ERR_BNB_UNSUPPORTED for targets that do not see every row of a step. */
function refusePlaces(folder: string, sites: readonly Site[]): void {
  const wrong = sites.find(({ module, path }) => module instanceof Embedding || isHead(path));
  if (!wrong) return;
  const rule = `${folder}: an adapter beside others must be for linear layers below the head`;
  throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got ${wrong.path}; merge it into a model of its own`);
}
