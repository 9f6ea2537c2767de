// What lies between a step and its kernels: which numbers, states and indices belong to which parameter.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { memory, tensor, zeros } from "../../src/index.js";
import type { Optimizer8bit, OptimizerStateDict } from "../../src/optim/index.js";
import {
  Adagrad,
  Adam,
  Adam8bit,
  AdEMAMix,
  AdEMAMix8bit,
  GlobalOptimManager,
  LAMB,
  LARS,
  LambdaLR,
  Lion,
  Lion8bit,
  optimizerUpdate32bit,
  RMSprop,
  RMSprop8bit,
  SGD,
  SGD8bit,
} from "../../src/optim/index.js";
import { testDevices } from "../helpers/devices.js";
import { normals } from "../helpers/optimizers.js";

const nested = "__bnb_optimizer_quant_state__";
const momentum = { lr: 0.1, momentum: 0.9 };

describe.each(testDevices())("plumbing on %s", (device) => {
  const parameter = (n: number, seed: number): Tensor => tensor(normals(n, 1, seed), { device, requiresGrad: true });
  function setGrad(p: Tensor, seed: number): void {
    p.grad?.dispose();
    p.grad = tensor(normals(p.size, 1, seed), { device, shape: p.shape });
  }
  const tensorsIn = (dict: OptimizerStateDict) => Object.values(dict.state).flatMap((s) => Object.values(s[nested]!));

  it("parameters of a group that have taken different numbers of steps get their own corrections", () => {
    const together = [1, 2, 3].map((seed) => parameter(9, seed));
    const alone = [1, 2, 3].map((seed) => parameter(9, seed));
    const [a, b, c] = together as [Tensor, Tensor, Tensor];
    const one = new Adam(together, { lr: 0.1 });
    const each = alone.map((p) => new Adam([p], { lr: 0.1 }));
    // The first and the last go ahead of the one between them.
    for (const [step, stepping] of [[a, c], [a], [a, b, c]].entries()) {
      for (const p of together) p.grad = null;
      for (const p of stepping) {
        const i = together.indexOf(p);
        setGrad(p, 10 * step + i);
        setGrad(alone[i]!, 10 * step + i);
        each[i]!.step();
      }
      one.step();
    }
    expect(together.map((p) => one.stateOf(p)!.step)).toEqual([3, 1, 2]);
    expect(together.map((p) => p.floatsSync())).toEqual(alone.map((p) => p.floatsSync()));
    for (const optimizer of [one, ...each]) optimizer.dispose();
  });

  it("a parameter of exactly min8bitSize elements has 8-bit states, one of an element less has not", () => {
    const sizes = [99, 100, 101, 4095, 4096];
    const params = sizes.map((n) => parameter(n, n));
    const optimizer = new Adam8bit([{ params: params.slice(0, 3), min8bitSize: 100 }, { params: params.slice(3) }]);
    for (const p of params) setGrad(p, 1);
    optimizer.step();
    const dtypes = params.map((p) => optimizer.stateOf(p)!.state1.dtype);
    expect(dtypes).toEqual(["float32", "uint8", "uint8", "float32", "uint8"]);
    optimizer.dispose();
  });

  it("a state dict counts parameters over all groups, and loads each into its own", () => {
    const params = [1, 2, 3, 4].map((seed) => parameter(5, seed));
    const [a, b, c, d] = params as [Tensor, Tensor, Tensor, Tensor];
    const make = () => new SGD([{ params: [a, b] }, { params: [c], lr: 0.5 }, { params: [d] }], momentum);
    const optimizer = make();
    for (const [i, p] of [a, c, d].entries()) setGrad(p, i);
    optimizer.step();
    const dict = optimizer.stateDict();
    expect(dict.param_groups.map(({ params }) => params)).toEqual([[0, 1], [2], [3]]);
    expect(Object.keys(dict.state)).toEqual(["0", "2", "3"]);
    const moments = (o: Optimizer8bit) => params.map((p) => o.stateOf(p)?.state1.floatsSync());
    for (const [key, p] of [
      ["0", a],
      ["2", c],
      ["3", d],
    ] as const) {
      expect(dict.state[key]![nested]!.state1!.floatsSync()).toEqual(optimizer.stateOf(p)!.state1.floatsSync());
    }
    const again = make();
    again.loadStateDict(dict);
    expect(moments(again)).toEqual(moments(optimizer));
    // Indices that are not in order stand for the parameters in the order of the groups.
    const other = make();
    const [first, second, third] = dict.param_groups as [never, never, never];
    const renumbered = { 7: dict.state["0"]!, 4: dict.state["2"]!, 5: dict.state["3"]! };
    other.loadStateDict({
      state: renumbered,
      param_groups: [
        { ...(first as object), params: [7, 6] },
        { ...(second as object), params: [4] },
        { ...(third as object), params: [5] },
      ] as OptimizerStateDict["param_groups"],
    });
    expect(moments(other)).toEqual(moments(optimizer));
    for (const t of tensorsIn(dict)) t.dispose();
    for (const o of [optimizer, again, other]) o.dispose();
  });

  it("AdEMAMix's schedules are in its dict, and a resumed run goes on with them", () => {
    const options = { lr: 0.1, tAlpha: 7, tBeta3: 5, alpha: 3 };
    const [p, q] = [parameter(6, 1), parameter(6, 1)];
    const whole = new AdEMAMix([p], options);
    const before = new AdEMAMix([q], options);
    const steps = (o: Optimizer8bit, x: Tensor, seeds: number[]) =>
      seeds.forEach((seed) => {
        setGrad(x, seed);
        o.step();
      });
    steps(whole, p, [1, 2, 3]);
    steps(before, q, [1, 2]);
    const dict = before.stateDict();
    expect(dict.param_groups[0]).toMatchObject({ alpha: 3, t_alpha: 7, t_beta3: 5 });
    const after = new AdEMAMix([q]);
    after.loadStateDict(dict);
    expect(after.paramGroups[0]).toMatchObject({ alpha: 3, tAlpha: 7, tBeta3: 5 });
    steps(after, q, [3]);
    expect(q.floatsSync()).toEqual(p.floatsSync());
    for (const t of tensorsIn(dict)) t.dispose();
    for (const o of [whole, before, after]) o.dispose();
  });

  it("an override of the parameter itself comes before one of its module, and that before its own config", () => {
    const manager = GlobalOptimManager.getInstance();
    const params = [1, 2, 3].map(() => tensor([1], { device, requiresGrad: true }));
    const [config, module, both] = params as [Tensor, Tensor, Tensor];
    for (const p of params) {
      p.grad = tensor([1], { device });
      Object.assign(p, { optimConfig: { lr: 0.25 } });
    }
    const layer = { weight: module, bias: both };
    manager.registerModuleOverride(layer, "weight", { lr: 0.5 });
    manager.registerModuleOverride(layer, "bias", { lr: 0.5 });
    manager.overrideConfig(both, { lr: 0.75 });
    const optimizer = new SGD(params, { lr: 0.125, momentum: 0.9 });
    optimizer.step();
    expect([config, module, both].map((p) => p.itemSync())).toEqual([0.75, 0.5, 0.25]);
    optimizer.dispose();
  });

  it("a schedule's rate is in force as soon as its state is loaded", () => {
    const p = parameter(3, 1);
    const optimizer = new SGD([p], { lr: 7, momentum: 0.9 });
    const scheduler = new LambdaLR(optimizer, (step) => 0.5 ** step);
    scheduler.loadStateDict({ lastStep: 2, baseRates: [1] });
    expect([scheduler.lastStep, ...scheduler.lastLr, optimizer.paramGroups[0]!.lr]).toEqual([2, 0.25, 0.25]);
    optimizer.dispose();
  });

  it("a gradient of as many elements in another shape is refused", () => {
    const p = zeros([2, 3], { device });
    p.requiresGrad = true;
    const grad = zeros([3, 2], { device });
    const optimizer = new SGD([p], momentum);
    expect(() => {
      p.grad = grad;
    }).toThrow("grad: it must have the shape [2, 3] of its tensor, got [3, 2]");
    const update = () =>
      optimizerUpdate32bit("momentum", grad, p, zeros([2, 3], { device }), { beta1: 0.9, eps: 0, step: 1, lr: 1 });
    expect(update).toThrow("must have shape [2, 3], got [3, 2]");
    optimizer.dispose();
  });

  it("a functional update leaves no tensor behind, also when it throws", () => {
    const [p, g, m, other] = [1, 2, 3, 4].map((seed) => tensor(normals(4 + (seed === 4 ? 1 : 0), 1, seed), { device }));
    const update = (grad: Tensor) =>
      optimizerUpdate32bit("momentum", grad, p!, m!, { beta1: 0.9, eps: 0, step: 1, lr: 1 });
    const before = memory();
    update(g!);
    expect(() => update(other!)).toThrow("must have shape [4], got [5]");
    expect(memory().tensors).toBe(before.tensors);
    expect(memory().liveBytes).toBe(before.liveBytes);
  });

  describe("state dicts of another optimizer", () => {
    type Maker = (params: Tensor[]) => Optimizer8bit;
    const options = { min8bitSize: 0 };
    const makers: Record<string, Maker> = {
      Adam8bit: (p) => new Adam8bit(p, options),
      AdEMAMix8bit: (p) => new AdEMAMix8bit(p, options),
      Lion8bit: (p) => new Lion8bit(p, options),
      RMSprop8bit: (p) => new RMSprop8bit(p, options),
      SGD8bit: (p) => new SGD8bit(p, { ...momentum, ...options }),
      Adam: (p) => new Adam(p),
      LAMB: (p) => new LAMB(p),
      Lion: (p) => new Lion(p),
      SGD: (p) => new SGD(p, momentum),
      LARS: (p) => new LARS(p, momentum),
      RMSprop: (p) => new RMSprop(p),
      Adagrad: (p) => new Adagrad(p),
      AdEMAMix: (p) => new AdEMAMix(p),
    };
    const names = Object.keys(makers);
    const pairs = names.flatMap((from) => names.map((into): [string, string] => [from, into]));

    function dictOf(from: string, p: Tensor, change: (dict: OptimizerStateDict) => void): OptimizerStateDict {
      const source = makers[from]!([p]);
      setGrad(p, 2);
      source.step();
      const dict = source.stateDict();
      change(dict);
      source.dispose();
      return dict;
    }
    const unname = (dict: OptimizerStateDict) => void delete dict.optimizer_name;

    // Without a name they can't be told apart: the same tensors under the same numbers.
    const isAlike = (from: string, into: string): boolean =>
      (/^Adam(8bit)?$/.test(from) && into === "LAMB") || (/^SGD(8bit)?$/.test(from) && into === "LARS");

    it.each(pairs)("%s into %s", (from, into) => {
      const p = parameter(300, 1);
      const target = makers[into]!([p]);
      const { rule } = target;
      const betas = [...target.paramGroups[0]!.betas];
      for (const change of [() => {}, unname]) {
        const dict = dictOf(from, p, change);
        const named = dict.optimizer_name;
        const isOwn = makers[from]!([p]).rule === rule;
        if (isOwn || (!named && isAlike(from, into))) {
          target.loadStateDict(dict);
          expect(target.stateOf(p)!.step).toBe(1);
        } else {
          const message = `${into}.loadStateDict: the dict must be of the rule ${rule}, got one of "${named}"`;
          const code = expect.stringMatching(/^ERR_BNB_(FORMAT|OPTION)$/);
          expect(() => target.loadStateDict(dict)).toThrow(named ? message : expect.objectContaining({ code }));
          expect(target.paramGroups[0]!.betas).toEqual(betas);
          expect(target.stateOf(p)).toBeUndefined();
        }
        for (const t of tensorsIn(dict)) t.dispose();
      }
      target.dispose();
    });

    const broken: [what: string, from: string, change: (tensors: Record<string, Tensor>) => void, message: string][] = [
      ["a negative scale", "Adam8bit", (t) => (t.absmax2 = tensor([1, -1], { device })), "absmax2"],
      ["a scale that is NaN", "Adam8bit", (t) => (t.absmax1 = tensor([Number.NaN, 1], { device })), "absmax1"],
      ["an infinite scale", "Lion8bit", (t) => (t.absmax1 = tensor([0, Infinity], { device })), "absmax1"],
      ["a negative second moment", "Adam", (t) => (t.state2 = tensor(normals(300, 1, 1), { device })), "state2"],
      ["a negative mean square", "RMSprop", (t) => (t.state1 = tensor(normals(300, 1, 1), { device })), "state1"],
    ];
    it.each(broken)("%s is refused, and nothing changes", (_, name, change, key) => {
      const p = parameter(300, 1);
      const dict = dictOf(name, p, (d) => change(d.state["0"]![nested]!));
      dict.param_groups[0]!.lr = 0.75;
      const target = makers[name]!([p]);
      const { lr } = target.paramGroups[0]!;
      expect(() => target.loadStateDict(dict)).toThrow(
        `${name}.loadStateDict: ${key} of state 0 must be finite and not negative, got other values`,
      );
      expect(target.stateOf(p)).toBeUndefined();
      expect(target.paramGroups[0]!.lr).toBe(lr);
      target.dispose();
    });

    it("a first moment that is not finite is refused", () => {
      const p = parameter(300, 1);
      for (const value of [Number.NaN, -Infinity]) {
        const moment = new Float32Array(300).fill(-1);
        moment[299] = value;
        const dict = dictOf("Lion", p, (d) => (d.state["0"]![nested]!.state1 = tensor(moment, { device })));
        const target = new Lion([p]);
        expect(() => target.loadStateDict(dict)).toThrow(
          "Lion.loadStateDict: state1 of state 0 must be finite, got other values",
        );
        target.dispose();
      }
    });
  });
});
