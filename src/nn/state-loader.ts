// StateLoader: one loading of a state dict, in two steps. First every module says what it wants from where,
// then, if nothing is wrong, the values are copied.

import { cast } from "../ops/cast.js";
import { firstNonFinite } from "../ops/non-finite.js";
import { copyInto, reshape } from "../ops/shape.js";
import { clone, to } from "../ops/to-device.js";
import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { isFloat } from "../tensor/dtype.js";
import type { ErrorCode } from "../tensor/errors.js";
import { BnbError } from "../tensor/errors.js";
import { isPlaceholder, materialize } from "../tensor/placeholder.js";
import { tidy } from "../tensor/scope.js";
import { sameShape } from "../tensor/shape.js";
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
  /**
   * Plans to copy the tensor of the key into `into`. The shapes must agree, and the dtypes or both be float: only
   * float converts to float, because integers may be codes.
   */
  copy(key: string, into: Tensor): void;
  /**
   * The float tensor of the key for a weight that is quantized from it, or from it in `dtype`: of the shape, and
   * finite. Undefined if it is missing or was rejected.
   */
  takeFinite(key: string, shape: readonly number[], dtype?: DType): Tensor | undefined;
  /** Plans an action for when everything has been checked; `cancel` frees what was made for it where it does not come to that. */
  plan(action: () => void, cancel?: () => void): void;
  /** In an action: a tensor that was taken as one of the module's own, on a device; without a copy where it is given up. */
  own(taken: Tensor, device: Device): Tensor;
  /** Notes a problem: the load will throw, with the code of the first one, without having changed anything. */
  reject(code: ErrorCode, problem: string): void;
}

export class StateLoader implements StateSource {
  readonly #entries: ReadonlyMap<string, Tensor>;
  readonly #used = new Set<string>();
  readonly #missing: string[] = [];
  readonly #problems: { code: ErrorCode; problem: string }[] = [];
  readonly #actions: (() => void)[] = [];
  readonly #cancels: (() => void)[] = [];

  readonly #takesOver: boolean;

  /** `takesOver`: the caller disposes the entries, so that weights without memory may share theirs. */
  constructor(entries: ReadonlyMap<string, Tensor>, takesOver = false) {
    this.#entries = entries;
    this.#takesOver = takesOver;
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
    if (!this.#hasShape(key, from, into.shape)) return;
    if (from.dtype !== into.dtype && !(isFloat(from.dtype) && isFloat(into.dtype))) {
      this.reject("ERR_BNB_DTYPE", `"${key}" must be ${convertible(into.dtype)}, got ${from.dtype}`);
      return;
    }
    this.plan(() => copyValues(into, from, this.#takesOver));
  }

  takeFinite(key: string, shape: readonly number[], dtype?: DType): Tensor | undefined {
    const from = this.take(key);
    if (from === undefined || !this.#hasShape(key, from, shape)) return undefined;
    if (!isFloat(from.dtype)) {
      this.reject("ERR_BNB_DTYPE", `"${key}" must be ${convertible("float32")}, got ${from.dtype}`);
      return undefined;
    }
    const bad = tidy(() => firstNonFinite(dtype === undefined ? from : cast(from.detach(), dtype)));
    if (!bad) return from;
    const where = dtype === undefined || dtype === from.dtype ? "" : ` in ${dtype}`;
    this.reject("ERR_BNB_NONFINITE", `"${key}" must be finite${where}, got ${bad.value} at ${bad.index}`);
    return undefined;
  }

  plan(action: () => void, cancel?: () => void): void {
    this.#actions.push(action);
    if (cancel) this.#cancels.push(cancel);
  }

  own(taken: Tensor, device: Device): Tensor {
    return this.#takesOver && taken.device === device ? taken.detach() : to(taken, device);
  }

  reject(code: ErrorCode, problem: string): void {
    this.#problems.push({ code, problem });
  }

  #hasShape(key: string, from: Tensor, shape: readonly number[]): boolean {
    if (sameShape(from.shape, shape)) return true;
    this.reject("ERR_BNB_SHAPE", `the shape of "${key}" must be [${shape.join(", ")}], got [${from.shape.join(", ")}]`);
    return false;
  }

  /** Runs the plan, or throws with everything that is wrong, after the rule that is broken. */
  finish(
    strict: boolean,
    rule = "loadStateDict: the dict must fit the module",
  ): { missing: string[]; unexpected: string[] } {
    const unexpected = [...this.#entries.keys()].filter((key) => !this.#used.has(key));
    const names = [
      ...this.#missing.map((key) => `"${key}" is missing`),
      ...unexpected.map((key) => `"${key}" is not expected`),
    ];
    const problems = [...this.#problems.map(({ problem }) => problem), ...(strict ? names : [])];
    if (problems.length > 0) {
      for (const cancel of this.#cancels) cancel();
      const code = this.#problems[0]?.code ?? "ERR_BNB_FORMAT";
      throw new BnbError(code, `${rule}, got: ${problems.join("; ")}`);
    }
    for (const action of this.#actions) action();
    return { missing: [...this.#missing], unexpected };
  }
}

function convertible(dtype: DType): string {
  return isFloat(dtype) ? "float32, float16 or bfloat16" : dtype;
}

/** Overwrites the elements of `into` in place, from any device, so that views, optimizers and ties of it stay valid. */
function copyValues(into: Tensor, from: Tensor, takesOver: boolean): void {
  if (into.size === 0 && !isPlaceholder(into)) return;
  tidy(() => {
    const here = from.device === into.device ? from : to(from, into.device);
    const values = here.dtype === into.dtype ? here : cast(here, into.dtype);
    if (isPlaceholder(into)) {
      materialize(into, values !== from ? values : takesOver ? from.detach() : clone(from));
      return;
    }
    copyInto(reshape(into, [into.size]), reshape(values, [into.size]));
  });
}
