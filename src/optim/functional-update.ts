// bitsandbytes' functional optimizer updates: one parameter, in place, every tensor and number in the caller's hands.
import { aBoolean, aNumber, aTensor, checkTensor, orNull, required } from "../tensor/checks.js";
import { tensor } from "../tensor/create.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import { checkMap } from "./state-map.js";
import type { OptimizerName, StateTensors } from "./update-rule.js";
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

const updateChecks = {
  beta1: required(aNumber),
  beta2: aNumber,
  beta3: aNumber,
  alpha: aNumber,
  eps: required(aNumber),
  step: required(aNumber),
  lr: required(aNumber),
  weightDecay: aNumber,
  gnormScale: aNumber,
  unormVec: orNull(aTensor),
  maxUnorm: aNumber,
  skipZeros: aBoolean,
};
type Update32Options = OptimizerUpdateOptions & { state2?: Tensor | null };
const update32Options = optionTable<Update32Options>({ ...updateChecks, state2: orNull(aTensor) });
type Update8Options = OptimizerUpdateOptions & {
  qmap1: Tensor;
  qmap2?: Tensor | null;
  absmax1: Tensor;
  absmax2?: Tensor | null;
};
const update8Options = optionTable<Update8Options>({
  ...updateChecks,
  qmap1: required(aTensor),
  qmap2: orNull(aTensor),
  absmax1: required(aTensor),
  absmax2: orNull(aTensor),
});

// Code tables that were found to be the built-in ones.
const checkedMaps = new WeakMap<Tensor, boolean>();

function checkName(op: string, name: OptimizerName): void {
  if (!optimizerNames.includes(name)) {
    throw new BnbError(
      "ERR_BNB_OPTION",
      `${op}: the name must be one of ${optimizerNames.join(", ")}, got ${String(name)}`,
    );
  }
}

function apply(name: OptimizerName, g: Tensor, p: Tensor, state: StateTensors, options: OptimizerUpdateOptions): void {
  const { beta1, beta2 = 0, beta3 = 0, alpha = 0, eps, step, lr, weightDecay = 0, gnormScale = 1 } = options;
  const { maxUnorm = 0, skipZeros = false } = options;
  const scalars = { beta1, beta2, beta3, alpha, eps, step, lr, weightDecay, gnormScale, maxUnorm, skipZeros };
  const batch = new UpdateBatch();
  batch.add(updateRow(name, { ...scalars, trustRatio: false }), p, g, state);
  const count = tensor(new Float64Array(1), { dtype: "float64", device: p.device });
  batch.run(count);
  count.dispose();
}

function needed(op: string, what: string, t: Tensor | null | undefined): Tensor {
  if (!t) throw new BnbError("ERR_BNB_ARGUMENT", `${op}: ${what} must be given, got ${String(t)}`);
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
  options: Update32Options,
): void {
  const op = "optimizerUpdate32bit";
  checkName(op, name);
  for (const [key, t] of Object.entries({ g, p, state1 })) checkTensor(op, key, t);
  checkOptions(op, options, update32Options);
  const state2 = hasSecondState(name) ? needed(op, "state2", options.state2) : null;
  const unormVec = options.unormVec ?? null;
  apply(name, g, p, { state1, state2, absmax1: null, absmax2: null, unormVec }, options);
}

/**
 * One update of `p` with 8-bit states, all in place: uint8 codes and float32 scales per 256 elements (`absmax1`,
 * `absmax2`). `qmap1` and `qmap2` must be the signed and the unsigned dynamic map; a table is looked at once.
 */
export function optimizerUpdate8bitBlockwise(
  name: OptimizerName,
  g: Tensor,
  p: Tensor,
  state1: Tensor,
  state2: Tensor | null,
  options: Update8Options,
): void {
  const op = "optimizerUpdate8bitBlockwise";
  checkName(op, name);
  for (const [key, t] of Object.entries({ g, p, state1 })) checkTensor(op, key, t);
  checkOptions(op, options, update8Options);
  const hasSecond = hasSecondState(name);
  const useMap = (key: "qmap1" | "qmap2") => {
    const map = needed(op, key, options[key]);
    if (checkedMaps.has(map)) return;
    if (map.dtype !== "float32" || map.size !== 256) {
      throw new BnbError("ERR_BNB_OPTION", `${op}: ${key} must be float32 [256], got ${String(map)}`);
    }
    const problem = checkMap(map, key === "qmap1");
    if (problem) throw new BnbError("ERR_BNB_OPTION", `${op}: ${key} ${problem}`);
    checkedMaps.set(map, true);
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
