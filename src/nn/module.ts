// Module: the base of every layer. Parameters, buffers and child modules are the fields of the object,
// found by inspection, so a layer declares nothing twice.

import { inspect } from "node:util";
import { noGrad } from "../autograd/no-grad.js";
import { to } from "../ops/to-device.js";
import { aBoolean, anInstance, aString, checkArgument } from "../tensor/checks.js";
import { describe } from "../tensor/describe.js";
import type { Device, DeviceLike } from "../tensor/device.js";
import { toDevice } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import { notCloneable, refuseJson } from "../tensor/native-only.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Owner } from "../tensor/scope.js";
import { keep, owned } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";
import { Parameter } from "./parameter.js";
import { printModule } from "./print.js";
import type { StateDict, StateSource } from "./state-loader.js";
import { StateLoader } from "./state-loader.js";

export type { StateDict, StateSource } from "./state-loader.js";

/** What loading did not find in the state dict, and what it found there and did not use. */
export interface LoadResult {
  missing: string[];
  unexpected: string[];
}

/** @internal */
export const aModule = anInstance(() => Module, "a Module");
const loadOptions = optionTable<{ strict?: boolean }>({ strict: aBoolean });

/** One field of a module that holds a tensor or a module. */
export interface Member {
  /** The property, or the index in a container. */
  field: string;
  /** Its name in a state dict; null for one that is not saved. */
  name: string | null;
  value: Module | Tensor;
}

/** `qProj` -> `q_proj`: how a field is named on disk unless `names` says otherwise. */
export function snakeCase(field: string): string {
  checkArgument("snakeCase", "field", field, aString);
  return field.replace(/[A-Z]/g, (letter, at: number) => (at === 0 ? "" : "_") + letter.toLowerCase());
}

/**
 * Base class of layers and models. Fields that hold a `Parameter`, another `Module` or a plain `Tensor` (a
 * buffer) are found by inspection; private `#fields` are not seen. A module owns what its fields hold.
 *
 * @example
 * class Mlp extends Module {
 *   up = new Linear(64, 256);
 *   down = new Linear(256, 64);
 *   forward(x: Tensor): Tensor {
 *     return this.down.forward(relu(this.up.forward(x)));
 *   }
 * }
 */
export abstract class Module implements Disposable, Owner {
  /**
   * Names on disk of fields whose name is not the snake_case of the field, such as `{ loraA: "lora_A" }`.
   * `null` keeps a field out of the state dict.
   */
  static readonly names: Readonly<Record<string, string | null>> = {};

  /** @internal By it `structuredClone` refuses also a module without tensors. */
  readonly transfer: typeof notCloneable = notCloneable;

  /** Whether layers such as dropout behave as in training; see {@link train} and {@link eval}. */
  training = true;

  #disposing = false;
  readonly #parametrized = new Map<string, Module>();

  /** Computes the module's output. Each class states its own arguments. */
  abstract forward(...inputs: never[]): unknown;

  /** The fields that hold a tensor or a module, in the order of their declaration. */
  members(): Member[] {
    const names = (this.constructor as typeof Module).names;
    const found: Member[] = [];
    for (const [field, value] of Object.entries(this)) {
      if (value instanceof Module || value instanceof Tensor) {
        const name = names[field];
        found.push({ field, name: name === undefined ? snakeCase(field) : name, value });
      } else if (Array.isArray(value) && value.some((item) => item instanceof Module || item instanceof Tensor)) {
        const type = this.constructor.name;
        throw new BnbError(
          "ERR_BNB_ARGUMENT",
          `${type}: a list of modules must be a ModuleList, got an array in ${field}`,
        );
      }
    }
    for (const [field, value] of this.#parametrized) {
      found.push({ field, name: names[field] ?? snakeCase(field), value });
    }
    return found;
  }

  /**
   * @internal Reading `field` gives from now on what the module computes; in the tree the module stands in its place, and
   * is told its name when it saves and loads.
   */
  parametrize(field: string, module: Module & { forward(): Tensor }): void {
    const set = (): never => {
      throw new BnbError("ERR_BNB_ARGUMENT", `${field} cannot be set: it is computed at each reading`);
    };
    Object.defineProperty(this, field, { configurable: true, enumerable: false, get: () => module.forward(), set });
    this.#parametrized.set(field, module);
  }

  /** Puts `next` where the child `field` is. The old child is not disposed. */
  replaceMember(field: string, next: Module): void {
    checkArgument("replaceMember", "field", field, aString);
    checkArgument("replaceMember", "next", next, aModule);
    const current: unknown = Reflect.get(this, field);
    if (!(current instanceof Module)) {
      throw new BnbError("ERR_BNB_ARGUMENT", `replaceMember: ${field} must hold a module, got ${typeof current}`);
    }
    Reflect.set(this, field, next);
  }

  /** The direct children that are modules. */
  children(): Module[] {
    return this.members().flatMap(({ value }) => (value instanceof Module ? [value] : []));
  }

  /** This module and everything below it, each once, parents first. */
  modules(): Module[] {
    return this.namedModules().map(([, module]) => module);
  }

  /** Like {@link modules}, with the path of each; the path of this module is `prefix`. */
  namedModules(prefix = ""): [name: string, module: Module][] {
    checkArgument("namedModules", "prefix", prefix, aString);
    const seen = new Set<Module>();
    const found: [string, Module][] = [];
    const visit = (path: string, module: Module): void => {
      if (seen.has(module)) return;
      seen.add(module);
      found.push([path, module]);
      for (const { field, name, value } of module.members()) {
        if (value instanceof Module) visit(joinPath(path, name ?? snakeCase(field)), value);
      }
    };
    visit(prefix, this);
    return found;
  }

  /** Every parameter of the tree with its path; one that is used twice appears once. */
  namedParameters(prefix = ""): [name: string, parameter: Parameter][] {
    const seen = new Set<Parameter>();
    const found: [string, Parameter][] = [];
    for (const [path, module] of this.namedModules(prefix)) {
      for (const { field, name, value } of module.members()) {
        if (!(value instanceof Parameter) || seen.has(value)) continue;
        seen.add(value);
        found.push([joinPath(path, name ?? snakeCase(field)), value]);
      }
    }
    return found;
  }

  /** Every parameter of the tree, each once: what an optimizer takes. */
  parameters(): Parameter[] {
    return this.namedParameters().map(([, parameter]) => parameter);
  }

  /** All parameters and buffers under their names on disk. The tensors are the module's own, not copies. */
  stateDict(): StateDict {
    this.#checkTree("stateDict");
    const dict: StateDict = new Map();
    // JSON.stringify would make {} of any Map.
    Object.defineProperty(dict, "toJSON", { value: () => refuseJson("a state dict") });
    this.saveTo(dict, "");
    return dict;
  }

  /**
   * Copies the values of `dict` into the module; they are converted to the module's dtypes. Checks everything
   * before it changes anything. With `strict` (the default) every name must be on both sides; a wrong shape
   * is always an error.
   */
  loadStateDict(dict: StateDict | Readonly<Record<string, Tensor>>, options: { strict?: boolean } = {}): LoadResult {
    checkOptions("loadStateDict", options, loadOptions);
    if (typeof dict !== "object" || dict === null) {
      throw new BnbError(
        "ERR_BNB_ARGUMENT",
        `loadStateDict: the dict must be a Map or an object, got ${describe(dict)}`,
      );
    }
    this.#checkTree("loadStateDict");
    const entries = dict instanceof Map ? dict : new Map(Object.entries(dict as Readonly<Record<string, Tensor>>));
    const loader = new StateLoader(entries);
    this.loadFrom(loader, "");
    return noGrad(() => loader.finish(options.strict ?? true));
  }

  /** Throws ERR_BNB_UNSUPPORTED: JSON would hold no element. Save `stateDict()` instead. */
  toJSON(): never {
    refuseJson("a Module");
  }

  /** Adds the module's entries to `dict` under `prefix`. Layers with extra keys override it with {@link loadFrom}. */
  saveTo(dict: StateDict, prefix: string): void {
    for (const { name, value } of this.members()) {
      if (name === null) continue;
      if (value instanceof Module) value.saveTo(dict, `${prefix}${name}.`);
      else dict.set(prefix + name, value);
    }
  }

  /** Plans the loading of the module's entries from under `prefix`; nothing may change until the plan runs. */
  loadFrom(source: StateSource, prefix: string): void {
    for (const { name, value } of this.members()) {
      if (name === null) continue;
      if (value instanceof Module) value.loadFrom(source, `${prefix}${name}.`);
      else source.copy(prefix + name, value);
    }
  }

  /** Switches the whole tree to training behaviour (or, with false, to evaluation). */
  train(on = true): this {
    for (const module of this.modules()) module.training = on;
    return this;
  }

  /** Switches the whole tree to evaluation behaviour. */
  eval(): this {
    return this.train(false);
  }

  /** Makes every parameter of the tree require a gradient, except packed codes, or freezes them all. */
  requiresGrad_(on = true): this {
    for (const parameter of this.parameters()) parameter.requiresGrad = on && parameter.trainable;
    return this;
  }

  /** Drops the gradients of every parameter of the tree. */
  zeroGrad(): void {
    for (const parameter of this.parameters()) {
      parameter.grad?.dispose();
      parameter.grad = null;
    }
  }

  /**
   * Moves the tree to a device. Tensors that are elsewhere are replaced, parameters by new `Parameter` objects: move
   * a model before an optimizer is made for it.
   */
  to(device: DeviceLike): this {
    const target = toDevice(device);
    const moved = new Map<Tensor, Tensor>();
    for (const module of this.modules()) module.moveTensors(target, moved);
    for (const old of moved.keys()) old.dispose();
    return this;
  }

  /** Moves the tensors of this module alone; `moved` has those that other modules share. */
  protected moveTensors(device: Device, moved: Map<Tensor, Tensor>): void {
    for (const { field, value } of this.members()) {
      if (!(value instanceof Tensor) || value.device === device) continue;
      const next = moved.get(value) ?? noGrad(() => copyTo(value, device));
      moved.set(value, next);
      Reflect.set(this, field, next);
    }
  }

  /** Frees every parameter and buffer of the tree. The module cannot be used afterwards. */
  dispose(): void {
    if (this.#disposing) return; // it contains itself
    this.#disposing = true;
    try {
      for (const { value } of this.members()) value.dispose();
    } finally {
      this.#disposing = false;
    }
  }

  // Names on disk would have no end. Sharing a module is fine.
  #checkTree(op: string): void {
    const above = new Map<Module, string>();
    const done = new Set<Module>();
    const visit = (path: string, module: Module): void => {
      const first = above.get(module);
      if (first !== undefined) {
        const [inner, outer] = [path, first].map((name) => (name === "" ? "the module" : name));
        throw new BnbError("ERR_BNB_ARGUMENT", `${op}: a module must not contain itself, but ${inner} is ${outer}`);
      }
      if (done.has(module)) return;
      above.set(module, path);
      for (const { field, name, value } of module.members()) {
        if (value instanceof Module) visit(joinPath(path, name ?? snakeCase(field)), value);
      }
      above.delete(module);
      done.add(module);
    };
    visit("", this);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /**
   * Bytes of all parameters and buffers, each once, with the statistics of quantized ones, wherever they wait to be
   * used; what is computed from them, such as packed copies, is in `memory()`.
   */
  memoryFootprint(): number {
    const seen = new Set<Tensor>();
    for (const module of this.modules()) {
      for (const { value } of module.members()) if (value instanceof Tensor) seen.add(value);
    }
    return [...seen].reduce((sum, tensor) => sum + tensor.nbytes + statisticsBytes(tensor), 0);
  }

  /** @internal What is printed between the parentheses of a layer. */
  details(): string {
    return "";
  }

  /** The tree of modules, as PyTorch prints it. */
  toString(): string {
    return printModule(this);
  }

  [inspect.custom](): string {
    return printModule(this);
  }

  /** @internal What a `tidy` that returns the module returns with it. */
  [owned](): Iterable<unknown> {
    return this.members().map(({ value }) => value);
  }
}

/** The same kind of tensor on another device, outside of every `tidy`. */
function copyTo(tensor: Tensor, device: Device): Tensor {
  const copy = to(tensor, device);
  if (!(tensor instanceof Parameter)) return keep(copy);
  const parameter = new Parameter(copy, { requiresGrad: tensor.requiresGrad });
  parameter.optimConfig = tensor.optimConfig;
  return parameter;
}

/** Of a quantized parameter, what is beside its codes. */
function statisticsBytes(tensor: Tensor): number {
  return tensor instanceof Parameter ? tensor.statisticsBytes : 0;
}

function joinPath(path: string, name: string): string {
  return path === "" ? name : `${path}.${name}`;
}
