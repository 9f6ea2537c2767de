// Adapters that start from the base's weights: their largest singular values (PiSSA, Meng et al., 2024), their QR
// decomposition (OLoRA, Büyükakyüz, 2024), or what quantization takes from them (LoftQ, Li et al., 2023).
import { noGrad } from "../autograd/no-grad.js";
import type { Module } from "../nn/index.js";
import { Linear, Linear4bit, Linear8bitLt, Parameter, uninitialized } from "../nn/index.js";
import { cast, Generator, linear, randn, transpose } from "../ops/index.js";
import { tensor } from "../tensor/create.js";
import { isFloat } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { floatWeight } from "./base-weight.js";
import type { LoraAdapter } from "./lora-adapter.js";
import type { LoraLinear } from "./lora-linear.js";
import type { Decomposition, Matrix } from "./low-rank.js";
import {
  decomposed,
  decomposedProduct,
  leading,
  matrix,
  orthonormalized,
  scaledColumns,
  transposed,
} from "./low-rank.js";

export type WeightStart = "pissa" | "olora" | "loftq";

/** Throws ERR_BNB_OPTION unless the base is a linear layer of floats. */
export function checkStart(op: string, kind: WeightStart, base: Module, path: string): void {
  const isPlain = base instanceof Linear && !(base instanceof Linear4bit) && !(base instanceof Linear8bitLt);
  if (isPlain && base.weight.constructor === Parameter && isFloat(base.weight.dtype)) return;
  const rule = `${op}: initLoraWeights "${kind}" needs a Linear of floats`;
  throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${base.constructor.name} at ${path}`);
}

/** Makes the adapter from the layer's weight, and takes from the weight what the adapter has. */
export function startFromWeight(kind: WeightStart, layer: LoraLinear, adapter: LoraAdapter, iterations = 1): void {
  noGrad(() =>
    tidy(() => {
      const weight = floatWeight(layer.baseLayer).clone();
      if (kind === "loftq") {
        startFromLoss(layer, adapter, weight, iterations);
        return;
      }
      const { a, b } = kind === "pissa" ? largest(weight, adapter.r) : firstColumns(weight, adapter.r);
      assign(adapter, a, { ...b, data: b.data.map((v) => v / adapter.scaling) });
      adapter.start = { a: adapter.loraA.floatsSync(), b: adapter.loraB.floatsSync() };
      layer.baseLayer.loadStateDict({ weight: weight.sub(layer.updateOf(adapter)) }, { strict: false });
    }),
  );
}

/** Gives the base back what its adapter began as. */
export function restoreStart(layer: LoraLinear, adapter: LoraAdapter): void {
  if (!adapter.start) return;
  const { a, b } = adapter.start;
  const { r, loraA, loraB } = adapter;
  noGrad(() =>
    tidy(() => {
      assign(adapter, matrix(r, loraA.shape[1] as number, a), matrix(loraB.shape[0] as number, r, b));
      const weight = floatWeight(layer.baseLayer).add(layer.updateOf(adapter));
      layer.baseLayer.loadStateDict({ weight }, { strict: false });
    }),
  );
  adapter.start = null;
}

/** B A = the part of the r largest singular values. */
function largest(weight: Tensor, r: number): { a: Matrix; b: Matrix } {
  const { u, values, v } = decomposedLeading(weight, r);
  const roots = values.map(Math.sqrt);
  return { a: transposed(leading(scaledColumns(v, roots), r)), b: leading(scaledColumns(u, roots), r) };
}

/** B = the first r columns of Q of the QR decomposition, A = the first r rows of R. */
function firstColumns(weight: Tensor, r: number): { a: Matrix; b: Matrix } {
  const [rows, columns] = weight.shape as [number, number];
  const { q } = orthonormalized(leading(matrix(rows, columns, weight.floatsSync()), r));
  const b = tensorOf(q, weight);
  const a = linear(transpose(b), transpose(weight), null);
  return { a: matrix(r, columns, a.floatsSync()), b: q };
}

// The base becomes 4-bit: Q = quantize(W - s B A), then s B A = the best approximation of W - Q, again and again.
function startFromLoss(layer: LoraLinear, adapter: LoraAdapter, weight: Tensor, iterations: number): void {
  const float = layer.baseLayer as Linear;
  const { inFeatures, outFeatures, bias } = float;
  const { dtype, device } = float.weight;
  const options = { bias: bias !== null, dtype, device, quantType: "nf4", compressStatistics: false } as const;
  const base = uninitialized(() => new Linear4bit(inFeatures, outFeatures, options));
  const state = (w: Tensor): Record<string, Tensor> => ({ weight: cast(w, dtype), ...(bias && { bias }) });
  let rest = weight;
  for (let i = 0; i < iterations; i++) {
    base.loadStateDict(state(rest), { strict: false });
    base.quantize();
    const { a, b } = largest(weight.sub(floatWeight(base)), adapter.r);
    assign(adapter, a, { ...b, data: b.data.map((v) => v / adapter.scaling) });
    rest = weight.sub(layer.updateOf(adapter));
  }
  base.train(float.training);
  base.requiresGrad_(false);
  layer.baseLayer = base;
  float.dispose();
}

/** Up to this many rows or columns a matrix is decomposed as a whole. */
const WHOLE = 192;

/** The largest singular values: exactly for small matrices, else by iterating a subspace (Halko et al., 2011). */
function decomposedLeading(weight: Tensor, r: number): Decomposition {
  const [rows, columns] = weight.shape as [number, number];
  if (Math.min(rows, columns) <= WHOLE) return decomposed(matrix(rows, columns, weight.floatsSync()));
  const size = Math.min(r + 16, rows, columns);
  const turned = transpose(weight);
  let basis = tidyMatrix(() => randn([columns, size], { generator: new Generator(0), device: weight.device }));
  for (let i = 0; i < 10; i++) {
    const image = orthonormalized(tidyMatrix(() => linear(weight, transpose(tensorOf(basis, weight)), null))).q;
    basis = orthonormalized(tidyMatrix(() => linear(turned, transpose(tensorOf(image, weight)), null))).q;
  }
  const image = tidyMatrix(() => linear(weight, transpose(tensorOf(basis, weight)), null));
  return decomposedProduct(image, transposed(basis));
}

function tidyMatrix(make: () => Tensor): Matrix {
  return tidy(() => {
    const made = make();
    return matrix(made.shape[0] as number, made.shape[1] as number, made.floatsSync());
  });
}

function tensorOf({ rows, columns, data }: Matrix, like: Tensor): Tensor {
  return tensor(Float32Array.from(data), { shape: [rows, columns], device: like.device });
}

function assign(adapter: LoraAdapter, a: Matrix, b: Matrix): void {
  tidy(() => adapter.assign({ loraA: tensorOf(a, adapter.loraA), loraB: tensorOf(b, adapter.loraB) }));
}
