// Granite 3 (IBM, 2024): Llama's layers with factors for the embedding, the scores, each residual and the logits.
import { Module, RMSNorm } from "../../nn/index.js";
import { add, mul } from "../../ops/index.js";
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

interface GraniteOptions {
  /** Factor of the scores. */
  scale: number;
  /** Factor of what attention and MLP add. */
  share: number;
  bias: boolean;
  mlpBias: boolean;
  activation: string;
}

/** `h = x + share * attention(norm(x))`, then `h + share * mlp(norm(h))`. */
class GraniteLayer extends Module {
  selfAttn: SelfAttention;
  mlp: GatedMlp;
  inputLayernorm: RMSNorm;
  postAttentionLayernorm: RMSNorm;
  readonly #own: GraniteOptions;

  constructor(c: DecoderConfig, index: number, options: ModelOptions, own: GraniteOptions) {
    super();
    const norm = (): RMSNorm => new RMSNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
    this.selfAttn = new SelfAttention(c, index, options, { bias: own.bias });
    this.mlp = new GatedMlp({ ...c, activation: own.activation, bias: own.mlpBias }, options);
    this.inputLayernorm = norm();
    this.postAttentionLayernorm = norm();
    this.#own = own;
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary): Tensor {
    const { scale, share } = this.#own;
    const mixed = this.selfAttn.forward(this.inputLayernorm.forward(x), pass, rotary, { scale });
    const h = add(x, mul(mixed, share));
    return add(h, mul(this.mlp.forward(this.postAttentionLayernorm.forward(h)), share));
  }
}

export const granite: Family<DecoderForCausalLM> = {
  create(json: Readonly<Record<string, unknown>>, options) {
    const keys = new ConfigKeys(json);
    const c = readDecoderConfig(keys);
    const own = {
      scale: keys.number("attention_multiplier", 1),
      share: keys.number("residual_multiplier", 1),
      bias: keys.flag("attention_bias", false),
      mlpBias: keys.flag("mlp_bias", false),
      activation: keys.text("hidden_act", "silu"),
    };
    const multiplier = keys.number("embedding_multiplier", 1);
    const parts = {
      layer: (i: number) => new GraniteLayer(c, i, options, own),
      norm: new RMSNorm(c.hiddenSize, { eps: c.normEps, ...place(options) }),
      embeddingScale: () => multiplier,
    };
    const divisor = keys.number("logits_scaling", 1);
    return new DecoderForCausalLM(c, options, new DecoderModel(c, options, parts), (x) => mul(x, 1 / divisor));
  },
  embedding: "model.embed_tokens.weight",
};
