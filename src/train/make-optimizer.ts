// The optimizer and the schedule that the arguments of a run name.
import type { Module, Parameter } from "../nn/index.js";
import { LayerNorm } from "../nn/index.js";
import type { LambdaLR, Optimizer8bit } from "../optim/index.js";
import { AdamW, AdEMAMix, constantSchedule, cosineSchedule, Lion, linearSchedule, RMSprop } from "../optim/index.js";
import { BnbError } from "../tensor/errors.js";
import { withNearest } from "../tensor/nearest.js";
import type { ResolvedArguments } from "./arguments.js";
import type { OptimFamily } from "./optim-names.js";
import { optimTable } from "./optim-names.js";

/** Keys of `optimArgs` of each family, and the options that they set. */
const extraKeys: Readonly<Record<OptimFamily, readonly string[]>> = {
  adamw: [],
  lion: [],
  ademamix: ["beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3"],
  rmsprop: ["alpha", "eps", "momentum"],
};

/** A parameter with its name. */
export type NamedParameter = readonly [name: string, parameter: Parameter];

/** Names of parameters that never decay. */
const undecayed = /bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)/;

/** The parameters that learn, those that decay first. */
export function trainable(model: Module): { decayed: NamedParameter[]; others: NamedParameter[] } {
  const named = model.namedParameters().filter(([, parameter]) => parameter.requiresGrad);
  const ofNorms = new Set(
    model.modules().flatMap((module) => (module instanceof LayerNorm ? module.parameters() : [])),
  );
  const decays = ([name, parameter]: NamedParameter): boolean =>
    !undecayed.test(name.toLowerCase()) && !ofNorms.has(parameter);
  return { decayed: named.filter(decays), others: named.filter((item) => !decays(item)) };
}

/** The optimizer of `args.optim`, with two groups of parameters: with and without weight decay. */
export function makeOptimizer(op: string, model: Module, args: ResolvedArguments): Optimizer8bit {
  const [family, optimBits, isPaged] = optimTable[args.optim];
  const { decayed, others } = trainable(model);
  const { learningRate: lr, weightDecay } = args;
  const groups = [
    { params: decayed.map(([, p]) => p), weightDecay },
    { params: others.map(([, p]) => p), weightDecay: 0 },
  ].filter(({ params }) => params.length > 0);
  const extra = readOptimArgs(op, args);
  const { beta1 = args.adamBeta1, beta2 = args.adamBeta2, beta3 = 0.9999, eps = args.adamEpsilon } = extra;
  const shared = { lr, optimBits, isPaged };
  switch (family) {
    case "adamw":
      return new AdamW(groups, { ...shared, betas: [beta1, beta2], eps });
    case "lion":
      return new Lion(groups, { ...shared, betas: [beta1, beta2] });
    case "ademamix": {
      const { alpha = 5, t_alpha: tAlpha = null, t_beta3: tBeta3 = null } = extra;
      return new AdEMAMix(groups, { ...shared, betas: [beta1, beta2, beta3], eps, alpha, tAlpha, tBeta3 });
    }
    case "rmsprop": {
      const { alpha = 0.99, eps: own = 1e-8, momentum = 0 } = extra;
      return new RMSprop(groups, { lr, optimBits, alpha, eps: own, momentum });
    }
  }
}

/** The numbers of `args.optimArgs` by key. Throws ERR_BNB_OPTION for keys that the optimizer does not have. */
export function readOptimArgs(op: string, { optim, optimArgs }: ResolvedArguments): Partial<Record<string, number>> {
  const [family] = optimTable[optim];
  const pairs = optimArgs.replaceAll(" ", "").split(",").filter(Boolean);
  return Object.fromEntries(
    pairs.map((pair) => {
      const [key = "", ...rest] = pair.split("=");
      const given = rest.join("=");
      const known = extraKeys[family];
      const value = Number(given);
      if (!known.includes(key)) {
        const rule = `${op}: keys of optimArgs must be among ${known.join(", ") || "none"} for ${family}`;
        throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${withNearest(key, known)}`);
      }
      if (given === "" || !Number.isFinite(value)) {
        throw new BnbError(
          "ERR_BNB_OPTION",
          `${op}: ${key} of optimArgs must be a number, got ${JSON.stringify(given)}`,
        );
      }
      return [key, value];
    }),
  );
}

/** The schedule of `args.lrSchedulerType` over `totalSteps`. */
export function makeSchedule(
  optimizer: Optimizer8bit,
  args: ResolvedArguments,
  warmupSteps: number,
  totalSteps: number,
): LambdaLR {
  switch (args.lrSchedulerType) {
    case "linear":
      return linearSchedule(optimizer, { warmupSteps, totalSteps });
    case "cosine":
      return cosineSchedule(optimizer, { warmupSteps, totalSteps });
    case "constant":
      return constantSchedule(optimizer);
    case "constant_with_warmup":
      return constantSchedule(optimizer, { warmupSteps });
  }
}
