// The classes: defaults, options that are refused, groups, overrides, closures, paging.
import { describe, expect, it } from "vitest";
import { Tensor, tensor, tidy, zeros } from "../../src/index.js";
import * as optim from "../../src/optim/index.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";

const { Adam, AdamW, Adagrad, AdEMAMix, clipGradNorm, GlobalOptimManager, LAMB, LARS, Lion, RMSprop, SGD } = optim;
const param = (n = 4) => tensor(new Float32Array(n).fill(1), { requiresGrad: true });
type AnyOptimizer = new (params: Tensor[], options?: object) => optim.Optimizer8bit;

const families: Record<string, [required: object, variants: string[]]> = {
  Adam: [{}, ["Paged"]],
  AdamW: [{}, ["Paged"]],
  AdEMAMix: [{}, ["Paged"]],
  Lion: [{}, ["Paged"]],
  LAMB: [{}, []],
  SGD: [{ lr: 0.1, momentum: 0.9 }, []],
  LARS: [{ lr: 0.1, momentum: 0.9 }, []],
  RMSprop: [{}, []],
  Adagrad: [{}, []],
};

describe("classes", () => {
  type Row = [name: string, bits: number, isPaged: boolean, required: object];
  const all = Object.entries(families).flatMap(([base, [required, variants]]): Row[] => [
    [base, 32, false, required],
    [`${base}8bit`, 8, false, required],
    [`${base}32bit`, 32, false, required],
    ...(variants.includes("Paged")
      ? ([
          [`Paged${base}`, 32, true, required],
          [`Paged${base}8bit`, 8, true, required],
          [`Paged${base}32bit`, 32, true, required],
        ] as Row[])
      : []),
  ]);

  it.each(all)("%s has %i bits, paged %s", (name, bits, isPaged, required) => {
    const Class = (optim as unknown as Record<string, AnyOptimizer>)[name]!;
    const optimizer = new Class([param()], required);
    expect(optimizer.paramGroups[0]!.optimBits).toBe(bits);
    expect(optimizer.isPaged).toBe(isPaged);
    expect(optimizer.name).toBe(name);
    if (name.endsWith("bit")) {
      const other = bits === 8 ? 32 : 8;
      expect(() => new Class([param()], { ...required, optimBits: other })).toThrow(
        `${name}: optimBits must be ${bits} or left out, got ${other}`,
      );
    }
    if (isPaged) expect(() => new Class([param()], { isPaged: false })).toThrow("isPaged must be true or left out");
  });

  it("have bitsandbytes' defaults", () => {
    const defaults = (optimizer: optim.Optimizer8bit) => {
      const { lr, betas, eps, weightDecay, min8bitSize, maxUnorm, skipZeros } = optimizer.paramGroups[0]!;
      expect([min8bitSize, skipZeros]).toEqual([4096, false]);
      return [lr, betas, eps, weightDecay, maxUnorm];
    };
    expect(defaults(new Adam([param()]))).toEqual([1e-3, [0.9, 0.999], 1e-8, 0, 0]);
    expect(defaults(new AdamW([param()]))).toEqual([1e-3, [0.9, 0.999], 1e-8, 1e-2, 0]);
    expect(defaults(new AdEMAMix([param()]))).toEqual([1e-3, [0.9, 0.999, 0.9999], 1e-8, 1e-2, 0]);
    expect(defaults(new Lion([param()]))).toEqual([1e-4, [0.9, 0.99], 0, 0, 0]);
    expect(defaults(new LAMB([param()]))).toEqual([1e-3, [0.9, 0.999], 1e-8, 0, 1]);
    expect(defaults(new SGD([param()], { lr: 0.1, momentum: 0.9 }))).toEqual([0.1, [0.9, 0], 0, 0, 0]);
    expect(defaults(new LARS([param()], { lr: 0.1, momentum: 0.9 }))).toEqual([0.1, [0.9, 0], 0, 0, 0.02]);
    expect(defaults(new RMSprop([param()]))).toEqual([1e-2, [0.99, 0], 1e-8, 0, 0]);
    expect(defaults(new Adagrad([param()]))).toEqual([1e-2, [0, 0], 1e-10, 0, 0]);
  });
});

describe("PytorchLARS", () => {
  it("is LARS in 32 bits whose momentum may be 0", () => {
    const p = tensor([3, 4], { requiresGrad: true });
    p.grad = tensor([0, 1]);
    const optimizer = new optim.PytorchLARS([p], { lr: 1 });
    optimizer.step();
    optimizer.step();
    // Each step is at most 0.02 times as long as the parameter: 0.1, then 0.02 |(3, 3.9)|.
    expectClose(p.floatsSync(), [3, 3.9 - 0.02 * Math.hypot(3, 3.9)], { atol: 1e-6, rtol: 0 });
    expect(() => new optim.PytorchLARS([p], { trustRatio: true })).toThrow("PytorchLARS: trustRatio must be false");
    expect(() => new optim.PytorchLARS([p], { optimBits: 8 as never })).toThrow("optimBits must be 32 or left out");
    optimizer.dispose();
  });
});

describe("options that are refused", () => {
  const sgd = { lr: 0.1, momentum: 0.9 };
  const cases: [name: string, options: object, message: string][] = [
    ["Adam", { lr: -1 }, "Adam: lr must be a number of at least 0, got -1"],
    ["Adam", { lr: Number.NaN }, "Adam: lr must be a number of at least 0, got NaN"],
    ["AdamW8bit", { eps: -1e-8 }, "AdamW8bit: eps must be a number of at least 0, got -1e-8"],
    ["AdamW", { weightDecay: -1 }, "AdamW: weightDecay must be a number of at least 0, got -1"],
    ["AdamW", { betas: [0.9, 1] }, "AdamW: betas[1] must be in [0, 1), got 1"],
    ["AdamW", { betas: [0.9] }, "AdamW: betas must be 2 numbers, got [0.9]"],
    ["Lion", { betas: [0.9, 0.99, 0.9] }, "Lion: betas must be 2 numbers, got [0.9, 0.99, 0.9]"],
    ["AdEMAMix", { betas: [0.9, 0.999] }, "AdEMAMix: betas must be 3 numbers, got [0.9, 0.999]"],
    ["AdEMAMix", { betas: [0, 0.9, 0.99], tBeta3: 10 }, "AdEMAMix: betas[0] must be above 0 when tBeta3 is set, got 0"],
    ["Adam", { amsgrad: true }, "Adam: amsgrad must be false, got true"],
    ["Adam", { optimBits: 16 }, "Adam: optimBits must be 8 or 32, got 16"],
    ["Adam", { min8bitSize: 1.5 }, "Adam: min8bitSize must be an integer of at least 0, got 1.5"],
    ["Adam", { maxUnorm: -1 }, "Adam: maxUnorm must be a number of at least 0, got -1"],
    ["LAMB", { biasCorrection: false }, "LAMB: biasCorrection must be true, got false"],
    ["LAMB", { adamWMode: false }, "LAMB: adamWMode must be true, got false"],
    ["LAMB", { trustRatio: true, maxUnorm: 0.5 }, "LAMB: maxUnorm must be left out with trustRatio, got 0.5"],
    ["SGD", { lr: 0.1 }, "SGD: momentum must be given, got undefined"],
    ["SGD8bit", { momentum: 0.9 }, "SGD8bit: lr must be given, got undefined"],
    ["SGD", { ...sgd, momentum: 0 }, "SGD: momentum must be above 0, got 0"],
    ["SGD", { ...sgd, dampening: 0.1 }, "SGD: dampening must be 0, got 0.1"],
    ["LARS", { ...sgd, nesterov: true }, "LARS: nesterov must be false, got true"],
    ["RMSprop", { alpha: 0 }, "RMSprop: alpha must be above 0, got 0"],
    ["RMSprop", { centered: true }, "RMSprop: centered must be false, got true"],
    ["RMSprop", { momentum: 0.9 }, "RMSprop: momentum must be 0, got 0.9"],
    ["Adagrad", { lrDecay: 0.1 }, "Adagrad: lrDecay must be 0, got 0.1"],
    ["Adagrad", { initialAccumulatorValue: 1 }, "Adagrad: initialAccumulatorValue must be 0, got 1"],
    ["Adam", { learningRate: 1 }, "got learningRate"],
  ];
  it.each(cases)("%s %o", (name, options, message) => {
    const Class = (optim as unknown as Record<string, AnyOptimizer>)[name]!;
    expect(() => new Class([param()], options)).toThrow(message);
    expect(() => new Class([param()], options)).toThrow(expect.objectContaining({ code: "ERR_BNB_OPTION" }));
  });
});

describe("groups", () => {
  it("override options for their parameters", () => {
    const [a, b] = [param(), param()];
    const optimizer = new AdamW(
      [
        { params: [a], lr: 0.5 },
        { params: [b], weightDecay: 0 },
      ],
      { lr: 0.1, weightDecay: 0.2 },
    );
    optimizer.addParamGroup({ params: [param()], betas: [0.5, 0.6] });
    const values = optimizer.paramGroups.map(({ lr, weightDecay, betas }) => [lr, weightDecay, betas]);
    expect(values).toEqual([
      [0.5, 0.2, [0.9, 0.999]],
      [0.1, 0, [0.9, 0.999]],
      [0.1, 0.2, [0.5, 0.6]],
    ]);
    expect(() => optimizer.addParamGroup({ params: [param()], lr: -1 })).toThrow("AdamW: lr must be");
    expect(() => optimizer.addParamGroup({ params: [param()], foo: 1 } as never)).toThrow("got foo");
  });

  it("are paged as their optimizer is", () => {
    const [a, b] = [param(), param()];
    expect(() => new AdamW([{ params: [a], isPaged: true }])).toThrow(
      "AdamW: isPaged of a group must be false, as that of the optimizer, got true",
    );
    using optimizer = new AdamW([{ params: [a], isPaged: true }], { isPaged: true });
    expect(() => optimizer.addParamGroup({ params: [b], isPaged: false })).toThrow(
      "AdamW: isPaged of a group must be true, as that of the optimizer, got false",
    );
    expect(optimizer.paramGroups).toHaveLength(1);
  });

  it("and options of another kind are errors of the library, also when a group's fields were replaced", () => {
    const bnb = (code: string) => expect.objectContaining({ name: "BnbError", code: `ERR_BNB_${code}` });
    for (const wrong of [undefined, null, 3, "pp", param(), {}, [undefined], [{}], [null]]) {
      expect(() => new Adam(wrong as never)).toThrow(bnb("ARGUMENT"));
      if (!(wrong instanceof Tensor)) expect(() => clipGradNorm(wrong as never, 1)).toThrow(bnb("ARGUMENT"));
    }
    for (const wrong of [null, 3, "lr", [], { lr: Object.create(null) }, { betas: Object.create(null) }]) {
      expect(() => new Adam([param()], wrong as never)).toThrow(bnb("OPTION"));
      expect(() => new optim.LARS8bit([param()], wrong as never)).toThrow(bnb("OPTION"));
      expect(() => new optim.PagedAdam32bit([param()], wrong as never)).toThrow(bnb("OPTION"));
      expect(() => GlobalOptimManager.getInstance().overrideConfig(param(), wrong as never)).toThrow(bnb("OPTION"));
    }
    const Base = optim.Optimizer8bit as unknown as new (...args: unknown[]) => unknown;
    expect(() => new Base([param()], {})).toThrow("Optimizer8bit: is what optimizers are made of");
    expect(() => new Adam([param()], { weight_decay: 1 } as never)).toThrow("did you mean weightDecay?");
    const optimizer = new Adam([param()]);
    const group = optimizer.paramGroups[0]!;
    Object.assign(group, { params: 3 });
    for (const act of ["step", "zeroGrad", "stateDict"] as const) {
      expect(() => optimizer[act]()).toThrow("Adam: params of a group must be an array of Tensors, got 3");
    }
    Object.assign(group, { params: [], betas: 3 });
    expect(() => optimizer.stateDict()).toThrow("Adam: betas must be 2 numbers, got 3");
    expect(() => optimizer.addParamGroup(undefined as never)).toThrow(bnb("ARGUMENT"));
    for (const dict of [null, {}, { state: null, param_groups: [{}] }, { state: {}, param_groups: [undefined] }]) {
      expect(() => optimizer.loadStateDict(dict as never)).toThrow(bnb("FORMAT"));
    }
    for (const wrong of [undefined, null, 3, {}]) {
      expect(() => new optim.LambdaLR(wrong as never, () => 1)).toThrow(bnb("ARGUMENT"));
    }
    const scheduler = optim.constantSchedule(optimizer);
    expect(() => scheduler.loadStateDict(undefined as never)).toThrow(bnb("FORMAT"));
  });

  it("refuse what is no list of distinct leaves", () => {
    const p = param();
    expect(() => new Adam([])).toThrow("Adam: parameters must not be empty, got none");
    expect(() => new Adam([p, p])).toThrow("a parameter must be listed once, got Tensor(float32 [4]");
    expect(() => new Adam([{ params: [p] }, { params: [p] }])).toThrow("a parameter must be listed once");
    expect(() => new Adam([{ params: p as never }])).toThrow('must have a list of parameters under "params"');
    expect(() => new Adam([{ params: [3 as never] }])).toThrow("Adam: parameters must be Tensors, got 3");
    const lost = new Float32Array(2);
    structuredClone(lost.buffer, { transfer: [lost.buffer] });
    for (const numbers of [new Float32Array(2), lost]) {
      expect(() => new Adam(numbers as never)).toThrow(expect.objectContaining({ name: "BnbError" }));
      expect(() => clipGradNorm(numbers as never, 1)).toThrow(expect.objectContaining({ name: "BnbError" }));
    }
  });
});

describe.each(testDevices())("stepping on %s", (device) => {
  const withGrad = (value = 1, grad = 1, n = 4) => {
    const p = tensor(new Float32Array(n).fill(value), { device, requiresGrad: true });
    p.grad = tensor(new Float32Array(n).fill(grad), { device });
    return p;
  };

  it("reads lr at every step", () => {
    const p = withGrad();
    const optimizer = new SGD([p], { lr: 0.5, momentum: 0.5 });
    optimizer.step();
    optimizer.paramGroups[0]!.lr = 0.1;
    optimizer.step();
    expectClose(p.floatsSync(), new Array(4).fill(1 - 0.5 - 0.15), { atol: 1e-6, rtol: 0 });
    optimizer.dispose();
  });

  it("runs a closure first and returns what it returns", () => {
    const p = withGrad(1, 0);
    const optimizer = new SGD([p], { lr: 1, momentum: 0.5 });
    const loss = optimizer.step(() => {
      p.grad!.dispose();
      p.grad = tensor([1, 1, 1, 1], { device });
      return 42;
    });
    expect(loss).toBe(42);
    expectClose(p.floatsSync(), [0, 0, 0, 0]);
    expect(optimizer.step()).toBeUndefined();
    optimizer.dispose();
  });

  it("states survive a tidy around the first step", () => {
    const p = withGrad();
    const optimizer = new AdamW([p]);
    tidy(() => {
      optimizer.step();
    });
    optimizer.step();
    expect(optimizer.stateOf(p)!.step).toBe(2);
    optimizer.dispose();
    expect(optimizer.stateOf(p)).toBeUndefined();
    optimizer.dispose();
  });

  it("overrides single parameters, by tensor, by module and by the parameter's own field", () => {
    const manager = GlobalOptimManager.getInstance();
    const [a, b, c, d] = [5000, 5000, 5000, 5000].map((n) => withGrad(1, 1, n));
    const module = { weight: b };
    const optimizer = new optim.AdamW8bit([a!, b!, c!, d!], { lr: 0.1 });
    manager.overrideConfig(a!, "optimBits", 32);
    manager.overrideConfig([a!], { lr: 0 });
    manager.registerModuleOverride(module, "weight", { optimBits: 32 });
    Object.assign(c!, { optimConfig: { optimBits: 32 } });
    optimizer.step();
    const dtypes = [a, b, c, d].map((p) => optimizer.stateOf(p!)!.state1.dtype);
    expect(dtypes).toEqual(["float32", "float32", "float32", "uint8"]);
    expect(a!.floatsSync()[0]).toBe(1);
    expect(b!.floatsSync()[0]).toBeLessThan(1);
    manager.overrideConfig(a!, "optimBits", 8);
    optimizer.step();
    expect(optimizer.stateOf(a!)!.state1.dtype).toBe("float32");
    expect(() => manager.overrideConfig(a!, { momentum: 1 } as never)).toThrow(
      "GlobalOptimManager: keys must be among",
    );
    optimizer.dispose();
  });

  it("warns once when paged states land in ordinary memory", async () => {
    const warnings: string[] = [];
    const listen = (warning: Error & { code?: string }) => {
      if (warning.code === "BNB_PAGED_FALLBACK") warnings.push(warning.message);
    };
    process.on("warning", listen);
    const optimizer = new optim.PagedAdamW8bit([withGrad(), withGrad()]);
    optimizer.step();
    optimizer.step();
    await new Promise((resolve) => setImmediate(resolve));
    process.off("warning", listen);
    if (device === "cpu")
      expect(warnings).toEqual(["PagedAdamW8bit: no managed memory here, states are in ordinary memory"]);
    optimizer.dispose();
  });

  it("takes no step with what was disposed", () => {
    const [p, q] = [withGrad(), withGrad()];
    const optimizer = new AdamW([p, q]);
    optimizer.step();
    const before = q.floatsSync();
    p.dispose();
    expect(() => optimizer.step()).toThrow("AdamW.step: a parameter was disposed");
    expect(q.floatsSync()).toEqual(before);
    optimizer.dispose();
    expect(() => optimizer.step()).toThrow("AdamW.step: the optimizer was disposed");
  });

  it("refuses tensors of other kinds in a step", () => {
    const p = withGrad();
    p.grad!.dispose();
    p.grad = zeros([4], { device, dtype: "int32" });
    const optimizer = new AdamW([p]);
    expect(() => optimizer.step()).toThrow(
      "optimizerStep: g of parameter 0 must be float32, float16 or bfloat16, got int32",
    );
    optimizer.dispose();
  });
});
