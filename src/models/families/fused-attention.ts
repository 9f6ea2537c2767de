// Attention whose queries, keys and values come from one matrix that is ordered by group: for each head of keys its
// queries, itself and its values. GPT-NeoX and every Falcon are of this kind; they differ in the number of groups.
import type { UnaryModule } from "../../nn/index.js";
import { Linear, Module } from "../../nn/index.js";
import { reshape, slice } from "../../ops/index.js";
import type { Tensor } from "../../tensor/tensor.js";
import { Alibi } from "../parts/alibi.js";
import type { ModelOptions } from "../parts/model-options.js";
import type { Pass, Rotary, Scores } from "../pass.js";

interface FusedSizes {
  /** Whether scores grow with the positions of keys. */
  alibi?: boolean;
  hiddenSize: number;
  numAttentionHeads: number;
  numKeyValueHeads: number;
  headDim: number;
}

/** queryKeyValue gives [..., groups, queries of a group + 2, headDim]. */
export class FusedAttention extends Module {
  queryKeyValue: UnaryModule;
  dense: UnaryModule;
  readonly #sizes: FusedSizes;
  readonly #layer: number;
  readonly #alibi: Alibi | null;

  constructor(sizes: FusedSizes, layer: number, options: ModelOptions, bias: boolean) {
    super();
    const { hiddenSize, numAttentionHeads, numKeyValueHeads, headDim } = sizes;
    const all = (numAttentionHeads + 2 * numKeyValueHeads) * headDim;
    this.queryKeyValue = new Linear(hiddenSize, all, { bias, ...options });
    this.dense = new Linear(numAttentionHeads * headDim, hiddenSize, { bias, ...options });
    this.#sizes = sizes;
    this.#layer = layer;
    this.#alibi = sizes.alibi ? new Alibi(numAttentionHeads) : null;
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary | null, scores: Scores = {}): Tensor {
    const { numAttentionHeads: heads, numKeyValueHeads: groups, headDim } = this.#sizes;
    const rows = x.shape.slice(0, -1);
    const each = heads / groups;
    const all = reshape(this.queryKeyValue.forward(x), [...rows, groups, each + 2, headDim]);
    const part = (from: number, to: number): Tensor =>
      reshape(slice(all, rows.length + 1, from, to), [...rows, groups * (to - from), headDim]);
    const [q, k, v] = [part(0, each), part(each, each + 1), part(each + 1, each + 2)] as [Tensor, Tensor, Tensor];
    const mixed = this.#alibi
      ? this.#alibi.attend(pass, this.#layer, q, k, v)
      : pass.attend(this.#layer, q, k, v, rotary, scores);
    return this.dense.forward(reshape(mixed, [...rows, heads * headDim]));
  }

  override dispose(): void {
    this.#alibi?.dispose();
    super.dispose();
  }
}
