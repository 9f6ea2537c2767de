// Which input columns of linear layers are outliers, found from weights and from the first activations, and the base of
// layers that treat them apart.
import { noGrad } from "../autograd/no-grad.js";
import type { Generator } from "../ops/random.js";
import { aGenerator, randint } from "../ops/random.js";
import { copyInto } from "../ops/shape.js";
import { aBoolean, aFiniteNumber, anInteger, checkTensor, oneOf } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { Linear } from "./linear.js";
import type { Module } from "./module.js";

/** Options of `findOutlierDims`. */
export interface OutlierDimsOptions {
  /** The axis that standard deviations are taken over: 0 (the default) judges columns, 1 rows. */
  reductionDim?: 0 | 1;
  /** How many standard deviations above the mean the deviation of an outlier is, at least. Default 4. */
  zscore?: number;
  /** Instead: this many with the largest deviation, largest first. */
  topk?: number;
  /** Instead: `topk` columns at random, for comparison. Default false. */
  rdm?: boolean;
  /** Source of the random columns; default the global one. */
  generator?: Generator;
}
const outlierDimsOptions = optionTable<OutlierDimsOptions>({
  reductionDim: oneOf([0, 1]),
  zscore: aFiniteNumber,
  topk: anInteger(0),
  rdm: aBoolean,
  generator: aGenerator,
});

/**
 * Indices of the columns of a float matrix [rows, columns] whose standard deviation stands out from those of the others.
 * Reads the matrix, which waits for the device.
 */
export function findOutlierDims(weight: Tensor, options: OutlierDimsOptions = {}): Int32Array {
  checkTensor("findOutlierDims", "weight", weight);
  checkOptions("findOutlierDims", options, outlierDimsOptions);
  const { reductionDim = 0, zscore = 4, topk, rdm = false, generator } = options;
  const [rows = 0, columns = 0] = weight.shape;
  if (weight.ndim !== 2) {
    throw new BnbError("ERR_BNB_SHAPE", `findOutlierDims: weight must be a matrix, got [${weight.shape.join(", ")}]`);
  }
  const count = reductionDim === 0 ? columns : rows;
  if (topk !== undefined && topk > count) {
    throw new BnbError("ERR_BNB_OPTION", `findOutlierDims: topk must be at most ${count}, got ${topk}`);
  }
  if (rdm) {
    if (topk === undefined) throw new BnbError("ERR_BNB_OPTION", "findOutlierDims: rdm needs topk, got none");
    return tidy(() => {
      const drawn = randint([topk], { low: 0, high: columns, ...(generator && { generator }) });
      return Int32Array.from(drawn.dataSync());
    });
  }
  const values = weight.floatsSync();
  const [step, stride] = reductionDim === 0 ? [columns, 1] : [1, columns];
  const deviations = Array.from({ length: count }, (_, i) =>
    deviation(reductionDim === 0 ? rows : columns, (j) => values[i * stride + j * step] as number),
  );
  const order = deviations.map((_, i) => i);
  if (topk !== undefined) {
    return Int32Array.from(order.sort((a, b) => (deviations[b] as number) - (deviations[a] as number)).slice(0, topk));
  }
  const mean = deviations.reduce((sum, d) => sum + d, 0) / count;
  const spread = deviation(count, (i) => deviations[i] as number);
  return Int32Array.from(order.filter((i) => ((deviations[i] as number) - mean) / spread > zscore));
}

// Of a sample: over n - 1.
function deviation(n: number, at: (i: number) => number): number {
  let mean = 0;
  for (let i = 0; i < n; i++) mean += at(i) / n;
  let sum = 0;
  for (let i = 0; i < n; i++) sum += (at(i) - mean) ** 2;
  return Math.sqrt(sum / (n - 1));
}

const ACTIVATION_LIMIT = 6;
const ACTIVATION_ZSCORE = 3;

/**
 * Finds the outlier columns of every linear layer of a model during one forward pass: of the first layer that runs from
 * its input (columns with a magnitude above 6, or whose deviation stands out), of the others from their weights. There
 * is one tracer, `OutlierTracer.getInstance()`. Layers that are quantized already are left out.
 *
 * @example
 * OutlierTracer.getInstance().initialize(model);
 * model.forward(ids);
 * const columns = OutlierTracer.getInstance().getOutliers(model.lmHead.weight);
 */
export class OutlierTracer {
  static #instance: OutlierTracer | null = null;
  #columns = new WeakMap<Tensor, Int32Array>();
  #watched = new Set<Linear>();
  #initialized = false;
  #found = 0;

  private constructor() {}

  static getInstance(): OutlierTracer {
    OutlierTracer.#instance ??= new OutlierTracer();
    return OutlierTracer.#instance;
  }

  /** Watches the linear layers of a model until each has run, or one runs a second time. Forgets an earlier model. */
  initialize(model: Module): void {
    this.#release();
    this.#columns = new WeakMap();
    this.#found = 0;
    this.#initialized = true;
    for (const module of model.modules()) {
      if (module instanceof Linear && module.weight.trainable) this.#watch(module);
    }
  }

  isInitialized(): boolean {
    return this.#initialized;
  }

  /** The outlier columns of the layer with this weight, ascending; null for one that has not run or is not known. */
  getOutliers(weight: Tensor): Int32Array | null {
    return this.#columns.get(weight) ?? null;
  }

  // The layer's own `forward` stands before that of its class until it is deleted.
  #watch(layer: Linear): void {
    const forward = layer.forward;
    this.#watched.add(layer);
    layer.forward = (x: Tensor): Tensor => {
      if (this.#columns.has(layer.weight)) {
        this.#release();
      } else {
        const columns = noGrad(() => (this.#found === 0 ? activationOutliers(x) : findOutlierDims(layer.weight)));
        this.#columns.set(layer.weight, columns);
        this.#found++;
      }
      return forward.call(layer, x);
    };
  }

  #release(): void {
    for (const layer of this.#watched) Reflect.deleteProperty(layer, "forward");
    this.#watched.clear();
  }
}

function activationOutliers(x: Tensor): Int32Array {
  const columns = x.shape[x.ndim - 1] as number;
  const found = tidy(() =>
    findOutlierDims(x.detach().reshape([x.size / columns, columns]), { zscore: ACTIVATION_ZSCORE }),
  );
  const all = new Set(found);
  x.floatsSync().forEach((value, i) => {
    if (Math.abs(value) > ACTIVATION_LIMIT) all.add(i % columns);
  });
  return Int32Array.from([...all].sort((a, b) => a - b));
}

/**
 * The base of linear layers that treat outlier columns apart. At its first forward it asks the `OutlierTracer` for them,
 * gives its weight the values of `quantizeWeight`, and from then on computes `forwardWithOutliers`.
 */
export abstract class OutlierAwareLinear extends Linear {
  /** The outlier columns, once known. */
  outlierDim: Int32Array | null = null;
  isQuantized = false;

  /** The layer's output for x [..., inFeatures]. */
  abstract forwardWithOutliers(x: Tensor, outlierDim: Int32Array): Tensor;
  /** The values that the weight [outFeatures, inFeatures] is to have, of its dtype. */
  abstract quantizeWeight(weight: Tensor, outlierDim: Int32Array): Tensor;

  override forward(x: Tensor): Tensor {
    const columns = this.outlierDim ?? OutlierTracer.getInstance().getOutliers(this.weight);
    if (!columns) {
      const rule =
        "OutlierAwareLinear: OutlierTracer.getInstance().initialize(model) must come before the first forward";
      throw new BnbError("ERR_BNB_ARGUMENT", `${rule}, got a weight that the tracer does not know`);
    }
    this.outlierDim = columns;
    if (!this.isQuantized) {
      noGrad(() => tidy(() => copyInto(this.weight, this.quantizeWeight(this.weight, columns))));
      this.isQuantized = true;
    }
    return this.forwardWithOutliers(x, columns);
  }
}
