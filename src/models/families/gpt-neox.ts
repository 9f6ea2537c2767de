// GPT-NeoX (Black et al., 2022; Pythia): attention and MLP side by side, layer norms, heads that turn in part.
import type { UnaryModule } from "../../nn/index.js";
import { Embedding, LayerNorm, Linear, Module, ModuleList } from "../../nn/index.js";
import { add } from "../../ops/index.js";
import type { Tensor } from "../../tensor/tensor.js";
import { CausalLM } from "../causal-lm.js";
import type { Family } from "../load.js";
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

interface NeoXConfig extends DecoderConfig {
  isParallel: boolean;
  attentionBias: boolean;
  activation: string;
  /** How many values of a head turn. */
  rotaryDim: number;
}

/** `x + attention(norm(x)) + mlp(norm2(x))`, or one after the other. */
class NeoXLayer extends Module {
  inputLayernorm: LayerNorm;
  postAttentionLayernorm: LayerNorm;
  attention: FusedAttention;
  mlp: FeedForward;
  readonly #isParallel: boolean;

  constructor(c: NeoXConfig, index: number, options: ModelOptions) {
    super();
    this.inputLayernorm = new LayerNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
    this.postAttentionLayernorm = new LayerNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
    this.attention = new FusedAttention(c, index, options, c.attentionBias);
    this.mlp = new FeedForward({ ...c, bias: true }, options);
    this.#isParallel = c.isParallel;
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary): Tensor {
    const h = add(x, this.attention.forward(this.inputLayernorm.forward(x), pass, rotary));
    return add(h, this.mlp.forward(this.postAttentionLayernorm.forward(this.#isParallel ? x : h)));
  }
}

class NeoXModel extends Module {
  embedIn: Embedding;
  layers: ModuleList<NeoXLayer>;
  finalLayerNorm: LayerNorm;
  readonly #rotary: RotaryCache;

  constructor(c: NeoXConfig, options: ModelOptions) {
    super();
    this.embedIn = new Embedding(c.vocabSize, c.hiddenSize, options);
    this.layers = new ModuleList(Array.from({ length: c.numHiddenLayers }, (_, i) => new NeoXLayer(c, i, options)));
    this.finalLayerNorm = new LayerNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
    this.#rotary = new RotaryCache(c.rotaryDim, c.rope, c.maxPositionEmbeddings);
  }

  forward(pass: Pass): Tensor {
    const rotary = this.#rotary.for(pass);
    const h = throughLayers(this.embedIn.forward(pass.ids), this.layers, pass, (layer, x) =>
      layer.forward(x, pass, rotary),
    );
    return this.finalLayerNorm.forward(h);
  }

  override dispose(): void {
    this.#rotary.dispose();
    super.dispose();
  }
}

/** GPT-NeoX with its head: ids [batch, t] int32 to logits. */
export class GptNeoXForCausalLM extends CausalLM<NeoXConfig> {
  gptNeox: NeoXModel;
  embedOut: UnaryModule;

  constructor(c: NeoXConfig, options: ModelOptions) {
    super(c);
    this.gptNeox = new NeoXModel(c, options);
    this.embedOut = new Linear(c.hiddenSize, c.vocabSize, { bias: false, ...options });
  }

  protected override inputEmbedding(): Embedding {
    return this.gptNeox.embedIn;
  }

  override kvLayout(): LayerLayout[] {
    const { numKeyValueHeads: kvHeads, headDim, windows } = this.config;
    return windows.map(() => ({ kvHeads, headDim }));
  }

  protected override hidden(pass: Pass): Tensor {
    return this.gptNeox.forward(pass);
  }

  protected override outputProjection(): OutputProjection {
    return this.embedOut;
  }
}

export const gptNeox: Family<GptNeoXForCausalLM> = {
  create(json: Readonly<Record<string, unknown>>, options) {
    const keys = new ConfigKeys(json);
    keys.mustBe("tie_word_embeddings", false);
    const base = json.rotary_emb_base === undefined ? {} : { rope_theta: json.rotary_emb_base };
    const c = readDecoderConfig(new ConfigKeys({ ...base, ...json }));
    const nested = (json.rope_parameters ?? {}) as Readonly<Record<string, unknown>>;
    const share = keys.number("rotary_pct", new ConfigKeys(nested).number("partial_rotary_factor", 0.25));
    const config = {
      ...c,
      normEps: keys.number("layer_norm_eps", 1e-5),
      isParallel: keys.flag("use_parallel_residual", true),
      attentionBias: keys.flag("attention_bias", true),
      activation: keys.text("hidden_act", "gelu"),
      rotaryDim: Math.floor(c.headDim * share),
    };
    return new GptNeoXForCausalLM(config, options);
  },
  head: "embed_out",
  embedding: "gpt_neox.embed_in.weight",
};
