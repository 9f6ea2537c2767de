// GPT-2 (Radford et al., 2019): learned positions, layer norms before attention and MLP, weights that files hold
// as [in, out].
import type { UnaryModule } from "../../nn/index.js";
import { Embedding, LayerNorm, Linear, Module, ModuleList } from "../../nn/index.js";
import { add, reshape, slice } from "../../ops/index.js";
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

interface Gpt2Config {
  vocabSize: number;
  maxPositionEmbeddings: number;
  hiddenSize: number;
  intermediateSize: number;
  layers: number;
  heads: number;
  normEps: number;
  activation: string;
  /** Factor of the scores of layer i. */
  scale(layer: number): number;
}

class Gpt2Attention extends Module {
  cAttn: UnaryModule;
  cProj: UnaryModule;
  readonly #c: Gpt2Config;
  readonly #index: number;

  constructor(c: Gpt2Config, index: number, options: ModelOptions) {
    super();
    this.cAttn = new Linear(c.hiddenSize, 3 * c.hiddenSize, options);
    this.cProj = new Linear(c.hiddenSize, c.hiddenSize, options);
    this.#c = c;
    this.#index = index;
  }

  forward(x: Tensor, pass: Pass): Tensor {
    const { heads, hiddenSize } = this.#c;
    const rows = x.shape.slice(0, -1);
    const all = reshape(this.cAttn.forward(x), [...rows, 3 * heads, hiddenSize / heads]);
    const part = (i: number): Tensor => slice(all, rows.length, i * heads, (i + 1) * heads);
    const scale = this.#c.scale(this.#index);
    const mixed = pass.attend(this.#index, part(0), part(1), part(2), null, { scale });
    return this.cProj.forward(reshape(mixed, [...rows, -1]));
  }
}

class Gpt2Mlp extends Module {
  cFc: UnaryModule;
  cProj: UnaryModule;
  readonly #activation: (x: Tensor) => Tensor;

  constructor(c: Gpt2Config, options: ModelOptions) {
    super();
    this.cFc = new Linear(c.hiddenSize, c.intermediateSize, options);
    this.cProj = new Linear(c.intermediateSize, c.hiddenSize, options);
    this.#activation = activation(c.activation);
  }

  forward(x: Tensor): Tensor {
    return this.cProj.forward(this.#activation(this.cFc.forward(x)));
  }
}

/** `h = x + attention(norm(x))`, then `h + mlp(norm(h))`. */
class Gpt2Layer extends Module {
  static override readonly names = { ln1: "ln_1", ln2: "ln_2" };
  ln1: LayerNorm;
  attn: Gpt2Attention;
  ln2: LayerNorm;
  mlp: Gpt2Mlp;

  constructor(c: Gpt2Config, index: number, options: ModelOptions) {
    super();
    this.ln1 = new LayerNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
    this.attn = new Gpt2Attention(c, index, options);
    this.ln2 = new LayerNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
    this.mlp = new Gpt2Mlp(c, options);
  }

  forward(x: Tensor, pass: Pass): Tensor {
    const h = add(x, this.attn.forward(this.ln1.forward(x), pass));
    return add(h, this.mlp.forward(this.ln2.forward(h)));
  }
}

class Gpt2Model extends Module {
  wte: Embedding;
  wpe: Embedding;
  h: ModuleList<Gpt2Layer>;
  lnF: LayerNorm;

  constructor(c: Gpt2Config, options: ModelOptions) {
    super();
    this.wte = new Embedding(c.vocabSize, c.hiddenSize, options);
    this.wpe = new Embedding(c.maxPositionEmbeddings, c.hiddenSize, options);
    this.h = new ModuleList(Array.from({ length: c.layers }, (_, i) => new Gpt2Layer(c, i, options)));
    this.lnF = new LayerNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
  }

  forward(pass: Pass): Tensor {
    const tokens = add(this.wte.forward(pass.ids), learnedPositions(this.wpe, pass));
    return this.lnF.forward(throughLayers(tokens, this.h, pass, (layer, x) => layer.forward(x, pass)));
  }
}

/** GPT-2 with its head, which is the embedding's weight: ids [batch, t] int32 to logits. */
export class Gpt2LMHeadModel extends CausalLM<Gpt2Config> {
  transformer: Gpt2Model;

  constructor(c: Gpt2Config, options: ModelOptions) {
    super(c);
    this.transformer = new Gpt2Model(c, options);
  }

  protected override inputEmbedding(): Embedding {
    return this.transformer.wte;
  }

  override kvLayout(): LayerLayout[] {
    const { layers, heads, hiddenSize } = this.config;
    return Array.from({ length: layers }, () => ({ kvHeads: heads, headDim: hiddenSize / heads }));
  }

  protected override hidden(pass: Pass): Tensor {
    return this.transformer.forward(pass);
  }

  protected override outputProjection(): OutputProjection {
    return this.transformer.wte.weight;
  }
}

export const gpt2: Family<Gpt2LMHeadModel> = {
  create(json: Readonly<Record<string, unknown>>, options) {
    const keys = new ConfigKeys(json);
    keys.mustBe("tie_word_embeddings", true);
    keys.mustBe("add_cross_attention", false);
    const [hiddenSize, heads] = [keys.size("n_embd", 768), keys.size("n_head", 12)];
    const isScaled = keys.flag("scale_attn_weights", true);
    const byLayer = keys.flag("scale_attn_by_inverse_layer_idx", false);
    return new Gpt2LMHeadModel(
      {
        vocabSize: keys.size("vocab_size", 50_257),
        maxPositionEmbeddings: keys.size("n_positions", 1024),
        hiddenSize,
        intermediateSize: keys.size("n_inner", 4 * hiddenSize),
        layers: keys.size("n_layer", 12),
        heads,
        normEps: keys.number("layer_norm_epsilon", 1e-5),
        activation: keys.text("activation_function", "gelu_new"),
        scale: (layer) => (isScaled ? (hiddenSize / heads) ** -0.5 : 1) / (byLayer ? layer + 1 : 1),
      },
      options,
    );
  },
  embedding: "transformer.wte.weight",
  // What transformers calls a Conv1D.
  isTransposed: (name) => /\.(c_attn|c_proj|c_fc)\.weight$/.test(name),
  // The first checkpoints are those of the body alone.
  rename: (name) => (/^(wte|wpe|h|ln_f)\./.test(name) ? `transformer.${name}` : name),
};
