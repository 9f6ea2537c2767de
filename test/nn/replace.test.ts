// replaceLinear: which layers are swapped, what goes with them, and that nothing leaks.
import { describe, expect, it } from "vitest";
import { ModuleList, Sequential } from "../../src/nn/containers.js";
import { Linear } from "../../src/nn/linear.js";
import { Module } from "../../src/nn/module.js";
import type { LinearFactory } from "../../src/nn/replace.js";
import { replaceLinear } from "../../src/nn/replace.js";
import { LoraLinear } from "../../src/peft/index.js";
import { memory } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";

/** Stands for a quantized layer: holds the weights under the same names. */
class Swapped extends Module {
  inner: Linear;
  prepared = 0;
  static override readonly names = { inner: "inner" };

  constructor(inputFeatures: number, outputFeatures: number, bias: boolean) {
    super();
    this.inner = new Linear(inputFeatures, outputFeatures, { bias });
  }
  override loadFrom(...[source, prefix]: Parameters<Module["loadFrom"]>): void {
    this.inner.loadFrom(source, prefix);
  }
  prepare(): void {
    this.prepared++;
  }
  forward(x: Tensor): Tensor {
    return this.inner.forward(x);
  }
}

class Block extends Module {
  qProj = new Linear(3, 4);
  oProj = new Linear(4, 3, { bias: false });
  forward(x: Tensor): Tensor {
    return this.oProj.forward(this.qProj.forward(x));
  }
}

class Model extends Module {
  layers = new ModuleList([new Block(), new Block()]);
  mlp = new Sequential(new Linear(3, 3));
  lmHead = new Linear(3, 7);
  forward(x: Tensor): Tensor {
    return this.lmHead.forward(x);
  }
}

const factory: LinearFactory = (k, n, bias) => new Swapped(k, n, bias);
const swapped = (model: Module): string[] =>
  model.namedModules().flatMap(([path, module]) => (module instanceof Swapped ? [path] : []));

describe("replaceLinear", () => {
  it("swaps every Linear except the head, in fields, lists and sequences", () => {
    const model = new Model();
    expect(replaceLinear(model, factory)).toBe(model);
    const blocks = [0, 1].flatMap((i) => [`layers.${i}.q_proj`, `layers.${i}.o_proj`]);
    expect(swapped(model)).toEqual([...blocks, "mlp.0"]);
    expect(model.lmHead).toBeInstanceOf(Linear);
    const { inner } = model.layers.at(0).oProj as unknown as Swapped;
    expect([inner.inFeatures, inner.outFeatures, inner.bias]).toEqual([4, 3, null]);
  });

  it("skips by own name, by path, and by predicate", () => {
    const byName = replaceLinear(new Model(), factory, { skipModules: ["q_proj", "layers.1.o_proj", "0"] });
    expect(swapped(byName)).toEqual(["layers.0.o_proj", "lm_head"]);
    const byPredicate = replaceLinear(new Model(), factory, (path, linear) => /^layers\.1/.test(path) && !!linear.bias);
    expect(swapped(byPredicate)).toEqual(["layers.1.q_proj"]);
  });

  it("reports a name to skip that is that of nothing, except lm_head, which tied models lack", () => {
    const skip = (...skipModules: string[]) => {
      const model = new Model();
      return () => swapped(replaceLinear(model, factory, { skipModules }));
    };
    const rule = "replaceLinear: each of skipModules must name a Linear of the model or what is above one, got";
    expect(skip("q_proj", "qproj")).toThrow(`${rule} qproj (did you mean q_proj?)`);
    expect(skip("head")).toThrow(expect.objectContaining({ code: "ERR_BNB_OPTION", message: `${rule} head` }));
    expect(replaceLinear(new Swapped(2, 2, true), factory, { skipModules: ["lm_head"] })).toBeInstanceOf(Swapped);
  });

  it("skips what is below a named module, such as the base of an adapter, and items of lists alone", () => {
    const model = new Model();
    model.lmHead = new LoraLinear(model.lmHead, { r: 1 }) as unknown as Linear;
    expect(swapped(replaceLinear(model, factory))).not.toContain("lm_head.base_layer");
    expect((model.lmHead as unknown as LoraLinear).baseLayer).toBeInstanceOf(Linear);
    const byParent = replaceLinear(new Model(), factory, { skipModules: ["layers", "lm_head"] });
    expect(swapped(byParent)).toEqual(["mlp.0"]);
    const byPath = replaceLinear(new Model(), factory, { skipModules: ["layers.1", "lm_head"] });
    expect(swapped(byPath)).toEqual(["layers.0.q_proj", "layers.0.o_proj", "mlp.0"]);
    const below = new Model();
    below.layers.at(1).qProj = new LoraLinear(below.layers.at(1).qProj, { r: 1 }) as unknown as Linear;
    expect(swapped(replaceLinear(below, factory, { skipModules: ["q_proj", "mlp"] }))).toEqual([
      ...["layers.0.o_proj", "layers.1.o_proj", "lm_head"],
    ]);
    // No part of a name is one.
    for (const part of ["proj", "layers.1.q", "head"]) {
      expect(() => replaceLinear(new Model(), factory, { skipModules: [part] })).toThrow(`above one, got ${part}`);
    }
  });

  it("changes nothing when a layer cannot be made", () => {
    const model = new Model();
    const linears = model.modules().filter((module) => module instanceof Linear);
    const live = memory().tensors;
    let made = 0;
    const failing: LinearFactory = (k, n, bias) => {
      if (++made === 3) throw new Error("no third");
      return new Linear(k, n, { bias });
    };
    expect(() => replaceLinear(model, failing)).toThrow("no third");
    expect(model.modules().filter((module) => module instanceof Linear)).toEqual(linears);
    expect(memory().tensors).toBe(live);
    model.dispose();
  });

  it("copies the weights when told", () => {
    const model = new Model();
    const { weight, bias } = model.layers.at(1).qProj;
    const [w, b] = [weight.floatsSync(), bias!.floatsSync()];
    replaceLinear(model, factory, { copyWeights: true });
    const { inner } = model.layers.at(1).qProj as unknown as Swapped;
    expect([inner.weight.floatsSync(), inner.bias!.floatsSync()]).toEqual([w, b]);
  });

  it("calls the function, or the method of that name, on each new layer", () => {
    const seen: string[] = [];
    replaceLinear(new Model(), factory, { postProcessingFunction: (_, path) => seen.push(path) });
    expect(seen.length).toBe(5);
    const model = replaceLinear(new Model(), factory, { postProcessingFunction: "prepare" });
    expect(model.modules().filter((m) => m instanceof Swapped && m.prepared === 1).length).toBe(5);
  });

  it("keeps the mode, one layer for a shared one, and frees the old", () => {
    const start = memory().tensors;
    const shared = new Linear(2, 2);
    const model = new Sequential(shared, new Sequential(shared)).eval();
    replaceLinear(model, factory);
    expect(model.at(0)).toBe((model.at(1) as Sequential).at(0));
    expect([model.at(0).training, shared.weight.disposed]).toEqual([false, true]);
    model.dispose();
    expect(memory().tensors).toBe(start);
  });

  it("does not free what the factory moved into the new layer", () => {
    class Wrapper extends Module {
      base: Linear;
      constructor(base: Linear) {
        super();
        this.base = base;
      }
      forward(x: Tensor): Tensor {
        return this.base.forward(x);
      }
    }
    const model = replaceLinear(new Sequential(new Linear(2, 2)), (_k, _n, _bias, linear) => new Wrapper(linear));
    expect(model.parameters().every((p) => !p.disposed)).toBe(true);
    expect([...model.stateDict().keys()]).toEqual(["0.base.weight", "0.base.bias"]);
  });

  it("wants a model around the layers, and modules from the factory", () => {
    expect(() => replaceLinear(new Linear(1, 1), factory)).toThrow(
      "replaceLinear: model must contain its Linear layers",
    );
    expect(() => replaceLinear(new Model(), (() => 1) as unknown as LinearFactory)).toThrow(
      "replaceLinear: factory must return a Module, got number",
    );
  });
});
