// The numbers of a step are checked where it reads them, however they came there; and what they still make of an
// element that is not finite is left alone and counted.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { full, tensor } from "../../src/index.js";
import { copyInto } from "../../src/ops/shape.js";
import type { Hyperparameters, Optimizer8bit, ParameterConfig } from "../../src/optim/index.js";
import {
  AdEMAMix,
  clipGradNorm,
  constantSchedule,
  cosineSchedule,
  GlobalOptimManager,
  LambdaLR,
  Lion,
  linearSchedule,
  optimizerUpdate32bit,
  SGD,
} from "../../src/optim/index.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { hypers, makeOptimizer, normals } from "../helpers/optimizers.js";
import type { Hyper } from "../reference/optimizers.js";
import { referenceStep, stateCount } from "../reference/optimizers.js";

const manager = GlobalOptimManager.getInstance();

describe("numbers that a step reads", () => {
  function parameter(n = 4): Tensor {
    const p = tensor(new Float32Array(n).fill(1), { requiresGrad: true });
    p.grad = tensor(new Float32Array(n).fill(0.5));
    return p;
  }
  type Wrong = [key: keyof Hyperparameters, value: unknown, message: string | RegExp];
  const wrong: Wrong[] = [
    ["lr", Number.NaN, "lr must be a number of at least 0, got NaN"],
    ["lr", undefined, "lr must be a number of at least 0, got undefined"],
    ["lr", -1, "lr must be a number of at least 0, got -1"],
    ["lr", Infinity, "lr must be a number of at least 0, got Infinity"],
    ["lr", "0.1", "lr must be a number of at least 0, got 0.1"],
    ["eps", Number.NaN, "eps must be a number of at least 0, got NaN"],
    ["weightDecay", Number.NaN, "weightDecay must be a number of at least 0, got NaN"],
    ["maxUnorm", Number.NaN, "maxUnorm must be a number of at least 0, got NaN"],
    ["alpha", Number.NaN, "alpha must be a number of at least 0, got NaN"],
    ["tAlpha", 0, "tAlpha must be null or above 0, got 0"],
    ["tBeta3", Number.NaN, "tBeta3 must be null or above 0, got NaN"],
    ["betas", [Number.NaN, 0.9, 0.9], /betas must be 2 numbers, got |betas\[0\] must be in \[0, 1\), got NaN/],
    ["betas", 0.9, /betas must be (2|3|an array of) numbers, got 0.9/],
    ["skipZeros", 1, "skipZeros must be true or false, got 1"],
    ["optimBits", 16, "optimBits must be 8 or 32, got 16"],
    ["min8bitSize", Number.NaN, "min8bitSize must be an integer of at least 0, got NaN"],
  ];

  describe.each(hypers)("%s", (_, h: Hyper) => {
    it.each(wrong)("refuses %s %s, set in a group or by an override, and changes nothing", (key, value, message) => {
      const ways: ((optimizer: Optimizer8bit, p: Tensor) => void)[] = [
        (optimizer) => Object.assign(optimizer.paramGroups[0]!, { [key]: value }),
        (_, p) => Object.assign(p, { optimConfig: { [key]: value } as ParameterConfig }),
      ];
      for (const way of ways) {
        const p = parameter();
        const optimizer = makeOptimizer([p], h);
        optimizer.step();
        const before = p.floatsSync();
        way(optimizer, p);
        expect(() => optimizer.step()).toThrow(message);
        expect(() => optimizer.step()).toThrow(expect.objectContaining({ code: "ERR_BNB_OPTION" }));
        expect(p.floatsSync()).toEqual(before);
        expect(optimizer.stateOf(p)!.step).toBe(1);
        optimizer.dispose();
      }
    });
  });

  it("an override is checked when it is made", () => {
    const p = parameter();
    for (const [key, value, message] of wrong.filter(([key]) => key !== "betas")) {
      expect(() => manager.overrideConfig(p, { [key]: value })).toThrow(message);
      expect(() => manager.registerModuleOverride({ p }, "p", { [key]: value })).toThrow(message);
    }
    expect(() => manager.overrideConfig(p, "betas", [0.9, 1])).toThrow("betas[1] must be in [0, 1), got 1");
    Object.assign(p, { optimConfig: { learningRate: 1 } });
    expect(() => new SGD([p], { lr: 0.1, momentum: 0.9 }).step()).toThrow(/keys must be among .* got learningRate/);
  });

  it("what the rule does not read must be 0, so that no other rule's numbers pass for its own", () => {
    const [lion, sgd] = [new Lion([parameter()]), new SGD([parameter()], { lr: 0.1, momentum: 0.9 })];
    lion.paramGroups[0]!.eps = 1e-8;
    expect(() => lion.step()).toThrow("Lion: eps must be 0, it is not read, got 1e-8");
    sgd.paramGroups[0]!.betas = [0.9, 0.999];
    expect(() => sgd.step()).toThrow("SGD: betas[1] must be 0, it is not read, got 0.999");
    const options = { betas: [0.9, 0.99, 0] as [number, number, number], tBeta3: 5 };
    expect(() => new AdEMAMix([parameter()], options)).toThrow("betas[2] must be above 0 when tBeta3 is set, got 0");
  });

  it("a schedule whose factor is no rate throws and stays where it is", () => {
    const optimizer = new SGD([parameter()], { lr: 0.5, momentum: 0.9 });
    const nothing = (() => undefined) as unknown as () => number;
    expect(() => new LambdaLR(optimizer, nothing)).toThrow(
      "LambdaLR: the factor of step 0 must be a number of at least 0, got undefined",
    );
    for (const bad of [Number.NaN, -1, Infinity, "1"]) {
      const scheduler = new LambdaLR(optimizer, (step) => (step === 1 ? (bad as number) : 1));
      expect(() => scheduler.step()).toThrow(`the factor of step 1 must be a number of at least 0, got ${bad}`);
      expect([scheduler.lastStep, ...scheduler.lastLr]).toEqual([0, 0.5]);
    }
    const scheduler = constantSchedule(optimizer);
    const load = (dict: object) => () => scheduler.loadStateDict(dict as { lastStep: number; baseRates: number[] });
    expect(load({ baseRates: [1] })).toThrow("lastStep must be an integer of at least 0, got undefined");
    expect(load({ lastStep: 1.5, baseRates: [1] })).toThrow("lastStep must be an integer of at least 0, got 1.5");
    expect(load({ lastStep: 1, baseRates: [Number.NaN] })).toThrow("baseRates[0] must be a number of at least 0");
    expect(scheduler.lastLr).toEqual([0.5]);
  });

  it("schedules, clipping and functional updates know their options", () => {
    const optimizer = new SGD([parameter()], { lr: 0.5, momentum: 0.9 });
    const wrong = (options: object) => options as never;
    expect(() => linearSchedule(optimizer, wrong({ totalSteps: 5, warmup_steps: 2 }))).toThrow(
      "linearSchedule: options must be among warmupSteps, totalSteps, got warmup_steps (did you mean warmupSteps?)",
    );
    expect(() => cosineSchedule(optimizer, wrong({}))).toThrow("cosineSchedule: totalSteps must be an integer");
    expect(() => constantSchedule(optimizer, wrong({ steps: 2 }))).toThrow("constantSchedule: options must be among");
    expect(() => clipGradNorm([parameter()], 1, wrong({ norm_type: 2 }))).toThrow("did you mean normType?");
    expect(() => new LambdaLR(optimizer, wrong([]))).toThrow("LambdaLR: factor must be a function, got []");
  });

  it("the functional updates check theirs", () => {
    const t = () => tensor([1, 1]);
    const update = (over: object) => () =>
      optimizerUpdate32bit("adam", t(), t(), t(), {
        ...{ state2: t(), beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 1, lr: 0.1 },
        ...over,
      });
    const cases: [over: object, message: string][] = [
      [{ lr: Number.NaN }, "lr must be a finite number of at least 0, got NaN"],
      [{ beta2: 1 }, "beta2 must be a number in [0, 1), got 1"],
      [{ eps: "0" }, 'eps must be a finite number of at least 0, got "0"'],
      [{ step: 0.5 }, "step must be an integer of at least 1, got 0.5"],
      [{ gnormScale: Number.NaN }, "gnormScale must be a finite number, got NaN"],
      [{ maxUnorm: -1 }, "maxUnorm must be a finite number of at least 0, got -1"],
      [{ weight_decay: 0.1 }, "options must be among "],
    ];
    for (const [over, message] of cases) expect(update(over)).toThrow(`optimizerUpdate32bit: ${message}`);
  });
});

describe.each(testDevices())("elements that would become no number on %s", (device) => {
  // Two vectors of a whole tile, the end of one, and what is left of the last.
  const bad = [3, 100, 255, 299];
  const n = 300;

  it.each([8, 32].flatMap((bits) => hypers.map(([name, h]): [string, number, Hyper] => [name, bits, h])))(
    "%s, %i bits: beyond float16",
    async (_, bits, hyper) => {
      // The move is some hundreds in every rule: past the largest value where the parameter is next to it.
      const lr = hyper.rule === "lamb" && hyper.trustRatio ? 0.01 : hyper.trustRatio ? 1 : 100;
      const maxUnorm = hyper.trustRatio ? hyper.maxUnorm : 10;
      const h = { ...hyper, lr, weightDecay: 0, maxUnorm } as Hyper;
      const p = tensor(new Float32Array(n).fill(1), { dtype: "float16", device, requiresGrad: true });
      const start = p.floatsSync();
      for (const i of bad) start[i] = -65504;
      copyInto(p, tensor(start, { dtype: "float16", device }));
      const g = new Float32Array(n).fill(1);
      p.grad = tensor(g, { dtype: "float16", device });
      const optimizer = makeOptimizer([p], h, bits as 8 | 32);
      optimizer.step();
      const zeros = Array.from({ length: stateCount(h.rule) }, () => new Array<number>(n).fill(0));
      const want = referenceStep(h, 1, start, g, zeros, 65520);
      expect([...want.touched.keys()].filter((i) => !want.touched[i])).toEqual(bad);
      expectClose(p.floatsSync(), want.p, { atol: 1e-6, rtol: 2 ** -10 });
      expect(await optimizer.nonFiniteCount).toBe(bad.length);
      optimizer.dispose();
    },
  );

  it.each([
    ["float32", 3.4e38, 1e37],
    ["bfloat16", 3.38e38, 2e36],
  ] as const)("%s overflows as it is rounded", async (dtype, largest, lr) => {
    for (const optimBits of [8, 32] as const) {
      const start = new Float32Array(n).fill(1);
      for (const i of bad) start[i] = -largest;
      const p = tensor(start, { dtype, device, requiresGrad: true });
      const before = p.floatsSync();
      p.grad = tensor(new Float32Array(n).fill(1), { dtype, device });
      const optimizer = new Lion([p], { lr, optimBits, min8bitSize: 0 });
      optimizer.step();
      const after = p.floatsSync();
      for (const i of bad) expect(after[i]).toBe(before[i]);
      expectClose([after[0]!, after[150]!, after[298]!], [-lr, -lr, -lr], { atol: 0, rtol: 2 ** -8 });
      expect(await optimizer.nonFiniteCount).toBe(bad.length);
      optimizer.dispose();
    }
  });

  it.each(["adam", "ademamix", "lamb", "rmsprop", "adagrad"] as const)("%s: a root of less than 0", async (rule) => {
    const h = hypers.find(([, hyper]) => hyper.rule === rule)![1];
    for (const bits of [8, 32] as const) {
      const p = tensor(normals(n, 0.1, 3), { device, requiresGrad: true });
      p.grad = tensor(normals(n, 0.1, 4), { device });
      const optimizer = makeOptimizer([p], h, bits);
      optimizer.step();
      const before = p.floatsSync();
      const state = optimizer.stateOf(p)!;
      const moment = state.state2 ?? state.state1;
      if (bits === 32) {
        const values = moment.floatsSync();
        for (const i of bad) values[i] = -1;
        copyInto(moment, tensor(values, { device }));
      } else {
        copyInto(state.absmax2 ?? state.absmax1!, full([2], -1, { device }));
      }
      optimizer.step();
      const after = p.floatsSync();
      expect(after.every(Number.isFinite)).toBe(true);
      const kept = [...after.keys()].filter((i) => after[i] === before[i]);
      expect(kept).toEqual(expect.arrayContaining(bits === 32 ? bad : []));
      expect(await optimizer.nonFiniteCount).toBe(kept.length);
      // Eight bits: all elements whose code is not that of 0 or small enough for the gradient to make up for it.
      if (bits === 32) expect(kept).toEqual(bad);
      else expect(kept.length).toBeGreaterThan(n / 4);
      optimizer.dispose();
    }
  });

  it("a norm that overflows stops the step aloud", async () => {
    const p = tensor(new Float32Array(n).fill(1), { device, requiresGrad: true });
    p.grad = tensor(new Float32Array(n).fill(1e25), { device });
    const optimizer = new SGD([p], { lr: 0.1, momentum: 0.9, maxUnorm: 0.1 });
    optimizer.step();
    expect([...p.floatsSync()]).toEqual(new Array(n).fill(1));
    expect(await optimizer.nonFiniteCount).toBe(n);
    optimizer.dispose();
  });
});
