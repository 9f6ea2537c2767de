// findOutlierDims against its formula, the tracer over one forward pass, and a layer that uses it.
import { describe, expect, it } from "vitest";
import {
  findOutlierDims,
  Linear,
  LinearNF4,
  Module,
  OutlierAwareLinear,
  OutlierTracer,
  Sequential,
} from "../../src/nn/index.js";
import { Generator, linear, relu } from "../../src/ops/index.js";
import { tensor, zeros } from "../../src/tensor/create.js";
import { tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { normals } from "../helpers/random.js";

/** Noise with some columns larger by a factor. */
function matrix(rows: number, columns: number, loud: readonly number[], factor: number, seed = 1): Tensor {
  const values = normals(rows * columns, seed).map((v, i) => (loud.includes(i % columns) ? v * factor : v));
  return tensor(values, { shape: [rows, columns] });
}

describe("findOutlierDims", () => {
  it("finds the columns, or the rows, whose deviation stands out", () => {
    tidy(() => {
      const w = matrix(40, 100, [7, 31], 8);
      expect([...findOutlierDims(w)]).toEqual([7, 31]);
      expect([...findOutlierDims(w.transpose(), { reductionDim: 1 })]).toEqual([7, 31]);
      expect([...findOutlierDims(w.transpose())]).toEqual([]);
    });
  });

  it("takes deviations and their spread over n - 1, and more than zscore of them", () => {
    tidy(() => {
      // Deviations of the columns: sqrt(2) * (1, 1, 1, 3); their mean is 1.5, their spread 1: z of the last is 1.5.
      const w = tensor([
        [1, 1, 1, 3],
        [-1, -1, -1, -3],
      ]);
      expect([...findOutlierDims(w, { zscore: 1.49 })]).toEqual([3]);
      expect([...findOutlierDims(w, { zscore: 1.51 })]).toEqual([]);
    });
  });

  it("takes the topk largest, or topk at random", () => {
    tidy(() => {
      const w = tensor([
        [1, 4, 2, 3],
        [-1, -4, -2, -3],
      ]);
      expect([...findOutlierDims(w, { topk: 3 })]).toEqual([1, 3, 2]);
      const draw = () => [...findOutlierDims(w, { rdm: true, topk: 50, generator: new Generator(1) }).values()];
      expect(() => draw()).toThrow("findOutlierDims: topk must be at most 4, got 50");
      const four = [...findOutlierDims(w, { rdm: true, topk: 4, generator: new Generator(1) })];
      expect(four).toEqual([...findOutlierDims(w, { rdm: true, topk: 4, generator: new Generator(1) })]);
      expect(four.every((i) => i >= 0 && i < 4)).toBe(true);
      expect(() => findOutlierDims(w, { rdm: true })).toThrow("findOutlierDims: rdm needs topk, got none");
      expect(() => findOutlierDims(zeros([2]))).toThrow("findOutlierDims: weight must be a matrix, got [2]");
    });
  });
});

class Doubled extends OutlierAwareLinear {
  override forwardWithOutliers(x: Tensor, outlierDim: Int32Array): Tensor {
    expect([...outlierDim]).toEqual([7, 31]);
    return linear(x, this.weight, this.bias);
  }
  override quantizeWeight(weight: Tensor): Tensor {
    return weight.mul(2);
  }
}

class Model extends Module {
  first = new Linear(100, 100);
  second = new Linear(100, 50);
  third = new LinearNF4(50, 8).quantize();
  constructor() {
    super();
    this.second.loadStateDict({ weight: matrix(50, 100, [3, 60], 9) }, { strict: false });
  }
  forward(x: Tensor): Tensor {
    return this.third.forward(relu(this.second.forward(this.first.forward(x))));
  }
}

describe("OutlierTracer", () => {
  const tracer = OutlierTracer.getInstance();

  it("finds the first layer's columns from its input and the others' from their weights, once", () => {
    tidy(() => {
      using model = new Model();
      tracer.initialize(model);
      expect(OutlierTracer.getInstance()).toBe(tracer);
      expect(tracer.isInitialized()).toBe(true);
      expect(tracer.getOutliers(model.first.weight)).toBeNull();
      const x = matrix(30, 100, [12], 9);
      // A magnitude above 6 in a column that is quiet otherwise.
      const values = x.floatsSync().slice();
      values[55] = -6.5;
      values[56] = 6;
      const y = model.forward(tensor(values, { shape: [3, 10, 100] }));
      expect([...(tracer.getOutliers(model.first.weight) ?? [])]).toEqual([12, 55]);
      expect([...(tracer.getOutliers(model.second.weight) ?? [])]).toEqual([3, 60]);
      expect(tracer.getOutliers(model.third.weight)).toBeNull();
      // The second pass takes the watch off; results stay what they were.
      const again = model.forward(tensor(values, { shape: [3, 10, 100] }));
      expect(again.dataSync()).toEqual(y.dataSync());
      expect(Object.hasOwn(model.first, "forward") || Object.hasOwn(model.second, "forward")).toBe(false);
      expect([...(tracer.getOutliers(model.first.weight) ?? [])]).toEqual([12, 55]);
    });
  });

  it("tells an OutlierAwareLinear, which quantizes once", () => {
    tidy(() => {
      using layer = new Doubled(100, 40, { bias: false });
      layer.loadStateDict({ weight: matrix(40, 100, [7, 31], 8) });
      const w = layer.weight.floatsSync().slice();
      const x = zeros([1, 100]);
      expect(() => layer.forward(x)).toThrow(
        "OutlierAwareLinear: OutlierTracer.getInstance().initialize(model) must come before the first forward",
      );
      using model = new Sequential(new Linear(100, 100), layer);
      tracer.initialize(model);
      model.forward(x);
      model.forward(x);
      expect([...(layer.outlierDim ?? [])]).toEqual([7, 31]);
      expect(layer.isQuantized).toBe(true);
      expect([...layer.weight.floatsSync()]).toEqual([...w].map((value) => 2 * value));
    });
  });
});
