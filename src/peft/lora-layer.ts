// Layers with low-rank adapters: what LoRA and DoRA make of a weight.
import { noGrad } from "../autograd/no-grad.js";
import type { Module } from "../nn/index.js";
import { Parameter } from "../nn/index.js";
import { mul, sqrt, sum } from "../ops/index.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { AdapterLayer } from "./adapter-layer.js";
import { floatWeight } from "./base-weight.js";
import type { LoraAdapter, LoraOptions } from "./lora-adapter.js";

/** A base layer with low-rank adapters. */
export abstract class LoraLayer<Base extends Module = Module> extends AdapterLayer<Base, LoraAdapter> {
  /** Puts an adapter of these sizes into the layer; it is not active yet. */
  abstract addAdapter(name: string, options?: LoraOptions): LoraAdapter;

  /** scaling * B A in the layout of the weight, float32. */
  abstract updateOf(adapter: LoraAdapter): Tensor;

  /** The weight with an adapter in it, float32: W + scaling * B A; with DoRA its rows have the learned lengths. */
  protected override mergedWith(adapter: LoraAdapter, weight: Tensor): Tensor {
    const sum = weight.add(this.updateOf(adapter));
    if (!adapter.magnitude) return sum;
    return this.scaleRows(sum, adapter.magnitude.div(this.lengthsOf(sum)));
  }

  /** 2-norms of what belongs to one output. */
  protected lengthsOf(weight: Tensor): Tensor {
    return rowLengths(weight);
  }

  protected scaleRows(weight: Tensor, by: Tensor): Tensor {
    return weight.mul(by.reshape([by.size, 1]));
  }

  /** The lengths in the weight with the update of this adapter: constants in the backward pass. */
  protected lengthsWith(adapter: LoraAdapter): Tensor {
    return noGrad(() => tidy(() => this.lengthsOf(floatWeight(this.baseLayer).add(this.updateOf(adapter)))));
  }

  /** DoRA's lengths start as they are in the weight with the update of this adapter. */
  protected startMagnitude(adapter: LoraAdapter): void {
    adapter.magnitude?.dispose();
    adapter.magnitude = new Parameter(keep(this.lengthsWith(adapter)));
  }
}

/** 2-norms of the rows of a matrix, [rows]. */
export function rowLengths(matrix: Tensor): Tensor {
  return sqrt(sum(mul(matrix, matrix), { axis: 1 }));
}
