// Optimizers from the reference's description of them, and random data for their parameters.
import type { Tensor } from "../../src/index.js";
import type { Optimizer8bit } from "../../src/optim/index.js";
import { Adagrad, AdamW, AdEMAMix, LAMB, LARS, Lion, RMSprop, SGD } from "../../src/optim/index.js";
import type { Hyper } from "../reference/optimizers.js";

/** The optimizer that a reference description stands for. */
export function makeOptimizer(params: Tensor[], h: Hyper, optimBits: 8 | 32 = 32): Optimizer8bit {
  const { lr, eps, weightDecay, maxUnorm, skipZeros = false, trustRatio = false } = h;
  const [beta1, beta2, beta3] = h.betas as [number, number, number];
  const common = {
    lr,
    weightDecay,
    skipZeros,
    optimBits,
    min8bitSize: 0,
    ...(maxUnorm === undefined ? {} : { maxUnorm }),
  };
  switch (h.rule) {
    case "adam":
      return new AdamW(params, { ...common, eps, betas: [beta1, beta2] });
    case "ademamix": {
      const { alpha = 5, tAlpha = null, tBeta3 = null } = h;
      return new AdEMAMix(params, { ...common, eps, betas: [beta1, beta2, beta3], alpha, tAlpha, tBeta3 });
    }
    case "lion":
      return new Lion(params, { ...common, betas: [beta1, beta2] });
    case "momentum":
      return new SGD(params, { ...common, momentum: beta1 });
    case "rmsprop":
      return new RMSprop(params, { ...common, eps, alpha: beta1 });
    case "adagrad":
      return new Adagrad(params, { ...common, eps });
    case "lamb":
      return new LAMB(params, { ...common, eps, betas: [beta1, beta2], trustRatio });
    case "lars":
      return new LARS(params, { ...common, momentum: beta1, trustRatio });
  }
}

/** What the tests run: every rule, with the options that change its arithmetic. */
export const hypers: [name: string, h: Hyper][] = [
  ["Adam", { rule: "adam", lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0 }],
  ["AdamW", { rule: "adam", lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.1 }],
  ["AdamW, maxUnorm", { rule: "adam", lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.1, maxUnorm: 0.05 }],
  ["AdamW, skipZeros", { rule: "adam", lr: 1e-3, betas: [0.8, 0.95], eps: 1e-6, weightDecay: 0.1, skipZeros: true }],
  ["SGD", { rule: "momentum", lr: 0.05, betas: [0.9], eps: 0, weightDecay: 0.01 }],
  ["SGD, skipZeros", { rule: "momentum", lr: 0.05, betas: [0.9], eps: 0, weightDecay: 0.01, skipZeros: true }],
  ["SGD, maxUnorm", { rule: "momentum", lr: 0.05, betas: [0.9], eps: 0, weightDecay: 0.01, maxUnorm: 0.03 }],
  ["Lion", { rule: "lion", lr: 1e-4, betas: [0.9, 0.99], eps: 0, weightDecay: 0.1 }],
  ["Lion, maxUnorm", { rule: "lion", lr: 1e-4, betas: [0.9, 0.99], eps: 0, weightDecay: 0.1, maxUnorm: 0.1 }],
  ["RMSprop", { rule: "rmsprop", lr: 1e-3, betas: [0.99], eps: 1e-8, weightDecay: 0.01 }],
  ["Adagrad", { rule: "adagrad", lr: 1e-2, betas: [], eps: 1e-10, weightDecay: 0.01 }],
  ["AdEMAMix", { rule: "ademamix", lr: 1e-3, betas: [0.9, 0.999, 0.9999], eps: 1e-8, weightDecay: 0.01, alpha: 5 }],
  [
    "AdEMAMix, schedules",
    {
      ...{ rule: "ademamix", lr: 1e-3, betas: [0.9, 0.999, 0.9999], eps: 1e-8, weightDecay: 0.01, alpha: 5 },
      ...{ tAlpha: 12, tBeta3: 12 },
    } as Hyper,
  ],
  ["LAMB", { rule: "lamb", lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01, maxUnorm: 1 }],
  ["LAMB, trustRatio", { rule: "lamb", lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01, trustRatio: true }],
  ["LARS", { rule: "lars", lr: 0.05, betas: [0.9], eps: 0, weightDecay: 0.01, maxUnorm: 0.02 }],
  [
    "LARS, trustRatio",
    { rule: "lars", lr: 1, betas: [0.9], eps: 0, weightDecay: 0.01, maxUnorm: 0.02, trustRatio: true },
  ],
];

/** n normal deviates times `scale` as float32, the same for the same seed (mulberry32, Box-Muller). */
export function normals(n: number, scale: number, seed: number): Float32Array {
  let a = seed >>> 0;
  const uniform = () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  };
  return Float32Array.from(
    { length: n },
    () => scale * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()),
  );
}

/** Gradients of step `t`: normal, every 17th element zero, one step in five ten times as large. */
export function gradients(n: number, t: number): Float32Array {
  const g = normals(n, t % 5 === 4 ? 0.1 : 0.01, 1000 + t);
  for (let i = 3; i < n; i += 17) g[i] = i % 2 ? 0 : -0;
  return g;
}
