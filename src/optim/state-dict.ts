// Optimizer state dicts in bitsandbytes' layout: the nested object per parameter, its keys in snake case, and the
// older flat form on the way in. bitsandbytes does not say whose states they are; these dicts do, beside its keys.
import { dynamicMap } from "../ops/codebooks.js";
import { addon } from "../tensor/addon.js";
import { BnbError } from "../tensor/errors.js";
import { run } from "../tensor/run.js";
import { keep } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";
import type { FamilyLimits, Hyperparameters, ParamGroup } from "./options.js";
import type { ParameterState } from "./parameter-state.js";
import { keepsNorm, newNorm, stateShapes } from "./parameter-state.js";
import { checkMap } from "./state-map.js";
import type { OptimizerName } from "./update-rule.js";
import { hasSecondState } from "./update-rule.js";

/** Key of the nested object of one parameter. */
export const quantStateKey = "__bnb_optimizer_quant_state__";

/** One entry of `param_groups`; `params` are indices in the order of the groups. */
export interface StateDictGroup {
  lr: number;
  betas: number[];
  eps: number;
  weight_decay: number;
  alpha?: number;
  t_alpha?: number | null;
  t_beta3?: number | null;
  params: number[];
}

/** One entry of `state`: the tensors nested (as written here) or beside `step` (older files). */
export interface StateDictEntry {
  step: number;
  [quantStateKey]?: Record<string, Tensor>;
  [key: string]: unknown;
}

/** An optimizer's states and groups, as bitsandbytes keeps them. */
export interface OptimizerStateDict {
  /** The rule whose states these are; bitsandbytes neither writes nor reads it. */
  optimizer_name?: OptimizerName;
  state: Record<string, StateDictEntry>;
  param_groups: StateDictGroup[];
}

/** The dict of an optimizer; the tensors share memory with the states. */
export function writeStateDict(
  rule: OptimizerName,
  groups: readonly ParamGroup[],
  stateOf: (p: Tensor) => ParameterState | undefined,
): OptimizerStateDict {
  const dict: OptimizerStateDict = { optimizer_name: rule, state: {}, param_groups: [] };
  let index = 0;
  for (const group of groups) {
    const params: number[] = [];
    for (const p of group.params) {
      const state = stateOf(p);
      if (state) dict.state[index] = { step: state.step, [quantStateKey]: tensorsOf(state) };
      params.push(index++);
    }
    const twoStates = hasSecondState(rule);
    dict.param_groups.push({
      lr: group.lr,
      betas: [...group.betas],
      eps: group.eps,
      weight_decay: group.weightDecay,
      ...(twoStates ? { alpha: group.alpha, t_alpha: group.tAlpha, t_beta3: group.tBeta3 } : {}),
      params,
    });
  }
  return dict;
}

function tensorsOf(s: ParameterState): Record<string, Tensor> {
  const tensors: Record<string, Tensor> = { state1: s.state1.detach() };
  if (s.state2) tensors.state2 = s.state2.detach();
  if (s.absmax1) {
    tensors.qmap1 = dynamicMap(true, s.state1.device);
    tensors.absmax1 = s.absmax1.detach();
  }
  if (s.absmax2) {
    tensors.qmap2 = dynamicMap(false, s.state1.device);
    tensors.absmax2 = s.absmax2.detach();
  }
  if (s.unormVec) tensors.unorm_vec = s.unormVec.detach();
  return tensors;
}

/** The hyperparameters of a dict's groups; what a group lacks is left out. */
export function groupsOf(dict: OptimizerStateDict): Partial<Hyperparameters>[] {
  return dict.param_groups.map((saved) => {
    const { lr, betas, eps, weight_decay: weightDecay, alpha, t_alpha: tAlpha, t_beta3: tBeta3 } = saved;
    const given = { lr, betas: Array.isArray(betas) ? [...betas] : betas, eps, weightDecay, alpha, tAlpha, tBeta3 };
    return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  });
}

// ReduceOp of csrc/kernels/reduce.h.
const MAX = 2;
const MIN = 3;

function fail(owner: string, message: string): never {
  throw new BnbError("ERR_BNB_FORMAT", `${owner}.loadStateDict: ${message}`);
}

/** Checks a dict; returns what copies its states to the devices of the parameters that it has an entry for. */
export function readStateDict(
  owner: string,
  limits: FamilyLimits,
  groups: readonly ParamGroup[],
  dict: OptimizerStateDict,
): () => Map<Tensor, ParameterState> {
  const { rule } = limits;
  if (typeof dict?.state !== "object" || !Array.isArray(dict.param_groups)) {
    fail(owner, 'the dict must have "state" and "param_groups"');
  }
  if (dict.param_groups.length !== groups.length) {
    fail(owner, `the dict must have ${groups.length} groups, got ${dict.param_groups.length}`);
  }
  checkOwner(owner, limits, dict);
  const entries: [param: Tensor, key: string, entry: StateDictEntry][] = [];
  const known = new Set<string>();
  groups.forEach((group, i) => {
    const indices = dict.param_groups[i]?.params;
    if (!Array.isArray(indices) || indices.length !== group.params.length) {
      fail(owner, `group ${i} must have ${group.params.length} parameters, got ${indices?.length}`);
    }
    group.params.forEach((param, j) => {
      const key = String(indices[j]);
      if (known.has(key)) fail(owner, `indices must be distinct, got ${key} twice`);
      known.add(key);
      const entry = dict.state[key];
      if (entry) entries.push([param, key, entry]);
    });
  });
  for (const key of Object.keys(dict.state)) {
    if (!known.has(key)) fail(owner, `states must belong to a group, got one for index ${key}`);
  }
  const reads = entries.map(([param, key, entry]) => [param, readEntry(owner, rule, param, key, entry)] as const);
  return () => new Map(reads.map(([param, copy]) => [param, copy()]));
}

// The states of one rule mean nothing to another. A dict with a name says whose they are; of one without, as
// bitsandbytes writes it, the hyperparameters must be such as this rule reads. What has two states shows by them.
function checkOwner(owner: string, { rule, usedBetas, usesEps }: FamilyLimits, dict: OptimizerStateDict): void {
  const name = dict.optimizer_name;
  if (name !== undefined) {
    if (name !== rule) fail(owner, `the dict must be of the rule ${rule}, got one of ${String(name)}`);
    return;
  }
  if (hasSecondState(rule)) return;
  for (const { betas, eps } of dict.param_groups) {
    const zero = Array.isArray(betas) ? betas.slice(0, usedBetas).indexOf(0) : -1;
    const isForeign =
      zero >= 0 || (usesEps && eps === 0) || (!usesEps && eps > 0) || betas?.slice?.(usedBetas).some((b) => b !== 0);
    if (isForeign) {
      const came = `betas ${JSON.stringify(betas)} and eps ${eps}`;
      const hint = `give it optimizer_name "${rule}" if it is`;
      fail(owner, `the dict must be of the rule ${rule}, got one without a name with ${came}: ${hint}`);
    }
  }
}

// Whether the least and the largest element of a float32 tensor lie in a range; NaN and infinity lie in none.
function isWithin(t: Tensor, low: number): boolean {
  if (t.size === 0) return true;
  const extreme = (op: number) => {
    using value = run(addon.reduce, op, t, true, 0, false)[0];
    return value.itemSync();
  };
  return extreme(MIN) >= low && extreme(MAX) < Infinity;
}

function readEntry(owner: string, rule: OptimizerName, param: Tensor, key: string, entry: StateDictEntry) {
  const tensors = (entry[quantStateKey] ?? entry) as Record<string, unknown>;
  const step = entry.step;
  if (!Number.isInteger(step) || step < 0)
    fail(owner, `step of state ${key} must be an integer of at least 0, got ${step}`);
  const get = (name: string, dtypes: readonly string[], shape: readonly number[]): Tensor => {
    const t = tensors[name];
    if (!(t instanceof Tensor)) fail(owner, `state ${key} must have ${name}, got ${typeof t}`);
    if (!dtypes.includes(t.dtype))
      fail(owner, `${name} of state ${key} must be ${dtypes.join(" or ")}, got ${t.dtype}`);
    if (t.shape.length !== shape.length || shape.some((dim, axis) => dim !== t.shape[axis])) {
      fail(owner, `${name} of state ${key} must have shape [${shape.join(", ")}], got [${t.shape.join(", ")}]`);
    }
    return t;
  };
  const hasSecond = hasSecondState(rule);
  const shapes = stateShapes(rule, param);
  const state1 = get("state1", ["float32", "uint8"], shapes.state1);
  const is8bit = state1.dtype === "uint8";
  const state2 = hasSecond ? get("state2", [state1.dtype], shapes.state2) : null;
  const absmax1 = is8bit ? get("absmax1", ["float32"], shapes.absmax1) : null;
  const absmax2 = is8bit && hasSecond ? get("absmax2", ["float32"], shapes.absmax2) : null;
  const checked = (name: "qmap1" | "qmap2") => {
    const problem = checkMap(get(name, ["float32"], [256]), name === "qmap1");
    if (problem) fail(owner, `${name} of state ${key} ${problem}`);
  };
  if (!hasSecond && tensors.state2 !== undefined) {
    fail(owner, `state ${key} must have no state2, which the rule ${rule} does not keep, got one`);
  }
  if (tensors.unorm_vec !== undefined && !keepsNorm(rule)) {
    fail(owner, `state ${key} must have no unorm_vec, which only LAMB and LARS keep, got one`);
  }
  // A state that is not finite would hold its element for ever, and a negative second moment has no root.
  const inRange = (name: string, t: Tensor | null, hasSign = false) => {
    if (t && t.dtype === "float32" && !isWithin(t, hasSign ? -Number.MAX_VALUE : 0)) {
      fail(owner, `${name} of state ${key} must be finite${hasSign ? "" : " and not negative"}, got other values`);
    }
  };
  inRange("state1", state1, rule !== "rmsprop" && rule !== "adagrad");
  inRange("state2", state2);
  inRange("absmax1", absmax1);
  inRange("absmax2", absmax2);
  if (is8bit) checked("qmap1");
  if (is8bit && hasSecond) checked("qmap2");
  const copy = (t: Tensor) => keep(run(addon.toDevice, t, param.device.index)[0]);
  return (): ParameterState => ({
    step,
    state1: copy(state1),
    state2: state2 && copy(state2),
    absmax1: absmax1 && copy(absmax1),
    absmax2: absmax2 && copy(absmax2),
    unormVec: newNorm(rule, param),
  });
}
