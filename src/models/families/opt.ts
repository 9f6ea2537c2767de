// OPT (Zhang et al., 2022): learned positions whose table begins two rows early, layer norms before attention and MLP or, in
// the 350M model, after them, and embeddings that may be narrower than the layers.
import type { UnaryModule } from "../../nn/index.js";
import { Embedding, LayerNorm, Linear, linearEach, Module, ModuleList } from "../../nn/index.js";
import { add, reshape } from "../../ops/index.js";
import type { Tensor } from "../../tensor/tensor.js";
import { CausalLM } from "../causal-lm.js";
import type { Family } from "../load.js";
import { activation } from "../parts/activation.js";
import { ConfigKeys } from "../parts/config-keys.js";
import { learnedPositions } from "../parts/learned-positions.js";
import type { ModelOptions } from "../parts/model-options.js";
import { place } from "../parts/model-options.js";
import { throughLayers } from "../parts/through-layers.js";
import type { Pass } from "../pass.js";
import type { OutputProjection } from "../quantized-head.js";
import type { LayerLayout } from "../step-plan.js";

interface OptConfig {
  vocabSize: number;
  maxPositionEmbeddings: number;
  hiddenSize: number;
  /** Of the embeddings. */
  embeddingSize: number;
  intermediateSize: number;
  layers: number;
  heads: number;
  activation: string;
  bias: boolean;
  isNormFirst: boolean;
  hasFinalNorm: boolean;
  hasAffineNorms: boolean;
}

const POSITION_OFFSET = 2;

const normOf = (c: OptConfig, options: ModelOptions): LayerNorm =>
  new LayerNorm(c.hiddenSize, { elementwiseAffine: c.hasAffineNorms, ...place(options) });

class OptAttention extends Module {
  kProj: UnaryModule;
  vProj: UnaryModule;
  qProj: UnaryModule;
  outProj: UnaryModule;
  readonly #index: number;
  readonly #headDim: number;

  constructor({ hiddenSize, heads, bias }: OptConfig, index: number, options: ModelOptions) {
    super();
    const projection = (): Linear => new Linear(hiddenSize, hiddenSize, { bias, ...options });
    this.kProj = projection();
    this.vProj = projection();
    this.qProj = projection();
    this.outProj = projection();
    this.#index = index;
    this.#headDim = hiddenSize / heads;
  }

  forward(x: Tensor, pass: Pass): Tensor {
    const rows = x.shape.slice(0, -1);
    const [q, k, v] = linearEach([this.qProj, this.kProj, this.vProj], x).map((y) =>
      reshape(y, [...rows, -1, this.#headDim]),
    ) as [Tensor, Tensor, Tensor];
    return this.outProj.forward(reshape(pass.attend(this.#index, q, k, v, null), [...rows, -1]));
  }
}

class OptLayer extends Module {
  selfAttn: OptAttention;
  selfAttnLayerNorm: LayerNorm;
  fc1: UnaryModule;
  fc2: UnaryModule;
  finalLayerNorm: LayerNorm;
  readonly #isNormFirst: boolean;
  readonly #activation: (x: Tensor) => Tensor;

  constructor(c: OptConfig, index: number, options: ModelOptions) {
    super();
    this.selfAttn = new OptAttention(c, index, options);
    this.selfAttnLayerNorm = normOf(c, options);
    this.fc1 = new Linear(c.hiddenSize, c.intermediateSize, { bias: c.bias, ...options });
    this.fc2 = new Linear(c.intermediateSize, c.hiddenSize, { bias: c.bias, ...options });
    this.finalLayerNorm = normOf(c, options);
    this.#isNormFirst = c.isNormFirst;
    this.#activation = activation(c.activation);
  }

  forward(x: Tensor, pass: Pass): Tensor {
    const h = this.#around(x, this.selfAttnLayerNorm, (y) => this.selfAttn.forward(y, pass));
    return this.#around(h, this.finalLayerNorm, (y) => this.fc2.forward(this.#activation(this.fc1.forward(y))));
  }

  #around(x: Tensor, norm: LayerNorm, f: (x: Tensor) => Tensor): Tensor {
    return this.#isNormFirst ? add(x, f(norm.forward(x))) : norm.forward(add(x, f(x)));
  }
}

class OptDecoder extends Module {
  embedTokens: Embedding;
  embedPositions: Embedding;
  projectOut: UnaryModule | null;
  projectIn: UnaryModule | null;
  finalLayerNorm: LayerNorm | null;
  layers: ModuleList<OptLayer>;

  constructor(c: OptConfig, options: ModelOptions) {
    super();
    const isNarrow = c.embeddingSize !== c.hiddenSize;
    const project = (from: number, to: number): Linear | null =>
      isNarrow ? new Linear(from, to, { bias: false, ...options }) : null;
    this.embedTokens = new Embedding(c.vocabSize, c.embeddingSize, options);
    this.embedPositions = new Embedding(c.maxPositionEmbeddings + POSITION_OFFSET, c.hiddenSize, options);
    this.projectOut = project(c.hiddenSize, c.embeddingSize);
    this.projectIn = project(c.embeddingSize, c.hiddenSize);
    this.finalLayerNorm = c.hasFinalNorm ? normOf(c, options) : null;
    this.layers = new ModuleList(Array.from({ length: c.layers }, (_, i) => new OptLayer(c, i, options)));
  }

  forward(pass: Pass): Tensor {
    const tokens = this.embedTokens.forward(pass.ids);
    const wide = this.projectIn?.forward(tokens) ?? tokens;
    const placed = add(wide, learnedPositions(this.embedPositions, pass, POSITION_OFFSET));
    const h = throughLayers(placed, this.layers, pass, (layer, x) => layer.forward(x, pass));
    const normed = this.finalLayerNorm?.forward(h) ?? h;
    return this.projectOut?.forward(normed) ?? normed;
  }
}

class OptModel extends Module {
  decoder: OptDecoder;

  constructor(c: OptConfig, options: ModelOptions) {
    super();
    this.decoder = new OptDecoder(c, options);
  }

  forward(pass: Pass): Tensor {
    return this.decoder.forward(pass);
  }
}

/** OPT with its head, which is the embedding's weight: ids [batch, t] int32 to logits. */
export class OptForCausalLM extends CausalLM<OptConfig> {
  model: OptModel;

  constructor(c: OptConfig, options: ModelOptions) {
    super(c);
    this.model = new OptModel(c, options);
  }

  protected override inputEmbedding(): Embedding {
    return this.model.decoder.embedTokens;
  }

  override kvLayout(): LayerLayout[] {
    const { layers, heads, hiddenSize } = this.config;
    return Array.from({ length: layers }, () => ({ kvHeads: heads, headDim: hiddenSize / heads }));
  }

  protected override hidden(pass: Pass): Tensor {
    return this.model.forward(pass);
  }

  protected override outputProjection(): OutputProjection {
    return this.model.decoder.embedTokens.weight;
  }
}

export const opt: Family<OptForCausalLM> = {
  create(json: Readonly<Record<string, unknown>>, options) {
    const keys = new ConfigKeys(json);
    keys.mustBe("tie_word_embeddings", true);
    const hiddenSize = keys.size("hidden_size", 768);
    const isNormFirst = keys.flag("do_layer_norm_before", true);
    return new OptForCausalLM(
      {
        vocabSize: keys.size("vocab_size", 50_272),
        maxPositionEmbeddings: keys.size("max_position_embeddings", 2048),
        hiddenSize,
        embeddingSize: keys.size("word_embed_proj_dim", hiddenSize),
        intermediateSize: keys.size("ffn_dim", 3072),
        layers: keys.size("num_hidden_layers", 12),
        heads: keys.size("num_attention_heads", 12),
        activation: keys.text("activation_function", "relu"),
        bias: keys.flag("enable_bias", true),
        isNormFirst,
        hasFinalNorm: isNormFirst && !keys.flag("_remove_final_layer_norm", false),
        hasAffineNorms: keys.flag("layer_norm_elementwise_affine", true),
      },
      options,
    );
  },
  embedding: "model.decoder.embed_tokens.weight",
};
