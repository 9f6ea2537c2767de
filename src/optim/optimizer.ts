// The base of all optimizers: parameter groups, states that appear at a parameter's first step, and stepping. A
// step crosses to native code once, whatever the number of parameters, and never waits for the device.
import { checkFunction } from "../tensor/checks.js";
import { tensor } from "../tensor/create.js";
import { describe, isPlainObject, itemsOf } from "../tensor/describe.js";
import type { Device } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import { keep } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { GlobalOptimManager } from "./global-optim-manager.js";
import type { FamilyLimits, GroupOptions, Hyperparameters, OptimizerFamily, ParamGroup, Params } from "./options.js";
import { checkHyperparameters, resolveOptions } from "./options.js";
import type { ParameterState } from "./parameter-state.js";
import { newState, stateTensors } from "./parameter-state.js";
import type { OptimizerStateDict } from "./state-dict.js";
import { groupsOf, readStateDict, writeStateDict } from "./state-dict.js";
import type { OptimizerName, UpdateRow, UpdateScalars } from "./update-rule.js";
import { UpdateBatch, updateRow } from "./update-rule.js";

/**
 * What every optimizer of this package is. Parameters are updated in place, on the device and in order with the
 * other queued work. Parameters without a gradient are passed over.
 *
 * A step checks the hyperparameters that it reads, however they came into a group, and throws ERR_BNB_OPTION before
 * anything changes. Elements whose gradient, new state or new parameter is not finite keep their parameter and state;
 * `nonFiniteCount` counts them.
 */
export abstract class Optimizer8bit<Options extends object = object> {
  readonly paramGroups: ParamGroup[] = [];
  readonly isPaged: boolean;
  /** The rule by bitsandbytes' name. */
  readonly rule: OptimizerName;
  readonly #limits: FamilyLimits;
  // The options of the constructor with those of a group over them.
  readonly #resolve: (overrides: object) => Hyperparameters;
  readonly #states = new Map<Tensor, ParameterState>();
  readonly #nonFinite = new Map<Device, Tensor>();
  #isDisposed = false;
  #hasWarned = false;

  protected constructor(params: Params<Options>, options: Partial<Options>, family: OptimizerFamily<Options>) {
    if (!isPlainObject(family) || !isPlainObject(family.defaults)) {
      throw new BnbError("ERR_BNB_ARGUMENT", `${this.name}: is what optimizers are made of; construct one of them`);
    }
    const { defaults, fixed } = family;
    const own: Required<Options> = resolveOptions(this.name, options, defaults, fixed);
    this.rule = family.rule;
    this.isPaged = "isPaged" in own && own.isPaged === true;
    this.#limits = family;
    this.#resolve = (overrides) => {
      const resolved = resolveOptions<Options>(this.name, overrides, { ...defaults, ...own }, fixed);
      const h = family.hyperparameters(resolved);
      checkHyperparameters(this.name, h, family);
      return { ...h, betas: [...h.betas] };
    };
    this.#resolve({});
    const list = iterated(params as Iterable<Tensor | GroupOptions<Options>>);
    if (!list) {
      const rule = "parameters must be an iterable of Tensors or of groups";
      throw new BnbError("ERR_BNB_ARGUMENT", `${this.name}: ${rule}, got ${describe(params)}`);
    }
    if (list.length === 0)
      throw new BnbError("ERR_BNB_ARGUMENT", `${this.name}: parameters must not be empty, got none`);
    if (list.every((item) => isTensor(item))) this.addParamGroup({ params: list } as unknown as GroupOptions<Options>);
    else for (const group of list) this.addParamGroup(group as GroupOptions<Options>);
  }

  /** The name of the class, which error messages start with. */
  get name(): string {
    return this.constructor.name;
  }

  /** The state of a parameter, or undefined before its first step. The optimizer keeps owning its tensors. */
  stateOf(param: Tensor): Readonly<ParameterState> | undefined {
    return this.#states.get(param);
  }

  /** Adds parameters, with their own options where given. */
  addParamGroup(group: GroupOptions<Options>): void {
    const { params, ...overrides } = group ?? {};
    const list = iterated(params);
    if (!list) {
      throw new BnbError("ERR_BNB_ARGUMENT", `${this.name}: a group must have a list of parameters under "params"`);
    }
    const { isPaged = this.isPaged } = overrides as { isPaged?: unknown };
    if (isPaged !== this.isPaged) {
      const rule = `isPaged of a group must be ${this.isPaged}, as that of the optimizer`;
      throw new BnbError("ERR_BNB_OPTION", `${this.name}: ${rule}, got ${describe(isPaged)}`);
    }
    const known = new Set(this.paramGroups.flatMap((g) => g.params));
    for (const param of list) {
      if (!isTensor(param)) {
        throw new BnbError("ERR_BNB_ARGUMENT", `${this.name}: parameters must be Tensors, got ${describe(param)}`);
      }
      if (!param.isLeaf) {
        throw new BnbError(
          "ERR_BNB_ARGUMENT",
          `${this.name}: parameters must be leaves, got ${describe(param)} made by an op`,
        );
      }
      if (known.has(param)) {
        throw new BnbError(
          "ERR_BNB_ARGUMENT",
          `${this.name}: a parameter must be listed once, got ${describe(param)} twice`,
        );
      }
      known.add(param);
    }
    this.paramGroups.push({ params: list, ...this.#resolve(overrides) });
  }

  /** Updates all parameters that have a gradient. A closure computes the loss (and gradients) first; it is returned. */
  step(): undefined;
  step<T>(closure: () => T): T;
  step<T>(closure?: () => T): T | undefined {
    if (closure !== undefined) checkFunction(`${this.name}.step`, "closure", closure);
    if (this.#isDisposed) throw new BnbError("ERR_BNB_DISPOSED", `${this.name}.step: the optimizer was disposed`);
    const loss = closure?.();
    const batches = new Map<Device, { batch: UpdateBatch; states: ParameterState[] }>();
    const manager = GlobalOptimManager.getInstance();
    for (const group of this.paramGroups) {
      // Parameters of a group mostly share their step, and so their numbers.
      let sharedStep = 0;
      let sharedRow: UpdateRow = [];
      for (const p of this.#paramsOf(group)) {
        if (p.disposed) throw new BnbError("ERR_BNB_DISPOSED", `${this.name}.step: a parameter was disposed`);
        if (!p.grad) continue;
        const config = manager.configOf(p);
        const h = config ? { ...group, ...config } : group;
        const step = (this.#states.get(p)?.step ?? 0) + 1;
        let row = sharedRow;
        if (config || step !== sharedStep) {
          checkHyperparameters(this.name, h, this.#limits);
          row = updateRow(this.rule, scheduled(h, step));
          if (!config) [sharedStep, sharedRow] = [step, row];
        }
        const state = this.#stateFor(p, h);
        let on = batches.get(p.device);
        if (!on) {
          on = { batch: new UpdateBatch(), states: [] };
          batches.set(p.device, on);
        }
        on.batch.add(row, p, p.grad, state);
        on.states.push(state);
      }
    }
    for (const [device, { batch, states }] of batches) {
      batch.run(this.#counter(device));
      for (const state of states) state.step++;
    }
    return loss;
  }

  /** Disposes the gradients of all parameters. */
  zeroGrad(): void {
    for (const group of this.paramGroups) {
      for (const p of this.#paramsOf(group)) {
        p.grad?.dispose();
        p.grad = null;
      }
    }
  }

  /** Elements left alone because something was not finite, since the start or `resetNonFiniteCount()`. */
  get nonFiniteCount(): Promise<number> {
    const counts = [...this.#nonFinite.values()].map((counter) => counter.data());
    return Promise.all(counts).then((values) => values.reduce((sum, value) => sum + (value[0] as number), 0));
  }

  resetNonFiniteCount(): void {
    for (const counter of this.#nonFinite.values()) counter.dispose();
    this.#nonFinite.clear();
  }

  /**
   * States and groups in bitsandbytes' layout and spelling. The tensors share the memory of the optimizer's, so
   * later steps change them; they are the caller's to dispose.
   */
  stateDict(): OptimizerStateDict {
    for (const group of this.paramGroups) {
      this.#paramsOf(group);
      checkHyperparameters(this.name, group, this.#limits);
    }
    return writeStateDict(this.rule, this.paramGroups, (p) => this.#states.get(p));
  }

  /**
   * Replaces states and hyperparameters by copies of those of a state dict. Bit widths are those of the dict. Throws
   * ERR_BNB_FORMAT, with nothing changed, for a dict of another rule and for states that are not finite.
   */
  loadStateDict(dict: OptimizerStateDict): void {
    const copyStates = readStateDict(this.name, this.#limits, this.paramGroups, dict);
    const groups = groupsOf(dict);
    groups.forEach((h, i) => {
      const group = this.paramGroups[i]!;
      checkHyperparameters(this.name, { ...group, ...h }, this.#limits);
    });
    for (const [i, h] of groups.entries()) Object.assign(this.paramGroups[i]!, h);
    this.#disposeStates();
    const states = copyStates();
    for (const [param, state] of states) this.#states.set(param, state);
    if (states.size > 0) this.#warnOnceIfPaged();
  }

  /** Frees the states. Parameters and gradients stay. */
  dispose(): void {
    this.#isDisposed = true;
    this.#disposeStates();
    this.resetNonFiniteCount();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  // The list of a group, which its owner may have replaced.
  #paramsOf(group: ParamGroup): Tensor[] {
    const { params } = group;
    if (!Array.isArray(params) || !params.every(isTensor)) {
      const rule = "params of a group must be an array of Tensors";
      throw new BnbError("ERR_BNB_ARGUMENT", `${this.name}: ${rule}, got ${describe(params)}`);
    }
    return params;
  }

  #disposeStates(): void {
    for (const state of this.#states.values()) for (const t of stateTensors(state)) t.dispose();
    this.#states.clear();
  }

  #stateFor(p: Tensor, h: Hyperparameters): ParameterState {
    let state = this.#states.get(p);
    if (!state) {
      state = newState(this.rule, p, h);
      this.#states.set(p, state);
      this.#warnOnceIfPaged();
    }
    return state;
  }

  #warnOnceIfPaged(): void {
    if (!this.isPaged || this.#hasWarned) return;
    this.#hasWarned = true;
    process.emitWarning(`${this.name}: no managed memory here, states are in ordinary memory`, {
      type: "BnbWarning",
      code: "BNB_PAGED_FALLBACK",
    });
  }

  #counter(device: Device): Tensor {
    let counter = this.#nonFinite.get(device);
    if (!counter) {
      counter = keep(tensor(new Float64Array(1), { dtype: "float64", device }));
      this.#nonFinite.set(device, counter);
    }
    return counter;
  }
}

// The numbers of step t; AdEMAMix moves alpha and beta3 towards their final values.
function scheduled(h: Hyperparameters, t: number): UpdateScalars {
  const [beta1 = 0, beta2 = 0, beta3 = 0] = h.betas;
  const alpha = h.tAlpha === null ? h.alpha : Math.min((t * h.alpha) / h.tAlpha, h.alpha);
  let currentBeta3 = beta3;
  if (h.tBeta3 !== null) {
    const [ln1, ln3, r] = [Math.log(beta1), Math.log(beta3), t / h.tBeta3];
    currentBeta3 = Math.min(Math.exp((ln1 * ln3) / ((1 - r) * ln3 + r * ln1)), beta3);
  }
  return { ...h, step: t, beta1, beta2, beta3: currentBeta3, alpha, gnormScale: 1 };
}

// A tensor is none, and neither is a string.
function iterated<T>(list: Iterable<T>): T[] | null {
  return isTensor(list) ? null : itemsOf(list);
}

function isTensor(value: unknown): value is Tensor {
  return typeof value === "object" && value !== null && "dtype" in value && "isLeaf" in value;
}

/** Optimizers with one moment: SGD, LARS, Lion, RMSprop, Adagrad. */
export abstract class Optimizer1State<Options extends object = object> extends Optimizer8bit<Options> {}

/** Optimizers with two: Adam, AdamW, LAMB, and AdEMAMix, whose first is a pair. */
export abstract class Optimizer2State<Options extends object = object> extends Optimizer8bit<Options> {}
