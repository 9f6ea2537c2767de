// Sequential and ModuleList: modules in a row, named by their index.

import { describe, itemsOf } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Member } from "./module.js";
import { Module } from "./module.js";

/** A module of one tensor to one tensor. */
export interface UnaryModule extends Module {
  forward(x: Tensor): Tensor;
}

/** A list of modules that belong to their owner: the only way to keep several in one field. */
export class ModuleList<M extends Module = Module> extends Module {
  readonly #items: M[];

  constructor(items: Iterable<M> = []) {
    super();
    this.#items = modulesOf(items);
  }

  get length(): number {
    return this.#items.length;
  }

  /** The module at the index; negative ones count from the end. */
  at(index: number): M {
    const item = this.#items.at(index);
    if (item === undefined) {
      throw new BnbError("ERR_BNB_ARGUMENT", `ModuleList: the index must be below ${this.length}, got ${index}`);
    }
    return item;
  }

  push(...items: M[]): this {
    this.#items.push(...modulesOf(items));
    return this;
  }

  [Symbol.iterator](): IterableIterator<M> {
    return this.#items[Symbol.iterator]();
  }

  override members(): Member[] {
    return [...super.members(), ...this.#items.map((value, i) => ({ field: `${i}`, name: `${i}`, value }))];
  }

  override replaceMember(field: string, next: Module): void {
    const index = this.#items.findIndex((_, i) => `${i}` === field);
    if (index < 0) super.replaceMember(field, next);
    else this.#items[index] = next as M;
  }

  /** A list has no computation of its own. */
  forward(..._inputs: never[]): unknown {
    throw new BnbError("ERR_BNB_UNSUPPORTED", "ModuleList: forward is not defined, call the modules of the list");
  }
}

function modulesOf<M>(items: Iterable<M>): M[] {
  const list = itemsOf(items);
  if (!list) {
    throw new BnbError("ERR_BNB_ARGUMENT", `ModuleList: items must be a list of Modules, got ${describe(items)}`);
  }
  const wrong = list.findIndex((item) => !(item instanceof Module));
  if (wrong < 0) return list;
  throw new BnbError("ERR_BNB_ARGUMENT", `ModuleList: every item must be a Module, got ${describe(list[wrong])}`);
}

/**
 * Modules applied one after the other.
 *
 * @example
 * const mlp = new Sequential(new Linear(64, 256), new Linear(256, 64));
 */
export class Sequential extends ModuleList<UnaryModule> {
  constructor(...items: UnaryModule[]) {
    super(items);
  }

  override forward(x: Tensor): Tensor {
    let y = x;
    for (const module of this) y = module.forward(y);
    return y;
  }
}
