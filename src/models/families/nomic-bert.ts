// Nomic's BERT (Nussbaum et al., 2024): rotary positions instead of learned ones, a gated MLP, no biases but those of norms.
import type { UnaryModule } from "../../nn/index.js";
import { Embedding, LayerNorm, Linear, linearResidual, Module, ModuleList } from "../../nn/index.js";
import { add, reshape, slice } from "../../ops/index.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { EncoderConfig } from "../encoder.js";
import { Encoder } from "../encoder.js";
import type { Family } from "../load.js";
import { ConfigKeys } from "../parts/config-keys.js";
import { GatedMlp } from "../parts/gated-mlp.js";
import type { ModelOptions } from "../parts/model-options.js";
import { place } from "../parts/model-options.js";
import { RotaryCache } from "../parts/rotary-cache.js";
import { throughLayers } from "../parts/through-layers.js";
import type { Pass, Rotary } from "../pass.js";
import type { RopeParameters } from "../rope-scaling.js";
import { readRope } from "../rope-scaling.js";

interface NomicConfig extends EncoderConfig {
  intermediateSize: number;
  layers: number;
  heads: number;
  types: number;
  normEps: number;
  rope: RopeParameters;
}

const normOf = (c: NomicConfig, options: ModelOptions): LayerNorm =>
  new LayerNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });

class NomicEmbeddings extends Module {
  wordEmbeddings: Embedding;
  tokenTypeEmbeddings: Embedding;

  constructor(c: NomicConfig, options: ModelOptions) {
    super();
    this.wordEmbeddings = new Embedding(c.vocabSize, c.hiddenSize, options);
    this.tokenTypeEmbeddings = new Embedding(c.types, c.hiddenSize, options);
  }

  forward(ids: Tensor, tokenTypeIds: Tensor | null): Tensor {
    const types = this.tokenTypeEmbeddings;
    const ofType = tokenTypeIds ? types.forward(tokenTypeIds) : types.weight.slice(0, 0, 1);
    return add(this.wordEmbeddings.forward(ids), ofType);
  }
}

/** Queries, keys and values come from one matrix, in this order. */
class NomicAttention extends Module {
  static override readonly names = { qkv: "Wqkv" };
  qkv: UnaryModule;
  outProj: UnaryModule;
  readonly #heads: number;
  readonly #layer: number;

  constructor({ hiddenSize, heads }: NomicConfig, layer: number, options: ModelOptions) {
    super();
    this.qkv = new Linear(hiddenSize, 3 * hiddenSize, { bias: false, ...options });
    this.outProj = new Linear(hiddenSize, hiddenSize, { bias: false, ...options });
    this.#heads = heads;
    this.#layer = layer;
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary, residual: Tensor): Tensor {
    const rows = x.shape.slice(0, -1);
    const heads = this.#heads;
    const all = reshape(this.qkv.forward(x), [...rows, 3 * heads, -1]);
    const part = (i: number): Tensor => slice(all, rows.length, i * heads, (i + 1) * heads);
    const mixed = pass.attend(this.#layer, part(0), part(1), part(2), rotary);
    return linearResidual(this.outProj, reshape(mixed, [...rows, -1]), residual);
  }
}

class NomicMlp extends GatedMlp {
  static override readonly names = { gateProj: "fc12", upProj: "fc11", downProj: "fc2" };
}

/** `h = norm(x + attention(x))`, then `norm(h + mlp(h))`. */
class NomicLayer extends Module {
  attn: NomicAttention;
  norm1: LayerNorm;
  mlp: NomicMlp;
  norm2: LayerNorm;

  constructor(c: NomicConfig, layer: number, options: ModelOptions) {
    super();
    this.attn = new NomicAttention(c, layer, options);
    this.norm1 = normOf(c, options);
    this.mlp = new NomicMlp(c, options);
    this.norm2 = normOf(c, options);
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary): Tensor {
    const h = this.norm1.forward(this.attn.forward(x, pass, rotary, x));
    return this.norm2.forward(this.mlp.forward(h, h));
  }
}

class NomicLayers extends Module {
  layers: ModuleList<NomicLayer>;

  constructor(c: NomicConfig, options: ModelOptions) {
    super();
    this.layers = new ModuleList(Array.from({ length: c.layers }, (_, i) => new NomicLayer(c, i, options)));
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary): Tensor {
    return throughLayers(x, this.layers, pass, (layer, h) => layer.forward(h, pass, rotary));
  }
}

/** ids [batch, t] int32 to hidden states. */
export class NomicBertModel extends Encoder<NomicConfig> {
  embeddings: NomicEmbeddings;
  embLn: LayerNorm;
  encoder: NomicLayers;
  readonly #rotary: RotaryCache;

  constructor(c: NomicConfig, options: ModelOptions) {
    super(c);
    this.embeddings = new NomicEmbeddings(c, options);
    this.embLn = normOf(c, options);
    this.encoder = new NomicLayers(c, options);
    this.#rotary = new RotaryCache(c.hiddenSize / c.heads, c.rope, c.maxPositionEmbeddings);
  }

  protected override inputEmbedding(): Embedding {
    return this.embeddings.wordEmbeddings;
  }

  protected override hidden(pass: Pass, tokenTypeIds: Tensor | null): Tensor {
    const tokens = this.embLn.forward(this.embeddings.forward(pass.ids, tokenTypeIds));
    return this.encoder.forward(tokens, pass, this.#rotary.for(pass));
  }

  override dispose(): void {
    this.#rotary.dispose();
    super.dispose();
  }
}

/** Keys of the files that came with the model's own code, as transformers calls them. */
const newerKeys: Readonly<Record<string, string>> = {
  n_embd: "hidden_size",
  n_head: "num_attention_heads",
  n_inner: "intermediate_size",
  n_layer: "num_hidden_layers",
  n_positions: "max_position_embeddings",
  layer_norm_epsilon: "layer_norm_eps",
  rotary_emb_base: "rope_theta",
};

function readConfig(json: Readonly<Record<string, unknown>>): NomicConfig {
  const renamed = Object.entries(json).map(([key, value]) => [newerKeys[key] ?? key, value] as const);
  const keys = new ConfigKeys({ rope_theta: 1000, ...Object.fromEntries(renamed) });
  for (const key of ["prenorm", "use_rms_norm", "causal", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"]) {
    keys.mustBe(key, false);
  }
  keys.mustBe("rotary_emb_fraction", 1);
  keys.mustBe("rotary_emb_interleaved", false);
  keys.mustBe("rotary_scaling_factor", null);
  keys.mustBe("activation_function", "swiglu");
  keys.mustBe("hidden_act", "silu");
  const positions = keys.size("max_position_embeddings", 2048);
  return {
    vocabSize: keys.size("vocab_size", 30_528),
    maxPositionEmbeddings: positions,
    hiddenSize: keys.size("hidden_size", 768),
    intermediateSize: keys.size("intermediate_size", 3072),
    layers: keys.size("num_hidden_layers", 12),
    heads: keys.size("num_attention_heads", 12),
    types: keys.size("type_vocab_size", 2),
    normEps: keys.number("layer_norm_eps", 1e-12),
    rope: readRope(keys.json, positions),
  };
}

export const nomicBert: Family<NomicBertModel> = {
  create: (json, options) => new NomicBertModel(readConfig(json), options),
  rename(name) {
    const own = name.replace(/^(nomic_bert|bert)\./, "");
    return /^(cls|lm_head|pooler)\.|position_ids$/.test(own) ? null : own;
  },
  // No layer is an output.
  head: "",
};
