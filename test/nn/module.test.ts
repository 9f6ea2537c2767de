// Module: finding what it holds, names on disk, state dicts, modes and memory.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import { ModuleList, Sequential } from "../../src/nn/containers.js";
import { Dropout } from "../../src/nn/dropout.js";
import { Linear } from "../../src/nn/linear.js";
import { Linear4bit } from "../../src/nn/linear-4bit.js";
import type { StateDict, StateSource } from "../../src/nn/module.js";
import { Module, snakeCase } from "../../src/nn/module.js";
import { Parameter } from "../../src/nn/parameter.js";
import { RMSNorm } from "../../src/nn/rms-norm.js";
import { Generator } from "../../src/ops/random.js";
import { ones, tensor, zeros } from "../../src/tensor/create.js";
import { memory, tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";

class Block extends Module {
  static override readonly names = { loraA: "lora_A", table: null };
  qProj: Linear;
  loraA: Linear;
  inputLayernorm: RMSNorm;
  runningMean: Tensor;
  table: Tensor;
  readonly scale = 2;

  constructor(generator: Generator) {
    super();
    this.qProj = new Linear(4, 3, { generator });
    this.loraA = new Linear(4, 2, { bias: false, generator });
    this.inputLayernorm = new RMSNorm(4);
    this.runningMean = zeros([4]);
    this.table = ones([2]);
  }

  forward(x: Tensor): Tensor {
    return this.qProj.forward(this.inputLayernorm.forward(x));
  }
}

class Model extends Module {
  layers: ModuleList<Block>;
  lmHead: Linear;

  constructor(seed = 1) {
    super();
    const generator = new Generator(seed);
    this.layers = new ModuleList([new Block(generator), new Block(generator)]);
    this.lmHead = new Linear(3, 5, { bias: false, generator });
  }

  forward(x: Tensor): Tensor {
    return this.lmHead.forward(this.layers.at(0).forward(x));
  }
}

const names = (layer: number): string[] =>
  ["q_proj.weight", "q_proj.bias", "lora_A.weight", "input_layernorm.weight", "running_mean"].map(
    (name) => `layers.${layer}.${name}`,
  );

describe("names", () => {
  it.each([
    ["weight", "weight"],
    ["qProj", "q_proj"],
    ["inputLayernorm", "input_layernorm"],
    ["fc1", "fc1"],
    ["SCB", "s_c_b"],
  ])("%s is %s on disk", (field, name) => {
    expect(snakeCase(field)).toBe(name);
  });

  it("follow the fields, with the exceptions of `names`", () => {
    const model = new Model();
    expect([...model.stateDict().keys()]).toEqual([...names(0), ...names(1), "lm_head.weight"]);
    expect(model.namedParameters().map(([name]) => name)).toEqual(
      [...names(0), ...names(1), "lm_head.weight"].filter((name) => !name.includes("running_mean")),
    );
    expect(model.namedModules().map(([name]) => name)).toEqual([
      "",
      "layers",
      ...["", ".q_proj", ".lora_A", ".input_layernorm"].map((name) => `layers.0${name}`),
      ...["", ".q_proj", ".lora_A", ".input_layernorm"].map((name) => `layers.1${name}`),
      "lm_head",
    ]);
    model.dispose();
  });

  it("a parameter held twice appears once, and under both names in the state dict", () => {
    const model = new Model();
    const tied = new Sequential(model.lmHead, new Linear(5, 3));
    const second = tied.at(1) as Linear;
    second.weight.dispose();
    second.weight = model.lmHead.weight;
    expect(tied.parameters().length).toBe(2);
    expect(tied.stateDict().get("0.weight")).toBe(tied.stateDict().get("1.weight"));
    tied.dispose();
    model.dispose();
  });

  it("an array of modules is an error that names the way out", () => {
    class Wrong extends Module {
      blocks = [new Dropout(), new Dropout()];
      forward(): void {}
    }
    expect(() => new Wrong().parameters()).toThrow(
      "Wrong: a list of modules must be a ModuleList, got an array in blocks",
    );
  });
});

describe("state dicts", () => {
  const values = (model: Module): Record<string, number[]> =>
    Object.fromEntries([...model.stateDict()].map(([name, t]) => [name, [...t.floatsSync()]]));

  it("round trip as a Map and as an object", () => {
    const [a, b, c] = [new Model(1), new Model(2), new Model(3)];
    expect(values(a)).not.toEqual(values(b));
    expect(b.loadStateDict(a.stateDict())).toEqual({ missing: [], unexpected: [] });
    c.loadStateDict(Object.fromEntries(a.stateDict()));
    expect(values(b)).toEqual(values(a));
    expect(values(c)).toEqual(values(a));
    for (const model of [a, b, c]) model.dispose();
  });

  it("load in place, keep the dtype of the module, and copy", () => {
    const layer = new Linear(2, 1, { dtype: "bfloat16" });
    const { weight } = layer;
    const source = tensor([[1.00390625, -3]]);
    layer.loadStateDict({ weight: source, bias: tensor([0.5]) });
    source.dispose();
    expect(layer.weight).toBe(weight);
    expect([weight.dtype, weight.requiresGrad]).toEqual(["bfloat16", true]);
    // Halfway between 1 and the next bfloat16: ties go to the even one.
    expect([...weight.floatsSync()]).toEqual([1, -3]);
    layer.dispose();
  });

  it("name everything that is missing or unexpected, and change nothing", () => {
    const model = new Model();
    const before = values(model);
    const dict = new Map(new Model(2).stateDict());
    dict.delete("lm_head.weight");
    dict.set("extra", zeros([1]));
    expect(() => model.loadStateDict(dict)).toThrow(
      'loadStateDict: the dict must fit the module, got: "lm_head.weight" is missing; "extra" is not expected',
    );
    expect(values(model)).toEqual(before);
    expect(model.loadStateDict(dict, { strict: false })).toEqual({
      missing: ["lm_head.weight"],
      unexpected: ["extra"],
    });
    expect(values(model)["layers.1.q_proj.bias"]).toEqual([...dict.get("layers.1.q_proj.bias")!.floatsSync()]);
  });

  it("reject a wrong shape even when not strict, and change nothing", () => {
    const layer = new Linear(2, 1);
    const before = values(layer);
    const dict = { bias: tensor([7]), weight: zeros([2, 1]) };
    expect(() => layer.loadStateDict(dict, { strict: false })).toThrow(
      'the shape of "weight" must be [1, 2], got [2, 1]',
    );
    expect(() => layer.loadStateDict(dict)).toThrow(expect.objectContaining({ code: "ERR_BNB_SHAPE" }));
    expect(values(layer)).toEqual(before);
  });

  it("let a layer save more keys and switch its state on load", () => {
    class Scaled extends Module {
      weight = new Parameter(ones([2]));
      format = "plain";
      override saveTo(dict: StateDict, prefix: string): void {
        super.saveTo(dict, prefix);
        dict.set(`${prefix}weight.format`, tensor([this.format === "plain" ? 0 : 1]));
      }
      override loadFrom(source: StateSource, prefix: string): void {
        super.loadFrom(source, prefix);
        const format = source.take(`${prefix}weight.format`);
        source.plan(() => {
          this.format = format?.itemSync() === 1 ? "packed" : "plain";
        });
      }
      forward(x: Tensor): Tensor {
        return x;
      }
    }
    const [a, b] = [new Sequential(new Scaled()), new Sequential(new Scaled())];
    (a.at(0) as Scaled).format = "packed";
    expect([...a.stateDict().keys()]).toEqual(["0.weight", "0.weight.format"]);
    b.loadStateDict(a.stateDict());
    expect((b.at(0) as Scaled).format).toBe("packed");
  });
});

describe("a module that contains itself", () => {
  class Ring extends Module {
    weight = new Parameter(ones([2]));
    next: Module | null = null;
    forward(): void {}
  }

  it("has no state dict, and says where; it is gone through and disposed all the same", () => {
    const before = memory().tensors;
    const [outer, inner] = [new Ring(), new Ring()];
    outer.next = inner;
    const dict = outer.stateDict();
    inner.next = outer;
    const message = "a module must not contain itself, but next.next is the module";
    expect(() => outer.stateDict()).toThrow(
      expect.objectContaining({ code: "ERR_BNB_ARGUMENT", message: `stateDict: ${message}` }),
    );
    expect(() => outer.loadStateDict(dict)).toThrow(`loadStateDict: ${message}`);
    expect(outer.parameters()).toHaveLength(2);
    expect(outer.eval().training).toBe(false);
    outer.dispose();
    expect(memory().tensors).toBe(before);
  });

  it("is another thing than one that is held twice", () => {
    const [outer, shared] = [new Ring(), new Ring()];
    outer.next = new Sequential(shared as never, shared as never);
    expect([...outer.stateDict().keys()]).toEqual(["weight", "next.0.weight", "next.1.weight"]);
    outer.dispose();
  });
});

describe("modes", () => {
  it("train and eval reach every module", () => {
    const model = new Sequential(new Linear(2, 2), new Sequential(new Dropout()));
    expect(
      model
        .eval()
        .modules()
        .map((m) => m.training),
    ).toEqual([false, false, false, false]);
    expect(
      model
        .train()
        .modules()
        .every((m) => m.training),
    ).toBe(true);
    model.dispose();
  });

  it("requiresGrad_ freezes and zeroGrad drops the gradients", () => {
    const layer = new Linear(2, 1);
    backward(layer.forward(ones([3, 2])), ones([3, 1]));
    expect([...layer.bias!.grad!.floatsSync()]).toEqual([3]);
    layer.zeroGrad();
    expect(layer.bias!.grad).toBeNull();
    expect(layer.requiresGrad_(false).forward(ones([3, 2])).requiresGrad).toBe(false);
    layer.dispose();
  });
});

describe("packed weights", () => {
  it.each(["uint8", "float32"] as const)("stored as %s stay frozen when the rest is made trainable", (quantStorage) => {
    const layer = new Linear4bit(64, 2, { quantStorage }).quantize();
    layer.requiresGrad_();
    expect([layer.weight.requiresGrad, layer.bias!.requiresGrad]).toEqual([false, true]);
    layer.dispose();
  });
});

describe("memory", () => {
  it("returns to its start when a module is disposed, also after training steps and loads", () => {
    const start = memory();
    const [model, other] = [new Model(), tidy(() => new Model(2))];
    for (let i = 0; i < 3; i++) {
      tidy(() => backward(model.forward(ones([2, 4])), ones([2, 5])));
      model.loadStateDict(other.stateDict());
    }
    expect(memory().tensors).toBeGreaterThan(start.tensors);
    model.dispose();
    other.dispose();
    const end = memory();
    expect([end.tensors, end.liveBytes]).toEqual([start.tensors, start.liveBytes]);
    expect(() => model.forward(ones([2, 4]))).toThrow(expect.objectContaining({ code: "ERR_BNB_DISPOSED" }));
  });

  it("a parameter takes over the memory of its tensor", () => {
    const start = memory().tensors;
    const data = ones([3]);
    const parameter = new Parameter(data);
    expect([data.disposed, memory().tensors - start]).toEqual([true, 1]);
    parameter.dispose();
    expect(memory().tensors).toBe(start);
  });

  it("moving to the device where it is keeps the parameters", () => {
    const layer = new Linear(2, 2);
    const { weight } = layer;
    expect(layer.to(weight.device).weight).toBe(weight);
    layer.dispose();
  });
});
