// The native side of a step: the rules by number, and the batch that carries all parameters of a step across in
// one call. Scalars such as bias corrections are made in C++, in float64.
import { addon } from "../tensor/addon.js";
import type { UpdateRule } from "../tensor/enums.js";
import { updateRules } from "../tensor/enums.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** The update rules by bitsandbytes' names. */
export type OptimizerName = UpdateRule;

export const optimizerNames: readonly OptimizerName[] = updateRules;

// LAMB and LARS are adam and momentum with maxUnorm; the rules of their names are the published forms with a trust
// ratio.
function ruleOf(name: OptimizerName, trustRatio: boolean): UpdateRule {
  if (trustRatio) return name;
  return name === "lamb" ? "adam" : name === "lars" ? "momentum" : name;
}

/** How many moments an update rule keeps: state1 holds the first (two for ademamix), state2 the last of two. */
export function hasSecondState(name: OptimizerName): boolean {
  return name === "adam" || name === "lamb" || name === "ademamix";
}

/** Rows of state1: 2 for ademamix, whose two first moments share it. */
export function firstStateRows(name: OptimizerName): 1 | 2 {
  return name === "ademamix" ? 2 : 1;
}

/** Elements that share one scale in an 8-bit state. */
export const stateBlocksize = 256;

/** Numbers of one parameter's update; step counts from 1. */
export interface UpdateScalars {
  step: number;
  lr: number;
  beta1: number;
  beta2: number;
  beta3: number;
  alpha: number;
  eps: number;
  weightDecay: number;
  gnormScale: number;
  maxUnorm: number;
  skipZeros: boolean;
  trustRatio: boolean;
}

/** What is updated beside the parameter; absmax1 exists exactly for 8-bit states. */
export interface StateTensors {
  state1: Tensor;
  state2: Tensor | null;
  absmax1: Tensor | null;
  absmax2: Tensor | null;
  unormVec: Tensor | null;
}

/** The numbers of an update as they cross; parameters with equal numbers share one. */
export type UpdateRow = readonly number[];

/** The row of a rule and its numbers, in the order of Options in csrc/ops/optimizer.cc. */
export function updateRow(name: OptimizerName, s: UpdateScalars): UpdateRow {
  return [
    updateRules.indexOf(ruleOf(name, s.trustRatio)),
    s.step,
    s.lr,
    s.beta1,
    s.beta2,
    s.beta3,
    s.alpha,
    s.eps,
    s.weightDecay,
    s.gnormScale,
    s.maxUnorm,
    s.skipZeros ? 1 : 0,
  ];
}

/** All parameters of a step, updated in place by one native call. */
export class UpdateBatch {
  readonly #tensors: Tensor[] = [];
  readonly #options: number[] = [];

  add(row: UpdateRow, p: Tensor, g: Tensor, s: StateTensors): void {
    const tensors = this.#tensors;
    tensors.push(p, g, s.state1);
    if (s.state2) tensors.push(s.state2);
    if (s.absmax1) tensors.push(s.absmax1);
    if (s.absmax2) tensors.push(s.absmax2);
    if (s.unormVec) tensors.push(s.unormVec);
    const options = this.#options;
    options.push(s.absmax1 ? 8 : 32, s.unormVec ? 1 : 0);
    for (let i = 0; i < row.length; i++) options.push(row[i] as number);
  }

  /** Adds the elements that were left alone because something was not finite to `nonFiniteCount` (float64 [1]). */
  run(nonFiniteCount: Tensor): void {
    run(addon.optimizerStep, this.#tensors, Float64Array.from(this.#options), nonFiniteCount);
  }
}
