// The sizes of a Llama model under Hugging Face's names, in camelCase; `fromJSON` reads its `config.json`.
import { aBoolean, aNumber, aNumberAbove, aNumberIn, aPlainObject, aString, checkArgument } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { DecoderConfig } from "./parts/config-keys.js";
import { reachOf } from "./parts/config-keys.js";
import type { RopeParameters } from "./rope-scaling.js";
import { plainRope, readRope } from "./rope-scaling.js";

/** What can be given; everything has Hugging Face's default but the sizes that make no sense to guess. */
export interface LlamaConfigOptions {
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  numHiddenLayers: number;
  numAttentionHeads: number;
  /** Heads of keys and values, each shared by a group of query heads. Default numAttentionHeads. */
  numKeyValueHeads?: number | undefined;
  /** Default hiddenSize / numAttentionHeads. */
  headDim?: number | undefined;
  /** Default 1e-6. */
  rmsNormEps?: number | undefined;
  /** Default 10000. */
  ropeTheta?: number | undefined;
  /** How positions beyond those of training are reached; its theta counts. Default: not at all. */
  rope?: RopeParameters | undefined;
  /** Default 2048. */
  maxPositionEmbeddings?: number | undefined;
  /** The head shares the weight of the embedding. Default false. */
  tieWordEmbeddings?: boolean | undefined;
  /** Standard deviation of new weights. Default 0.02. */
  initializerRange?: number | undefined;
  /** Default "silu". */
  hiddenAct?: string | undefined;
  /** Whether the projections of attention have biases. Default false. */
  attentionBias?: boolean | undefined;
  /** Whether the layers of the MLP have biases. Default false. */
  mlpBias?: boolean | undefined;
}

// The sizes are checked with their defaults in place, since some follow from others.
const configOptions = optionTable<LlamaConfigOptions>({
  vocabSize: aNumber,
  hiddenSize: aNumber,
  intermediateSize: aNumber,
  numHiddenLayers: aNumber,
  numAttentionHeads: aNumber,
  numKeyValueHeads: aNumber,
  headDim: aNumber,
  rmsNormEps: aNumberAbove(0),
  ropeTheta: aNumberAbove(0),
  rope: aPlainObject,
  maxPositionEmbeddings: aNumber,
  tieWordEmbeddings: aBoolean,
  initializerRange: aNumberIn(0),
  hiddenAct: aString,
  attentionBias: aBoolean,
  mlpBias: aBoolean,
});

/** A complete, checked configuration: throws `ERR_BNB_OPTION` on sizes that do not fit together. */
export class LlamaConfig implements DecoderConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numHiddenLayers: number;
  readonly numAttentionHeads: number;
  readonly numKeyValueHeads: number;
  readonly headDim: number;
  readonly rmsNormEps: number;
  readonly ropeTheta: number;
  readonly rope: RopeParameters;
  readonly maxPositionEmbeddings: number;
  readonly tieWordEmbeddings: boolean;
  readonly initializerRange: number;
  readonly hiddenAct: string;
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
  /** @internal */
  readonly normEps: number;
  /** @internal */
  readonly windows: readonly undefined[];

  constructor(options: LlamaConfigOptions) {
    checkOptions("llamaConfig", options ?? null, configOptions);
    this.vocabSize = positiveInteger(options, "vocabSize");
    this.hiddenSize = positiveInteger(options, "hiddenSize");
    this.intermediateSize = positiveInteger(options, "intermediateSize");
    this.numHiddenLayers = positiveInteger(options, "numHiddenLayers");
    if (this.numHiddenLayers > MAX_LAYERS) {
      const rule = `llamaConfig: numHiddenLayers must be at most ${MAX_LAYERS}`;
      throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${this.numHiddenLayers}`);
    }
    this.numAttentionHeads = positiveInteger(options, "numAttentionHeads");
    this.numKeyValueHeads = positiveInteger(options, "numKeyValueHeads", this.numAttentionHeads);
    this.headDim = positiveInteger(options, "headDim", this.hiddenSize / this.numAttentionHeads);
    this.rmsNormEps = options.rmsNormEps ?? 1e-6;
    this.maxPositionEmbeddings = positiveInteger(options, "maxPositionEmbeddings", 2048);
    this.rope = options.rope ?? plainRope(options.ropeTheta ?? 10000, this.maxPositionEmbeddings);
    this.ropeTheta = this.rope.theta;
    this.tieWordEmbeddings = options.tieWordEmbeddings ?? false;
    this.initializerRange = options.initializerRange ?? 0.02;
    this.hiddenAct = options.hiddenAct ?? "silu";
    this.attentionBias = options.attentionBias ?? false;
    this.mlpBias = options.mlpBias ?? false;
    this.normEps = this.rmsNormEps;
    this.windows = new Array<undefined>(this.numHiddenLayers).fill(undefined);
    if (this.numAttentionHeads % this.numKeyValueHeads !== 0) {
      const heads = `numAttentionHeads (${this.numAttentionHeads})`;
      throw new BnbError(
        "ERR_BNB_OPTION",
        `llamaConfig: numKeyValueHeads must divide ${heads}, got ${this.numKeyValueHeads}`,
      );
    }
    if (this.headDim % 2 !== 0) {
      throw new BnbError("ERR_BNB_OPTION", `llamaConfig: headDim must be even, got ${this.headDim}`);
    }
  }

  /**
   * The object of a `config.json`, which `fromJSON` reads. Throws ERR_BNB_UNSUPPORTED for scaled positions: they have more
   * than one description, so a model with them is saved beside the config.json that it came with.
   */
  toJSON(): Record<string, unknown> {
    if (this.rope.type !== "default") {
      const rule = "LlamaConfig.toJSON: positions must not be scaled";
      throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got ${this.rope.type}; load the model by fromPretrained`);
    }
    return {
      architectures: ["LlamaForCausalLM"],
      attention_bias: this.attentionBias,
      head_dim: this.headDim,
      hidden_act: this.hiddenAct,
      hidden_size: this.hiddenSize,
      initializer_range: this.initializerRange,
      intermediate_size: this.intermediateSize,
      max_position_embeddings: this.maxPositionEmbeddings,
      mlp_bias: this.mlpBias,
      model_type: "llama",
      num_attention_heads: this.numAttentionHeads,
      num_hidden_layers: this.numHiddenLayers,
      num_key_value_heads: this.numKeyValueHeads,
      rms_norm_eps: this.rmsNormEps,
      rope_theta: this.ropeTheta,
      tie_word_embeddings: this.tieWordEmbeddings,
      vocab_size: this.vocabSize,
    };
  }

  /** Reads the object of a Hugging Face `config.json` of model type "llama". */
  static fromJSON(json: Record<string, unknown>): LlamaConfig {
    checkArgument("config.json", "the document", json, aPlainObject);
    if ((json.model_type ?? "llama") !== "llama") {
      const rule = 'config.json: model_type must be "llama"';
      throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got ${JSON.stringify(json.model_type)}`);
    }
    const maxPositions = typeof json.max_position_embeddings === "number" ? json.max_position_embeddings : 2048;
    const rope = readRope(json, maxPositions);
    return new LlamaConfig({
      vocabSize: json.vocab_size as number,
      hiddenSize: json.hidden_size as number,
      intermediateSize: json.intermediate_size as number,
      numHiddenLayers: json.num_hidden_layers as number,
      numAttentionHeads: json.num_attention_heads as number,
      numKeyValueHeads: (json.num_key_value_heads ?? undefined) as number | undefined,
      headDim: (json.head_dim ?? undefined) as number | undefined,
      rmsNormEps: (json.rms_norm_eps ?? undefined) as number | undefined,
      rope,
      maxPositionEmbeddings: reachOf(rope, maxPositions),
      tieWordEmbeddings: (json.tie_word_embeddings ?? undefined) as boolean | undefined,
      initializerRange: (json.initializer_range ?? undefined) as number | undefined,
      hiddenAct: (json.hidden_act ?? undefined) as string | undefined,
      attentionBias: (json.attention_bias ?? undefined) as boolean | undefined,
      mlpBias: (json.mlp_bias ?? undefined) as boolean | undefined,
    });
  }
}

/** More is a mistake, which would only take memory. */
const MAX_LAYERS = 10_000;

function positiveInteger(options: LlamaConfigOptions, name: keyof LlamaConfigOptions, otherwise?: number): number {
  const value = options[name] ?? otherwise;
  if (typeof value === "number" && Number.isInteger(value) && value > 0) return value;
  throw new BnbError("ERR_BNB_OPTION", `llamaConfig: ${name} must be a positive integer, got ${value}`);
}
