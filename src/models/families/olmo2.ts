// OLMo 2 (OLMo Team, 2024): no norm before attention and MLP but one after each, and norms of queries and keys over all
// heads together.
import { Module, RMSNorm } from "../../nn/index.js";
import { add } from "../../ops/index.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Family } from "../load.js";
import type { DecoderConfig } from "../parts/config-keys.js";
import { ConfigKeys, readDecoderConfig } from "../parts/config-keys.js";
import { DecoderForCausalLM, DecoderModel } from "../parts/decoder.js";
import { GatedMlp } from "../parts/gated-mlp.js";
import type { ModelOptions } from "../parts/model-options.js";
import { place } from "../parts/model-options.js";
import { SelfAttention } from "../parts/self-attention.js";
import type { Pass, Rotary } from "../pass.js";

/** `h = x + norm(attention(x))`, then `h + norm(mlp(h))`. */
class Olmo2Layer extends Module {
  selfAttn: SelfAttention;
  mlp: GatedMlp;
  postAttentionLayernorm: RMSNorm;
  postFeedforwardLayernorm: RMSNorm;

  constructor(c: DecoderConfig, index: number, options: ModelOptions, own: { bias: boolean; activation: string }) {
    super();
    const norm = (size: number): RMSNorm => new RMSNorm(size, { eps: c.normEps, ...place(options) });
    this.selfAttn = new SelfAttention(c, index, options, { bias: own.bias, norm, normOver: "projection" });
    this.mlp = new GatedMlp({ ...c, activation: own.activation }, options);
    this.postAttentionLayernorm = norm(c.hiddenSize);
    this.postFeedforwardLayernorm = norm(c.hiddenSize);
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary): Tensor {
    const h = add(x, this.postAttentionLayernorm.forward(this.selfAttn.forward(x, pass, rotary)));
    return add(h, this.postFeedforwardLayernorm.forward(this.mlp.forward(h)));
  }
}

export const olmo2: Family<DecoderForCausalLM> = {
  create(json: Readonly<Record<string, unknown>>, options) {
    const keys = new ConfigKeys(json);
    const c = readDecoderConfig(keys, { normEps: 1e-5 });
    const own = { bias: keys.flag("attention_bias", false), activation: keys.text("hidden_act", "silu") };
    const norm = new RMSNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
    const layer = (i: number): Olmo2Layer => new Olmo2Layer(c, i, options, own);
    return new DecoderForCausalLM(c, options, new DecoderModel(c, options, { layer, norm }));
  },
  embedding: "model.embed_tokens.weight",
};
