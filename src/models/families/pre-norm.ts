// The layer of Llama and its heirs: grouped-query attention and a gated MLP, each behind a norm.
import { Module, RMSNorm } from "../../nn/index.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { DecoderConfig } from "../parts/config-keys.js";
import { DecoderForCausalLM, DecoderModel } from "../parts/decoder.js";
import { GatedMlp } from "../parts/gated-mlp.js";
import type { ModelOptions } from "../parts/model-options.js";
import { place } from "../parts/model-options.js";
import type { SelfAttentionOptions } from "../parts/self-attention.js";
import { SelfAttention } from "../parts/self-attention.js";
import type { Pass, Rotary } from "../pass.js";

/** What one layer of these families has. */
export interface PreNormLayerOptions extends SelfAttentionOptions {
  activation?: string;
  mlpBias?: boolean;
  /** Whether queries and keys are turned. Default true. */
  hasRope?: boolean;
}

/** `h = x + attention(norm(x))`, then `h + mlp(norm(h))`. */
export class PreNormLayer extends Module {
  selfAttn: SelfAttention;
  mlp: Module & { forward(x: Tensor, residual: Tensor): Tensor };
  inputLayernorm: RMSNorm;
  postAttentionLayernorm: RMSNorm;
  readonly #window: number | undefined;
  readonly #hasRope: boolean;

  constructor(
    c: DecoderConfig,
    index: number,
    options: ModelOptions,
    own: PreNormLayerOptions = {},
    mlp?: PreNormLayer["mlp"],
  ) {
    super();
    const { activation, mlpBias: bias, hasRope = true, ...attention } = own;
    this.selfAttn = new SelfAttention(c, index, options, attention);
    this.mlp = mlp ?? new GatedMlp({ ...c, ...(activation && { activation }), ...(bias && { bias }) }, options);
    this.inputLayernorm = new RMSNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
    this.postAttentionLayernorm = new RMSNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
    this.#window = c.windows[index];
    this.#hasRope = hasRope;
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary): Tensor {
    const scores = this.#window === undefined ? {} : { window: this.#window };
    const turn = this.#hasRope ? rotary : null;
    const h = this.selfAttn.forward(this.inputLayernorm.forward(x), pass, turn, scores, x);
    return this.mlp.forward(this.postAttentionLayernorm.forward(h), h);
  }
}

/** A model of such layers. */
export function preNormModel(
  c: DecoderConfig,
  options: ModelOptions,
  layer: (index: number) => PreNormLayer,
): DecoderForCausalLM {
  const norm = new RMSNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
  return new DecoderForCausalLM(c, options, new DecoderModel(c, options, { layer, norm }));
}
