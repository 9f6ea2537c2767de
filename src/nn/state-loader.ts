// StateLoader: one loading of a state dict, in two steps. First every module says what it wants from where,
// then, if nothing is wrong, the values are copied.

import { cast } from "../ops/cast.js";
import { copyInto, reshape } from "../ops/shape.js";
import { to } from "../ops/to-device.js";
import { BnbError } from "../tensor/errors.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

/** Tensors by their names on disk. */
export type StateDict = Map<string, Tensor>;

/** What a module's `loadFrom` reads and plans with. */
export interface StateSource {
  /** Whether the dict has the key. */
  has(key: string): boolean;
  /** The tensor of the key, which counts as used; undefined, and counted as missing, if there is none. */
  take(key: string): Tensor | undefined;
  /** The keys that start with `prefix`. */
  keys(prefix: string): string[];
  /** Plans to copy the tensor of the key into `into`, converted to its dtype; the shapes must agree. */
  copy(key: string, into: Tensor): void;
  /** Plans an action for when everything has been checked. */
  plan(action: () => void): void;
  /** Notes a problem: the load will throw without having changed anything. */
  reject(problem: string): void;
}

export class StateLoader implements StateSource {
  readonly #entries: ReadonlyMap<string, Tensor>;
  readonly #used = new Set<string>();
  readonly #missing: string[] = [];
  readonly #problems: string[] = [];
  readonly #actions: (() => void)[] = [];

  constructor(entries: ReadonlyMap<string, Tensor>) {
    this.#entries = entries;
  }

  has(key: string): boolean {
    return this.#entries.has(key);
  }

  take(key: string): Tensor | undefined {
    const tensor = this.#entries.get(key);
    if (tensor === undefined) this.#missing.push(key);
    else this.#used.add(key);
    return tensor;
  }

  keys(prefix: string): string[] {
    return [...this.#entries.keys()].filter((key) => key.startsWith(prefix));
  }

  copy(key: string, into: Tensor): void {
    const from = this.take(key);
    if (from === undefined) return;
    if (!sameShape(from.shape, into.shape)) {
      this.reject(`the shape of "${key}" must be [${into.shape.join(", ")}], got [${from.shape.join(", ")}]`);
      return;
    }
    this.plan(() => copyValues(into, from));
  }

  plan(action: () => void): void {
    this.#actions.push(action);
  }

  reject(problem: string): void {
    this.#problems.push(problem);
  }

  /** Runs the plan, or throws with everything that is wrong. */
  finish(strict: boolean): { missing: string[]; unexpected: string[] } {
    const unexpected = [...this.#entries.keys()].filter((key) => !this.#used.has(key));
    const names = [
      ...this.#missing.map((key) => `"${key}" is missing`),
      ...unexpected.map((key) => `"${key}" is not expected`),
    ];
    const problems = strict ? [...this.#problems, ...names] : this.#problems;
    if (problems.length > 0) {
      const code = this.#problems.length > 0 ? "ERR_BNB_SHAPE" : "ERR_BNB_FORMAT";
      throw new BnbError(code, `loadStateDict: names and shapes must agree, got: ${problems.join("; ")}`);
    }
    for (const action of this.#actions) action();
    return { missing: [...this.#missing], unexpected };
  }
}

function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis]);
}

/** Overwrites the elements of `into` in place, from any device, so that views, optimizers and ties of it stay valid. */
function copyValues(into: Tensor, from: Tensor): void {
  if (into.size === 0) return;
  tidy(() => {
    const here = from.device === into.device ? from : to(from, into.device);
    const values = here.dtype === into.dtype ? here : cast(here, into.dtype);
    copyInto(reshape(into, [into.size]), reshape(values, [into.size]));
  });
}
