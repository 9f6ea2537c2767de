// Modules that an adapter trains as a whole: it has parameters of its own for them, which stand in the module while it is
// active. The module itself stays where it is, so whatever shares its weights, as a tied head does, sees them.
import { noGrad } from "../autograd/no-grad.js";
import type { Member } from "../nn/index.js";
import { Module, Parameter } from "../nn/index.js";
import { clone } from "../ops/to-device.js";
import { isFloat } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { keep, tidy } from "../tensor/scope.js";

// A field of its own, so that moving to a device replaces it.
class Held extends Module {
  parameter: Parameter;

  constructor(parameter: Parameter) {
    super();
    this.parameter = parameter;
  }

  forward(): never {
    throw new Error("a parameter computes nothing");
  }
}

/** One parameter of a saved module, and what adapters have in its place. */
export class SavedParameter extends Module {
  readonly path: string;
  readonly #holder: Module;
  readonly #field: string;
  readonly #base: Held;
  readonly #copies = new Map<string, Held>();

  constructor(path: string, holder: Module, field: string, base: Parameter) {
    super();
    this.path = path;
    this.#holder = holder;
    this.#field = field;
    this.#base = new Held(base);
  }

  get adapters(): string[] {
    return [...this.#copies.keys()];
  }

  of(name: string): Parameter | undefined {
    return this.#copies.get(name)?.parameter;
  }

  /** Gives an adapter a copy of the base's parameter, in its dtype: the module computes with what it is given. */
  addAdapter(name: string): void {
    const { parameter: base } = this.#base;
    const own = new Parameter(noGrad(() => tidy(() => keep(clone(base)))));
    own.optimConfig = base.optimConfig;
    this.#copies.set(name, new Held(own));
  }

  deleteAdapter(name: string): void {
    const copy = this.#copies.get(name);
    if (Reflect.get(this.#holder, this.#field) === copy?.parameter) this.activate([]);
    copy?.dispose();
    this.#copies.delete(name);
  }

  /** Puts in place what the last of the adapters has that has one; else the base's. */
  activate(names: readonly string[]): void {
    const name = [...names].reverse().find((item) => this.#copies.has(item));
    const held = (name !== undefined && this.#copies.get(name)) || this.#base;
    Reflect.set(this.#holder, this.#field, held.parameter);
  }

  /** Frees all but what is in place. */
  release(): void {
    const placed: unknown = Reflect.get(this.#holder, this.#field);
    for (const held of [this.#base, ...this.#copies.values()]) if (held.parameter !== placed) held.dispose();
    this.#copies.clear();
  }

  override members(): Member[] {
    const held = [["base", this.#base] as const, ...this.#copies];
    return held.map(([field, value]) => ({ field, name: null, value }));
  }

  forward(): never {
    throw new Error("a parameter computes nothing");
  }
}

/** The parameters of a module with its path, each with its holder. Throws ERR_BNB_OPTION for one that cannot learn. */
export function savedParametersOf(op: string, path: string, module: Module): SavedParameter[] {
  return module.namedModules(path).flatMap(([at, holder]) =>
    holder.members().flatMap(({ field, name, value }) => {
      if (!(value instanceof Parameter) || name === null) return [];
      if (isFloat(value.dtype) && value.constructor === Parameter) {
        return [new SavedParameter(`${at}.${name}`, holder, field, value)];
      }
      const rule = `${op}: modulesToSave must hold floats`;
      throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${value.dtype} at ${at}.${name}`);
    }),
  );
}
