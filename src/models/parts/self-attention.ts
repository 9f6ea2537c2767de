// Grouped-query attention of a decoder layer, with its projections apart.
import type { UnaryModule } from "../../nn/index.js";
import { Linear, linearEach, linearResidual, Module } from "../../nn/index.js";
import { reshape } from "../../ops/index.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Pass, Rotary, Scores } from "../pass.js";
import type { DecoderConfig } from "./config-keys.js";
import type { ModelOptions } from "./model-options.js";

export interface SelfAttentionOptions {
  /** Of q, k and v. Default false. */
  bias?: boolean;
  /** Of the output projection. Default that of `bias`. */
  outputBias?: boolean;
  /** Makes the norm of queries or of keys, over this many values. Default: none. */
  norm?: (size: number) => UnaryModule;
  /** Whether that norm is of a head or of all heads together. Default "head". */
  normOver?: "head" | "projection";
}

type Sizes = Pick<DecoderConfig, "hiddenSize" | "numAttentionHeads" | "numKeyValueHeads" | "headDim">;

/** `oProj(softmax(scale * rope(q) rope(k)^T) v)`, where each head of k and v serves a group of heads of q. */
export class SelfAttention extends Module {
  qProj: UnaryModule;
  kProj: UnaryModule;
  vProj: UnaryModule;
  oProj: UnaryModule;
  qNorm: UnaryModule | null;
  kNorm: UnaryModule | null;
  readonly #headDim: number;
  readonly #layer: number;
  readonly #normOver: "head" | "projection";

  constructor(c: Sizes, layer: number, options: ModelOptions, own: SelfAttentionOptions = {}) {
    super();
    const { bias = false, outputBias = bias, norm, normOver = "head" } = own;
    const [queries, keys] = [c.numAttentionHeads * c.headDim, c.numKeyValueHeads * c.headDim];
    this.qProj = new Linear(c.hiddenSize, queries, { bias, ...options });
    this.kProj = new Linear(c.hiddenSize, keys, { bias, ...options });
    this.vProj = new Linear(c.hiddenSize, keys, { bias, ...options });
    this.oProj = new Linear(queries, c.hiddenSize, { bias: outputBias, ...options });
    this.qNorm = norm?.(normOver === "head" ? c.headDim : queries) ?? null;
    this.kNorm = norm?.(normOver === "head" ? c.headDim : keys) ?? null;
    this.#headDim = c.headDim;
    this.#layer = layer;
    this.#normOver = normOver;
  }

  /** x [..., hidden]; the residual, if given, is added to the result. */
  forward(x: Tensor, pass: Pass, rotary: Rotary | null, scores: Scores = {}, residual: Tensor | null = null): Tensor {
    const rows = x.shape.slice(0, -1);
    const [q, k, v] = linearEach([this.qProj, this.kProj, this.vProj], x) as [Tensor, Tensor, Tensor];
    const heads = (y: Tensor): Tensor => reshape(y, [...rows, -1, this.#headDim]);
    const normed = (y: Tensor, norm: UnaryModule | null): Tensor => {
      if (!norm) return heads(y);
      return this.#normOver === "head" ? norm.forward(heads(y)) : heads(norm.forward(y));
    };
    const mixed = pass.attend(this.#layer, normed(q, this.qNorm), normed(k, this.kNorm), heads(v), rotary, scores);
    const y = reshape(mixed, [...rows, -1]);
    return residual ? linearResidual(this.oProj, y, residual) : this.oProj.forward(y);
  }
}
