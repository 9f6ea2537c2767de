// Falcon (Almazrouei et al., 2023) in its three shapes: attention and MLP side by side under two norms (40B and 180B) or one
// (7B, with one head of keys for all), or one after the other (RW, with alibi).
import { Embedding, LayerNorm, Module, ModuleList } from "../../nn/index.js";
import { add } from "../../ops/index.js";
import type { Tensor } from "../../tensor/tensor.js";
import { CausalLM } from "../causal-lm.js";
import type { Family } from "../load.js";
import { alibiColumns } from "../parts/alibi.js";
import type { DecoderConfig } from "../parts/config-keys.js";
import { ConfigKeys, readDecoderConfig } from "../parts/config-keys.js";
import { FeedForward } from "../parts/feed-forward.js";
import type { ModelOptions } from "../parts/model-options.js";
import { place } from "../parts/model-options.js";
import { RotaryCache } from "../parts/rotary-cache.js";
import { throughLayers } from "../parts/through-layers.js";
import type { Pass, Rotary } from "../pass.js";
import type { OutputProjection } from "../quantized-head.js";
import type { LayerLayout } from "../step-plan.js";
import { FusedAttention } from "./fused-attention.js";

interface FalconConfig extends DecoderConfig {
  /** Which norms a layer has: of attention and MLP apart, one for both, or one before each in turn. */
  norms: "two" | "one" | "in turn";
  bias: boolean;
  /** Whether positions are biases of the scores instead of rotations. */
  alibi: boolean;
  activation: string;
}

class FalconLayer extends Module {
  lnAttn: LayerNorm | null;
  lnMlp: LayerNorm | null;
  inputLayernorm: LayerNorm | null;
  postAttentionLayernorm: LayerNorm | null;
  selfAttention: FusedAttention;
  mlp: FeedForward;

  constructor(c: FalconConfig, index: number, options: ModelOptions) {
    super();
    const norm = (): LayerNorm => new LayerNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
    this.lnAttn = c.norms === "two" ? norm() : null;
    this.lnMlp = c.norms === "two" ? norm() : null;
    this.inputLayernorm = c.norms === "two" ? null : norm();
    this.postAttentionLayernorm = c.norms === "in turn" ? norm() : null;
    this.selfAttention = new FusedAttention(c, index, options, c.bias);
    this.mlp = new FeedForward(c, options);
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary | null): Tensor {
    const before = (this.lnAttn ?? (this.inputLayernorm as LayerNorm)).forward(x);
    const h = add(x, this.selfAttention.forward(before, pass, rotary));
    const normed = this.lnMlp?.forward(x) ?? this.postAttentionLayernorm?.forward(h) ?? before;
    return add(h, this.mlp.forward(normed));
  }
}

class FalconModel extends Module {
  wordEmbeddings: Embedding;
  h: ModuleList<FalconLayer>;
  lnF: LayerNorm;
  readonly #rotary: RotaryCache | null;

  constructor(c: FalconConfig, options: ModelOptions) {
    super();
    this.wordEmbeddings = new Embedding(c.vocabSize, c.hiddenSize, options);
    this.h = new ModuleList(Array.from({ length: c.numHiddenLayers }, (_, i) => new FalconLayer(c, i, options)));
    this.lnF = new LayerNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
    this.#rotary = c.alibi ? null : new RotaryCache(c.headDim, c.rope, c.maxPositionEmbeddings);
  }

  forward(pass: Pass): Tensor {
    const rotary = this.#rotary?.for(pass) ?? null;
    const h = throughLayers(this.wordEmbeddings.forward(pass.ids), this.h, pass, (layer, x) =>
      layer.forward(x, pass, rotary),
    );
    return this.lnF.forward(h);
  }

  override dispose(): void {
    this.#rotary?.dispose();
    super.dispose();
  }
}

/** Falcon with its head, which is the embedding's weight: ids [batch, t] int32 to logits. */
export class FalconForCausalLM extends CausalLM<FalconConfig> {
  transformer: FalconModel;

  constructor(c: FalconConfig, options: ModelOptions) {
    super(c);
    this.transformer = new FalconModel(c, options);
  }

  protected override inputEmbedding(): Embedding {
    return this.transformer.wordEmbeddings;
  }

  override kvLayout(): LayerLayout[] {
    const { numKeyValueHeads: kvHeads, headDim, windows, alibi } = this.config;
    const own = alibi ? { kvHeads, headDim: headDim + alibiColumns, isExact: true } : { kvHeads, headDim };
    return windows.map(() => own);
  }

  protected override hidden(pass: Pass): Tensor {
    return this.transformer.forward(pass);
  }

  protected override outputProjection(): OutputProjection {
    return this.transformer.wordEmbeddings.weight;
  }
}

export const falcon: Family<FalconForCausalLM> = {
  create(json: Readonly<Record<string, unknown>>, options) {
    const keys = new ConfigKeys(json);
    keys.mustBe("tie_word_embeddings", true);
    const heads = keys.size("num_attention_heads");
    const hiddenSize = keys.size("hidden_size");
    const isNew = keys.flag("new_decoder_architecture", false);
    const kvHeads = isNew ? keys.size("num_kv_heads", heads) : keys.flag("multi_query", true) ? 1 : heads;
    const sizes = {
      num_key_value_heads: kvHeads,
      intermediate_size: keys.size("ffn_hidden_size", 4 * hiddenSize),
    };
    const c = readDecoderConfig(new ConfigKeys({ ...json, ...sizes }), { tieWordEmbeddings: true });
    const isParallel = isNew || keys.flag("parallel_attn", true);
    const hasTwo = isNew && keys.size("num_ln_in_parallel_attn", 2) === 2;
    return new FalconForCausalLM(
      {
        ...c,
        normEps: keys.number("layer_norm_epsilon", 1e-5),
        norms: hasTwo ? "two" : isParallel ? "one" : "in turn",
        bias: keys.flag("bias", false),
        alibi: keys.flag("alibi", false),
        activation: keys.text("activation", "gelu"),
      },
      options,
    );
  },
  embedding: "transformer.word_embeddings.weight",
};
