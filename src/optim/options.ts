// Options of the optimizers: what a step reads from a group, and the checks that reject what cannot work, what
// would have no effect, and keys that do not exist.
import type { Check } from "../tensor/checks.js";
import { aBoolean } from "../tensor/checks.js";
import { describe, isPlainObject } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { failUnknownKey } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import type { OptimizerName } from "./update-rule.js";

/** Options that every optimizer takes. */
export interface CommonOptions {
  /** Bits of the states, 8 or 32. Parameters below min8bitSize elements keep 32. Default 32. */
  optimBits?: 8 | 32;
  /** Parameters with fewer elements keep 32-bit states. Default 4096. */
  min8bitSize?: number;
  /** Elements with a zero gradient keep their parameter and their state. Default false. */
  skipZeros?: boolean;
  /** Largest norm of an update relative to the norm of its parameter; 0 switches the clipping off. */
  maxUnorm?: number;
}

/** What a step reads from a group. Fields may be changed between steps: schedulers set `lr`. */
export interface Hyperparameters {
  lr: number;
  /** [beta1, beta2] (and beta3); [momentum, 0] for SGD and LARS, [alpha, 0] for RMSprop. */
  betas: number[];
  eps: number;
  weightDecay: number;
  alpha: number;
  tAlpha: number | null;
  tBeta3: number | null;
  optimBits: 8 | 32;
  min8bitSize: number;
  maxUnorm: number;
  skipZeros: boolean;
  trustRatio: boolean;
}

/** Parameters that share hyperparameters. The fields may be changed between steps. */
export interface ParamGroup extends Hyperparameters {
  params: Tensor[];
}

/** Parameters with options that differ from the optimizer's. */
export type GroupOptions<Options> = { params: Iterable<Tensor> } & Partial<Options>;

/** What an optimizer is made for: parameters, or groups of them. */
export type Params<Options> = Iterable<Tensor> | Iterable<GroupOptions<Options>>;

/** The options of an …8bit class. */
export type EightBit<Options> = Omit<Options, "optimBits"> & { optimBits?: 8 };
/** The options of an …32bit class. */
export type ThirtyTwoBit<Options> = Omit<Options, "optimBits"> & { optimBits?: 32 };
/** The options of a Paged… class. */
export type Paged<Options> = Omit<Options, "isPaged"> & { isPaged?: true };

function fail(owner: string, message: string): never {
  throw new BnbError("ERR_BNB_OPTION", `${owner}: ${message}`);
}

/** `given` over `defaults`; unknown keys throw, and so do values other than the default of `fixed` keys. */
export function resolveOptions<Options extends object>(
  owner: string,
  given: Partial<Options>,
  defaults: Required<Options>,
  fixed: readonly (keyof Options)[],
): Required<Options> {
  checkIsObject(owner, given);
  const resolved: Required<Options> = { ...defaults };
  for (const key of Object.keys(given) as (keyof Options)[]) {
    if (!Object.hasOwn(defaults, key)) failUnknownKey(owner, String(key), Object.keys(defaults));
    const value = given[key];
    if (value === undefined) continue;
    if (typeof defaults[key] === "boolean" && typeof value !== "boolean") {
      fail(owner, `${String(key)} must be true or false, got ${describe(value)}`);
    }
    if (fixed.includes(key) && value !== defaults[key]) {
      fail(owner, `${String(key)} must be ${String(defaults[key])}, got ${String(value)}`);
    }
    resolved[key] = value as Required<Options>[typeof key];
  }
  return resolved;
}

function checkIsObject(owner: string, given: unknown): void {
  if (!isPlainObject(given)) fail(owner, `options must be an object, got ${describe(given)}`);
}

/** The part of the hyperparameters that every family takes over as it is. */
export function commonHyperparameters(o: Required<CommonOptions> & { lr: number; weightDecay: number }) {
  const { lr, weightDecay, optimBits, min8bitSize, maxUnorm, skipZeros } = o;
  return { lr, weightDecay, optimBits, min8bitSize, maxUnorm, skipZeros, trustRatio: false, ...noSchedule };
}

const noSchedule = { alpha: 0, tAlpha: null, tBeta3: null };

/** Defaults of the options that every optimizer takes. */
export const commonDefaults: Required<CommonOptions> = {
  optimBits: 32,
  min8bitSize: 4096,
  skipZeros: false,
  maxUnorm: 0,
};

/** The options of a class whose name fixes one of them. */
export function withFixed<Options extends object, Key extends keyof Options>(
  owner: string,
  options: Options,
  key: Key,
  value: Options[Key],
): Options {
  if (options !== undefined) checkIsObject(owner, options);
  const given = options?.[key];
  if (given !== undefined && given !== value) {
    fail(owner, `${String(key)} must be ${String(value)} or left out, got ${String(given)}`);
  }
  return { ...options, [key]: value };
}

/** What of the hyperparameters a rule reads. */
export interface FamilyLimits {
  rule: OptimizerName;
  /** Length of `betas`. */
  betaCount: number;
  /** How many of them the rule reads; the others are 0. */
  usedBetas: number;
  /** Whether the rule reads eps; else it is 0. */
  usesEps: boolean;
}

/** What distinguishes one optimizer from another. */
export interface OptimizerFamily<Options extends object> extends FamilyLimits {
  defaults: Required<Options>;
  /** Options that bitsandbytes has and that would change nothing: only their default is accepted. */
  fixed: readonly (keyof Options)[];
  hyperparameters(options: Required<Options>): Hyperparameters;
}

const isAtLeastZero = (x: unknown): boolean => typeof x === "number" && x >= 0 && x < Infinity;
const atLeastZero = { rule: "a number of at least 0", holds: isAtLeastZero };
const steps = {
  rule: "null or above 0",
  holds: (x: unknown) => x === null || (typeof x === "number" && x > 0),
};

// What each hyperparameter must be, whatever the optimizer.
const ranges: Record<Exclude<keyof Hyperparameters, "betas">, Check> = {
  lr: atLeastZero,
  eps: atLeastZero,
  weightDecay: atLeastZero,
  maxUnorm: atLeastZero,
  alpha: atLeastZero,
  tAlpha: steps,
  tBeta3: steps,
  optimBits: { rule: "8 or 32", holds: (x) => x === 8 || x === 32 },
  min8bitSize: { rule: "an integer of at least 0", holds: (x) => Number.isInteger(x) && (x as number) >= 0 },
  skipZeros: aBoolean,
  trustRatio: aBoolean,
};

const rangeKeys = Object.keys(ranges) as (keyof typeof ranges)[];

function checkBetas(owner: string, betas: unknown): void {
  if (!Array.isArray(betas)) fail(owner, `betas must be an array of numbers, got ${String(betas)}`);
  betas.forEach((beta: unknown, i) => {
    if (!(isAtLeastZero(beta) && (beta as number) < 1)) {
      fail(owner, `betas[${i}] must be in [0, 1), got ${String(beta)}`);
    }
  });
}

/** Throws unless the hyperparameters that are there are in their ranges. */
export function checkRanges(owner: string, h: Partial<Hyperparameters>): void {
  for (const key of Object.keys(h) as (keyof Hyperparameters)[]) {
    if (key === "betas") checkBetas(owner, h.betas);
    else if (Object.hasOwn(ranges, key) && !ranges[key].holds(h[key])) {
      fail(owner, `${key} must be ${ranges[key].rule}, got ${String(h[key])}`);
    }
  }
}

/**
 * Throws unless every hyperparameter is in its range and the family reads it. Where a step reads them: they may have
 * come by a constructor, a group's fields, a scheduler, an override or a state dict.
 */
export function checkHyperparameters(owner: string, h: Hyperparameters, family: FamilyLimits): void {
  const { betaCount, usedBetas, usesEps } = family;
  for (const key of rangeKeys) {
    if (!ranges[key].holds(h[key])) fail(owner, `${key} must be ${ranges[key].rule}, got ${String(h[key])}`);
  }
  const { betas } = h;
  if (!Array.isArray(betas) || betas.length !== betaCount) {
    fail(owner, `betas must be ${betaCount} numbers, got ${JSON.stringify(betas)}`);
  }
  checkBetas(owner, betas);
  for (let i = usedBetas; i < betaCount; i++) {
    if (betas[i] !== 0) fail(owner, `betas[${i}] must be 0, it is not read, got ${betas[i]}`);
  }
  if (!usesEps && h.eps !== 0) fail(owner, `eps must be 0, it is not read, got ${h.eps}`);
  if (h.tBeta3 !== null) {
    for (const i of [0, 2]) {
      if (betas[i] === 0) fail(owner, `betas[${i}] must be above 0 when tBeta3 is set, got 0`);
    }
  }
}
