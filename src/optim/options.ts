// Options of the optimizers: what a step reads from a group, and the checks that reject what cannot work, what
// would have no effect, and keys that do not exist.
import { BnbError } from "../tensor/errors.js";
import type { Tensor } from "../tensor/tensor.js";

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
  const resolved: Required<Options> = { ...defaults };
  for (const key of Object.keys(given) as (keyof Options)[]) {
    if (!Object.hasOwn(defaults, key)) {
      fail(owner, `options must be among ${Object.keys(defaults).join(", ")}, got ${String(key)}`);
    }
    const value = given[key];
    if (value === undefined) continue;
    if (fixed.includes(key) && value !== defaults[key]) {
      fail(owner, `${String(key)} must be ${String(defaults[key])}, got ${String(value)}`);
    }
    resolved[key] = value as Required<Options>[typeof key];
  }
  return resolved;
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
  const given = options[key];
  if (given !== undefined && given !== value) {
    fail(owner, `${String(key)} must be ${String(value)} or left out, got ${String(given)}`);
  }
  return { ...options, [key]: value };
}

function isAtLeastZero(x: unknown): boolean {
  return typeof x === "number" && x >= 0 && x < Infinity;
}

/** Throws unless every hyperparameter is in its range; `betaCount` betas are expected. */
export function checkHyperparameters(owner: string, h: Hyperparameters, betaCount: number): void {
  for (const key of ["lr", "eps", "weightDecay", "maxUnorm", "alpha"] as const) {
    if (!isAtLeastZero(h[key])) fail(owner, `${key} must be a number of at least 0, got ${String(h[key])}`);
  }
  if (!Array.isArray(h.betas) || h.betas.length !== betaCount) {
    fail(owner, `betas must be ${betaCount} numbers, got ${JSON.stringify(h.betas)}`);
  }
  h.betas.forEach((beta, i) => {
    if (!(beta >= 0 && beta < 1)) fail(owner, `betas[${i}] must be in [0, 1), got ${beta}`);
  });
  for (const key of ["tAlpha", "tBeta3"] as const) {
    const t = h[key];
    if (t !== null && !(t > 0)) fail(owner, `${key} must be null or above 0, got ${t}`);
  }
  if (h.tBeta3 !== null && h.betas[0] === 0) fail(owner, "betas[0] must be above 0 when tBeta3 is set, got 0");
  checkBits(owner, h.optimBits);
  if (!Number.isInteger(h.min8bitSize) || h.min8bitSize < 0) {
    fail(owner, `min8bitSize must be an integer of at least 0, got ${h.min8bitSize}`);
  }
}

export function checkBits(owner: string, bits: number): void {
  if (bits !== 8 && bits !== 32) fail(owner, `optimBits must be 8 or 32, got ${bits}`);
}
