// bitsandbytes' functional optimizer updates: one parameter, in place, every tensor and number in the caller's hands.
import {
  aBoolean,
  aFiniteNumber,
  aNumberIn,
  anInteger,
  aTensor,
  checkTensor,
  orNull,
  required,
} from "../tensor/checks.js";
import { tensor } from "../tensor/create.js";
import { shown } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import { checkMap } from "./state-map.js";
import type { OptimizerName, StateTensors, UpdateScalars } from "./update-rule.js";
import { hasSecondState, optimizerNames, UpdateBatch, updateRow } from "./update-rule.js";

/** Numbers of an update. */
export interface OptimizerUpdateOptions {
  beta1: number;
  beta2?: number;
  beta3?: number;
  /** Weight of the slow moment (ademamix). */
  alpha?: number;
  eps: number;
  /** Counts from 1. */
  step: number;
  lr: number;
  weightDecay?: number;
  /** The gradient is multiplied by it first. */
  gnormScale?: number;
  /** Receives the norm of the update; needed by nothing. */
  unormVec?: Tensor | null;
  maxUnorm?: number;
  skipZeros?: boolean;
}

// Code tables that were found to be the built-in ones, and as what.
const checkedMaps = new WeakMap<Tensor, { signed: boolean; version: number }>();

function checkName(op: string, name: OptimizerName): void {
  if (!optimizerNames.includes(name)) {
    throw new BnbError(
      "ERR_BNB_OPTION",
      `${op}: the name must be one of ${optimizerNames.join(", ")}, got ${shown(name)}`,
    );
  }
}

const beta = { rule: "a number in [0, 1)", holds: (x: unknown) => typeof x === "number" && x >= 0 && x < 1 };
const mapOrScales = orNull(aTensor);
const checks = {
  beta1: required(beta),
  beta2: beta,
  beta3: beta,
  alpha: aNumberIn(0),
  eps: required(aNumberIn(0)),
  step: required(anInteger(1)),
  lr: required(aNumberIn(0)),
  weightDecay: aNumberIn(0),
  gnormScale: aFiniteNumber,
  unormVec: orNull(aTensor),
  maxUnorm: aNumberIn(0),
  skipZeros: aBoolean,
};
const options32bit = optionTable<OptimizerUpdateOptions & { state2?: Tensor | null }>({
  ...checks,
  state2: orNull(aTensor),
});
const options8bit = optionTable<
  OptimizerUpdateOptions & { qmap1: Tensor; qmap2?: Tensor | null; absmax1: Tensor; absmax2?: Tensor | null }
>({ ...checks, qmap1: mapOrScales, qmap2: mapOrScales, absmax1: mapOrScales, absmax2: mapOrScales });

function apply(name: OptimizerName, g: Tensor, p: Tensor, state: StateTensors, options: OptimizerUpdateOptions): void {
  const { beta1, beta2 = 0, beta3 = 0, alpha = 0, eps, step, lr, weightDecay = 0, gnormScale = 1 } = options;
  const { maxUnorm = 0, skipZeros = false } = options;
  const rates = { step, lr, beta1, beta2, beta3, alpha, eps, weightDecay, gnormScale, maxUnorm };
  const scalars: UpdateScalars = { ...rates, skipZeros, trustRatio: false };
  const batch = new UpdateBatch();
  batch.add(updateRow(name, scalars), p, g, state);
  using count = tensor(new Float64Array(1), { dtype: "float64", device: p.device });
  batch.run(count);
}

function needed(op: string, what: string, t: Tensor | null | undefined): Tensor {
  if (!t) throw new BnbError("ERR_BNB_ARGUMENT", `${op}: ${what} must be given, got ${shown(t)}`);
  return t;
}

/**
 * One update of `p` with float32 states, all in place: `state1` like p (for ademamix [2, ...p]), `state2` like p for
 * adam, lamb and ademamix.
 *
 * @example
 * optimizerUpdate32bit("adam", g, p, m, { state2: v, beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 1, lr: 1e-3 });
 */
export function optimizerUpdate32bit(
  name: OptimizerName,
  g: Tensor,
  p: Tensor,
  state1: Tensor,
  options: OptimizerUpdateOptions & { state2?: Tensor | null },
): void {
  const op = "optimizerUpdate32bit";
  checkName(op, name);
  for (const [key, t] of Object.entries({ g, p, state1 })) checkTensor(op, key, t);
  checkOptions(op, options, options32bit);
  const state2 = hasSecondState(name) ? needed(op, "state2", options.state2) : null;
  const unormVec = options.unormVec ?? null;
  apply(name, g, p, { state1, state2, absmax1: null, absmax2: null, unormVec }, options);
}

/**
 * One update of `p` with 8-bit states, all in place: uint8 codes and float32 scales per 256 elements (`absmax1`,
 * `absmax2`). `qmap1` and `qmap2` must be the signed and the unsigned dynamic map; a table is looked at once, and when it was changed.
 */
export function optimizerUpdate8bitBlockwise(
  name: OptimizerName,
  g: Tensor,
  p: Tensor,
  state1: Tensor,
  state2: Tensor | null,
  options: OptimizerUpdateOptions & {
    qmap1: Tensor;
    qmap2?: Tensor | null;
    absmax1: Tensor;
    absmax2?: Tensor | null;
  },
): void {
  const op = "optimizerUpdate8bitBlockwise";
  checkName(op, name);
  for (const [key, t] of Object.entries({ g, p, state1 })) checkTensor(op, key, t);
  checkOptions(op, options, options8bit);
  const hasSecond = hasSecondState(name);
  const useMap = (key: "qmap1" | "qmap2") => {
    const map = needed(op, key, options[key]);
    const signed = key === "qmap1";
    const checked = checkedMaps.get(map);
    if (checked?.signed === signed && checked.version === map.version) return;
    if (map.dtype !== "float32" || map.size !== 256) {
      throw new BnbError("ERR_BNB_OPTION", `${op}: ${key} must be float32 [256], got ${shown(map)}`);
    }
    const problem = checkMap(map, signed);
    if (problem) throw new BnbError("ERR_BNB_OPTION", `${op}: ${key} ${problem}`);
    checkedMaps.set(map, { signed, version: map.version });
  };
  useMap("qmap1");
  if (hasSecond) useMap("qmap2");
  const state: StateTensors = {
    state1,
    state2: hasSecond ? needed(op, "state2", state2) : null,
    absmax1: needed(op, "absmax1", options.absmax1),
    absmax2: hasSecond ? needed(op, "absmax2", options.absmax2) : null,
    unormVec: options.unormVec ?? null,
  };
  apply(name, g, p, state, options);
}
