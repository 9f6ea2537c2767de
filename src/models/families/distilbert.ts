// DistilBERT (Sanh et al., 2019): BERT's layers under other names, without types of tokens and without a pooler.
import type { UnaryModule } from "../../nn/index.js";
import { Embedding, LayerNorm, Linear, linearEach, linearResidual, Module, ModuleList } from "../../nn/index.js";
import { add, relu, reshape } from "../../ops/index.js";
import type { Device } from "../../tensor/device.js";
import { BnbError } from "../../tensor/errors.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { EncoderConfig, WholeTextOptions } from "../encoder.js";
import { Encoder } from "../encoder.js";
import type { Family } from "../load.js";
import { activation } from "../parts/activation.js";
import { ConfigKeys } from "../parts/config-keys.js";
import { learnedPositions } from "../parts/learned-positions.js";
import type { ModelOptions } from "../parts/model-options.js";
import { place } from "../parts/model-options.js";
import { throughLayers } from "../parts/through-layers.js";
import type { Pass } from "../pass.js";
import type { Labels } from "../sequence-classifier.js";
import { readLabels, SequenceClassifier } from "../sequence-classifier.js";

interface DistilBertConfig extends EncoderConfig {
  intermediateSize: number;
  layers: number;
  heads: number;
  activation: string;
}

const normOf = (c: DistilBertConfig, options: ModelOptions): LayerNorm =>
  new LayerNorm(c.hiddenSize, { eps: 1e-12, ...place(options) });

class DistilBertEmbeddings extends Module {
  static override readonly names = { layerNorm: "LayerNorm" };
  wordEmbeddings: Embedding;
  positionEmbeddings: Embedding;
  layerNorm: LayerNorm;

  constructor(c: DistilBertConfig, options: ModelOptions) {
    super();
    this.wordEmbeddings = new Embedding(c.vocabSize, c.hiddenSize, options);
    this.positionEmbeddings = new Embedding(c.maxPositionEmbeddings, c.hiddenSize, options);
    this.layerNorm = normOf(c, options);
  }

  forward(pass: Pass): Tensor {
    const tokens = this.wordEmbeddings.forward(pass.ids);
    return this.layerNorm.forward(add(tokens, learnedPositions(this.positionEmbeddings, pass)));
  }
}

class DistilBertAttention extends Module {
  qLin: UnaryModule;
  kLin: UnaryModule;
  vLin: UnaryModule;
  outLin: UnaryModule;
  readonly #index: number;
  readonly #headDim: number;

  constructor({ hiddenSize, heads }: DistilBertConfig, index: number, options: ModelOptions) {
    super();
    const projection = (): Linear => new Linear(hiddenSize, hiddenSize, options);
    this.qLin = projection();
    this.kLin = projection();
    this.vLin = projection();
    this.outLin = projection();
    this.#index = index;
    this.#headDim = hiddenSize / heads;
  }

  /** What it gives is added to x. */
  forward(x: Tensor, pass: Pass): Tensor {
    const rows = x.shape.slice(0, -1);
    const [q, k, v] = linearEach([this.qLin, this.kLin, this.vLin], x).map((y) =>
      reshape(y, [...rows, -1, this.#headDim]),
    ) as [Tensor, Tensor, Tensor];
    return linearResidual(this.outLin, reshape(pass.attend(this.#index, q, k, v, null), [...rows, -1]), x);
  }
}

class DistilBertFeedForward extends Module {
  lin1: UnaryModule;
  lin2: UnaryModule;
  readonly #activation: (x: Tensor) => Tensor;

  constructor(c: DistilBertConfig, options: ModelOptions) {
    super();
    this.lin1 = new Linear(c.hiddenSize, c.intermediateSize, options);
    this.lin2 = new Linear(c.intermediateSize, c.hiddenSize, options);
    this.#activation = activation(c.activation);
  }

  /** What it gives is added to x. */
  forward(x: Tensor): Tensor {
    return linearResidual(this.lin2, this.#activation(this.lin1.forward(x)), x);
  }
}

class DistilBertLayer extends Module {
  attention: DistilBertAttention;
  saLayerNorm: LayerNorm;
  ffn: DistilBertFeedForward;
  outputLayerNorm: LayerNorm;

  constructor(c: DistilBertConfig, index: number, options: ModelOptions) {
    super();
    this.attention = new DistilBertAttention(c, index, options);
    this.saLayerNorm = normOf(c, options);
    this.ffn = new DistilBertFeedForward(c, options);
    this.outputLayerNorm = normOf(c, options);
  }

  forward(x: Tensor, pass: Pass): Tensor {
    const h = this.saLayerNorm.forward(this.attention.forward(x, pass));
    return this.outputLayerNorm.forward(this.ffn.forward(h));
  }
}

class DistilBertLayers extends Module {
  layer: ModuleList<DistilBertLayer>;

  constructor(c: DistilBertConfig, options: ModelOptions) {
    super();
    this.layer = new ModuleList(Array.from({ length: c.layers }, (_, i) => new DistilBertLayer(c, i, options)));
  }

  forward(x: Tensor, pass: Pass): Tensor {
    return throughLayers(x, this.layer, pass, (layer, h) => layer.forward(h, pass));
  }
}

/** ids [batch, t] int32 to hidden states. */
export class DistilBertModel extends Encoder<DistilBertConfig> {
  embeddings: DistilBertEmbeddings;
  transformer: DistilBertLayers;

  constructor(c: DistilBertConfig, options: ModelOptions) {
    super(c);
    this.embeddings = new DistilBertEmbeddings(c, options);
    this.transformer = new DistilBertLayers(c, options);
  }

  protected override inputEmbedding(): Embedding {
    return this.embeddings.wordEmbeddings;
  }

  protected override hidden(pass: Pass): Tensor {
    return this.transformer.forward(this.embeddings.forward(pass), pass);
  }
}

/** Labels by two projections of the first token's hidden state. */
export class DistilBertForSequenceClassification extends SequenceClassifier<DistilBertConfig & Labels> {
  protected override readonly reads = "first";
  distilbert: DistilBertModel;
  preClassifier: UnaryModule;
  classifier: UnaryModule;

  constructor(c: DistilBertConfig & Labels, options: ModelOptions) {
    super(c);
    this.distilbert = new DistilBertModel(c, options);
    this.preClassifier = new Linear(c.hiddenSize, c.hiddenSize, options);
    this.classifier = new Linear(c.hiddenSize, c.labels.length, options);
  }

  override get device(): Device {
    return this.distilbert.device;
  }

  protected override hidden(ids: Tensor, { starts }: WholeTextOptions): Tensor {
    return this.distilbert.forward(ids, starts ? { starts } : {});
  }

  protected override head(states: Tensor): Tensor {
    return this.classifier.forward(relu(this.preClassifier.forward(states)));
  }
}

function readConfig(keys: ConfigKeys): DistilBertConfig {
  const [hiddenSize, heads] = [keys.size("dim", 768), keys.size("n_heads", 12)];
  if (hiddenSize % heads !== 0) {
    const rule = `config.json: n_heads must divide dim (${hiddenSize})`;
    throw new BnbError("ERR_BNB_FORMAT", `${rule}, got ${heads}`);
  }
  return {
    vocabSize: keys.size("vocab_size", 30_522),
    maxPositionEmbeddings: keys.size("max_position_embeddings", 512),
    hiddenSize,
    intermediateSize: keys.size("hidden_dim", 3072),
    layers: keys.size("n_layers", 6),
    heads,
    activation: keys.text("activation", "gelu"),
  };
}

export const distilBert: Family<DistilBertModel> = {
  create: (json, options) => new DistilBertModel(readConfig(new ConfigKeys(json)), options),
  // Also from a checkpoint with any head.
  rename(name) {
    const own = name.replace(/^distilbert\./, "");
    return /^(vocab_|pre_classifier\.|classifier\.|qa_outputs\.)|position_ids$/.test(own) ? null : own;
  },
  // No layer is an output.
  head: "",
};

export const distilBertClassifier: Family<DistilBertForSequenceClassification> = {
  create(json, options) {
    const keys = new ConfigKeys(json);
    return new DistilBertForSequenceClassification({ ...readConfig(keys), ...readLabels(keys) }, options);
  },
  rename: (name) => (name.endsWith("position_ids") ? null : name),
  head: "classifier",
};
