// BERT (Devlin et al., 2019), and RoBERTa and XLM-R (Liu et al., 2019; Conneau et al., 2020), which number positions from
// another row: layer norms after attention and MLP, learned positions, a type for each of two texts.
import type { UnaryModule } from "../../nn/index.js";
import { Embedding, LayerNorm, Linear, linearEach, linearResidual, Module, ModuleList } from "../../nn/index.js";
import { add, reshape, tanh } from "../../ops/index.js";
import type { Device } from "../../tensor/device.js";
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

interface BertConfig extends EncoderConfig {
  intermediateSize: number;
  layers: number;
  heads: number;
  types: number;
  activation: string;
  normEps: number;
  /** The row of the first position. */
  positionOffset: number;
  hasPooler: boolean;
}

const normOf = (c: BertConfig, options: ModelOptions): LayerNorm =>
  new LayerNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });

class BertEmbeddings extends Module {
  static override readonly names = { layerNorm: "LayerNorm" };
  wordEmbeddings: Embedding;
  positionEmbeddings: Embedding;
  tokenTypeEmbeddings: Embedding;
  layerNorm: LayerNorm;
  readonly #offset: number;

  constructor(c: BertConfig, options: ModelOptions) {
    super();
    this.wordEmbeddings = new Embedding(c.vocabSize, c.hiddenSize, options);
    this.positionEmbeddings = new Embedding(c.maxPositionEmbeddings + c.positionOffset, c.hiddenSize, options);
    this.tokenTypeEmbeddings = new Embedding(c.types, c.hiddenSize, options);
    this.layerNorm = normOf(c, options);
    this.#offset = c.positionOffset;
  }

  forward(pass: Pass, tokenTypeIds: Tensor | null): Tensor {
    const types = this.tokenTypeEmbeddings;
    const ofType = tokenTypeIds ? types.forward(tokenTypeIds) : types.weight.slice(0, 0, 1);
    const tokens = add(this.wordEmbeddings.forward(pass.ids), ofType);
    return this.layerNorm.forward(add(tokens, learnedPositions(this.positionEmbeddings, pass, this.#offset)));
  }
}

class BertSelfAttention extends Module {
  query: UnaryModule;
  key: UnaryModule;
  value: UnaryModule;
  readonly #index: number;
  readonly #headDim: number;

  constructor({ hiddenSize, heads }: BertConfig, index: number, options: ModelOptions) {
    super();
    const projection = (): Linear => new Linear(hiddenSize, hiddenSize, options);
    this.query = projection();
    this.key = projection();
    this.value = projection();
    this.#index = index;
    this.#headDim = hiddenSize / heads;
  }

  forward(x: Tensor, pass: Pass): Tensor {
    const rows = x.shape.slice(0, -1);
    const [q, k, v] = linearEach([this.query, this.key, this.value], x).map((y) =>
      reshape(y, [...rows, -1, this.#headDim]),
    ) as [Tensor, Tensor, Tensor];
    return reshape(pass.attend(this.#index, q, k, v, null), [...rows, -1]);
  }
}

/** A projection, what it is added to, and the norm of the sum. */
class BertOutput extends Module {
  static override readonly names = { layerNorm: "LayerNorm" };
  dense: UnaryModule;
  layerNorm: LayerNorm;

  constructor(inputs: number, c: BertConfig, options: ModelOptions) {
    super();
    this.dense = new Linear(inputs, c.hiddenSize, options);
    this.layerNorm = normOf(c, options);
  }

  forward(x: Tensor, residual: Tensor): Tensor {
    return this.layerNorm.forward(linearResidual(this.dense, x, residual));
  }
}

class BertAttention extends Module {
  self: BertSelfAttention;
  output: BertOutput;

  constructor(c: BertConfig, index: number, options: ModelOptions) {
    super();
    this.self = new BertSelfAttention(c, index, options);
    this.output = new BertOutput(c.hiddenSize, c, options);
  }

  forward(x: Tensor, pass: Pass): Tensor {
    return this.output.forward(this.self.forward(x, pass), x);
  }
}

class Dense extends Module {
  dense: UnaryModule;

  constructor(inputs: number, outputs: number, options: ModelOptions) {
    super();
    this.dense = new Linear(inputs, outputs, options);
  }

  forward(x: Tensor): Tensor {
    return this.dense.forward(x);
  }
}

class BertLayer extends Module {
  attention: BertAttention;
  intermediate: Dense;
  output: BertOutput;
  readonly #activation: (x: Tensor) => Tensor;

  constructor(c: BertConfig, index: number, options: ModelOptions) {
    super();
    this.attention = new BertAttention(c, index, options);
    this.intermediate = new Dense(c.hiddenSize, c.intermediateSize, options);
    this.output = new BertOutput(c.intermediateSize, c, options);
    this.#activation = activation(c.activation);
  }

  forward(x: Tensor, pass: Pass): Tensor {
    const h = this.attention.forward(x, pass);
    return this.output.forward(this.#activation(this.intermediate.forward(h)), h);
  }
}

class BertLayers extends Module {
  layer: ModuleList<BertLayer>;

  constructor(c: BertConfig, options: ModelOptions) {
    super();
    this.layer = new ModuleList(Array.from({ length: c.layers }, (_, i) => new BertLayer(c, i, options)));
  }

  forward(x: Tensor, pass: Pass): Tensor {
    return throughLayers(x, this.layer, pass, (layer, h) => layer.forward(h, pass));
  }
}

/** BERT without a head: ids [batch, t] int32 to hidden states. */
export class BertModel extends Encoder<BertConfig> {
  embeddings: BertEmbeddings;
  encoder: BertLayers;
  pooler: Dense | null;

  constructor(c: BertConfig, options: ModelOptions) {
    super(c);
    this.embeddings = new BertEmbeddings(c, options);
    this.encoder = new BertLayers(c, options);
    this.pooler = c.hasPooler ? new Dense(c.hiddenSize, c.hiddenSize, options) : null;
  }

  protected override inputEmbedding(): Embedding {
    return this.embeddings.wordEmbeddings;
  }

  protected override hidden(pass: Pass, tokenTypeIds: Tensor | null): Tensor {
    return this.encoder.forward(this.embeddings.forward(pass, tokenTypeIds), pass);
  }

  /** What BERT's heads read: tanh of a projection of the first tokens' hidden states [texts, hidden]. */
  pooled(first: Tensor): Tensor {
    return this.pooler ? tanh(this.pooler.forward(first)) : first;
  }
}

/** A head over the first token of a text; checkpoints name the body after its family. */
abstract class FirstTokenClassifier extends SequenceClassifier<BertConfig & Labels> {
  protected override readonly reads = "first";
  body: BertModel;

  constructor(c: BertConfig & Labels, options: ModelOptions) {
    super(c);
    this.body = new BertModel(c, options);
  }

  override get device(): Device {
    return this.body.device;
  }

  protected override hidden(ids: Tensor, options: WholeTextOptions): Tensor {
    return this.body.forward(ids, options);
  }
}

/** BERT's labels: a projection of what its pooler gives. */
export class BertForSequenceClassification extends FirstTokenClassifier {
  static override readonly names = { body: "bert" };
  classifier: UnaryModule;

  constructor(c: BertConfig & Labels, options: ModelOptions) {
    super(c, options);
    this.classifier = new Linear(c.hiddenSize, c.labels.length, options);
  }

  protected override head(states: Tensor): Tensor {
    return this.classifier.forward(this.body.pooled(states));
  }
}

/** RoBERTa's head: two projections of the first token's hidden state. */
class RobertaHead extends Module {
  dense: UnaryModule;
  outProj: UnaryModule;

  constructor(c: BertConfig & Labels, options: ModelOptions) {
    super();
    this.dense = new Linear(c.hiddenSize, c.hiddenSize, options);
    this.outProj = new Linear(c.hiddenSize, c.labels.length, options);
  }

  forward(states: Tensor): Tensor {
    return this.outProj.forward(tanh(this.dense.forward(states)));
  }
}

/** RoBERTa's labels: two projections of the first token's hidden state. */
export class RobertaForSequenceClassification extends FirstTokenClassifier {
  static override readonly names = { body: "roberta" };
  // Its tokenizers give none, however many the table has.
  protected override readonly hasPairTypes = false;
  classifier: RobertaHead;

  constructor(c: BertConfig & Labels, options: ModelOptions) {
    super(c, options);
    this.classifier = new RobertaHead(c, options);
  }

  protected override head(states: Tensor): Tensor {
    return this.classifier.forward(states);
  }
}

function readConfig(keys: ConfigKeys, isRoberta: boolean, hasPooler: boolean): BertConfig {
  keys.mustBe("position_embedding_type", "absolute");
  keys.mustBe("is_decoder", false);
  const rows = keys.size("max_position_embeddings", 512);
  // RoBERTa's table begins with rows for the pad token and those before it.
  const positionOffset = isRoberta ? keys.number("pad_token_id", 1) + 1 : 0;
  return {
    vocabSize: keys.size("vocab_size", isRoberta ? 50_265 : 30_522),
    maxPositionEmbeddings: rows - positionOffset,
    hiddenSize: keys.size("hidden_size", 768),
    intermediateSize: keys.size("intermediate_size", 3072),
    layers: keys.size("num_hidden_layers", 12),
    heads: keys.size("num_attention_heads", 12),
    types: keys.size("type_vocab_size", 2),
    activation: keys.text("hidden_act", "gelu"),
    normEps: keys.number("layer_norm_eps", 1e-12),
    positionOffset,
    hasPooler,
  };
}

/** Names as older versions wrote them, in a checkpoint of the model with any head, as those of the model itself. */
const bodyNames =
  (body: string) =>
  (name: string): string | null => {
    if (name.startsWith("cls.") || name.startsWith("lm_head.") || name.endsWith("position_ids")) return null;
    return modernName(name.startsWith(body) ? name.slice(body.length) : name);
  };
const modernName = (name: string): string =>
  name.replace(/LayerNorm\.gamma$/, "LayerNorm.weight").replace(/LayerNorm\.beta$/, "LayerNorm.bias");

const bodyFamily = (isRoberta: boolean): Family<BertModel> => ({
  create: (json, options, source) =>
    new BertModel(readConfig(new ConfigKeys(json), isRoberta, source?.has("pooler.dense.weight") ?? true), options),
  rename: bodyNames(isRoberta ? "roberta." : "bert."),
  head: "pooler.dense",
});

export const bert = bodyFamily(false);
export const roberta = bodyFamily(true);

const headedName = (name: string): string | null => (name.endsWith("position_ids") ? null : modernName(name));

export const bertClassifier: Family<SequenceClassifier> = {
  create(json, options) {
    const keys = new ConfigKeys(json);
    return new BertForSequenceClassification({ ...readConfig(keys, false, true), ...readLabels(keys) }, options);
  },
  rename: headedName,
  head: "classifier",
};

export const robertaClassifier: Family<SequenceClassifier> = {
  create(json, options) {
    const keys = new ConfigKeys(json);
    return new RobertaForSequenceClassification({ ...readConfig(keys, true, false), ...readLabels(keys) }, options);
  },
  rename: headedName,
  head: "classifier.out_proj",
};
