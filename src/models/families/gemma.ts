// Gemma 1, 2 and 3 (Gemma Team, 2024 and 2025): norms that multiply by 1 + weight, a scaled embedding, GeGLU; from Gemma 2 on
// norms on both sides of attention and MLP, soft caps and windows; in Gemma 3 norms of queries and keys, and positions of
// their own for layers with a window.
import type { UnaryModule } from "../../nn/index.js";
import { Module, Parameter } from "../../nn/index.js";
import { add, cast, mul, rmsNorm, tanh } from "../../ops/index.js";
import { zeros } from "../../tensor/create.js";
import type { DType } from "../../tensor/dtype.js";
import { rounded } from "../../tensor/dtype.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Family } from "../load.js";
import type { DecoderConfig } from "../parts/config-keys.js";
import { ConfigKeys, readDecoderConfig } from "../parts/config-keys.js";
import { DecoderForCausalLM, DecoderModel } from "../parts/decoder.js";
import { GatedMlp } from "../parts/gated-mlp.js";
import type { ModelOptions } from "../parts/model-options.js";
import { place } from "../parts/model-options.js";
import { RotaryCache } from "../parts/rotary-cache.js";
import { SelfAttention } from "../parts/self-attention.js";
import type { Pass, Rotary, Scores } from "../pass.js";
import { readRope } from "../rope-scaling.js";

/** `x / sqrt(mean(x^2) + eps) * (1 + weight)`, in float32 whatever the dtype. */
export class GemmaRMSNorm extends Module {
  weight: Parameter; // [dim]
  readonly #eps: number;

  constructor(dim: number, eps: number, options: ModelOptions) {
    super();
    this.weight = new Parameter(zeros([dim], place(options)));
    this.#eps = eps;
  }

  forward(x: Tensor): Tensor {
    const scale = add(cast(this.weight, "float32"), 1);
    return cast(rmsNorm(cast(x, "float32"), scale, this.#eps), x.dtype);
  }
}

interface GemmaLayerOptions {
  activation: string;
  bias: boolean;
  scores: Scores;
  hasQkNorm?: boolean;
}

/** Gemma 1: `h = x + attention(norm(x))`, then `h + mlp(norm(h))`. */
class GemmaLayer extends Module {
  selfAttn: SelfAttention;
  mlp: GatedMlp;
  inputLayernorm: GemmaRMSNorm;
  postAttentionLayernorm: GemmaRMSNorm;
  protected readonly scores: Scores;

  constructor(c: DecoderConfig, index: number, options: ModelOptions, own: GemmaLayerOptions) {
    super();
    const norm = (size: number): UnaryModule => new GemmaRMSNorm(size, c.normEps, options);
    const { bias, activation, hasQkNorm = false } = own;
    this.selfAttn = new SelfAttention(c, index, options, { bias, ...(hasQkNorm && { norm }) });
    this.mlp = new GatedMlp({ ...c, activation }, options);
    this.inputLayernorm = new GemmaRMSNorm(c.hiddenSize, c.normEps, options);
    this.postAttentionLayernorm = new GemmaRMSNorm(c.hiddenSize, c.normEps, options);
    const window = c.windows[index];
    this.scores = { ...own.scores, ...(window !== undefined && { window }) };
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary): Tensor {
    const h = this.selfAttn.forward(this.inputLayernorm.forward(x), pass, rotary, this.scores, x);
    return this.mlp.forward(this.postAttentionLayernorm.forward(h), h);
  }
}

/** Gemma 2 and 3: `h = x + norm(attention(norm(x)))`, then `h + norm(mlp(norm(h)))`. */
class Gemma2Layer extends GemmaLayer {
  preFeedforwardLayernorm: GemmaRMSNorm;
  postFeedforwardLayernorm: GemmaRMSNorm;

  constructor(c: DecoderConfig, index: number, options: ModelOptions, own: GemmaLayerOptions) {
    super(c, index, options, own);
    this.preFeedforwardLayernorm = new GemmaRMSNorm(c.hiddenSize, c.normEps, options);
    this.postFeedforwardLayernorm = new GemmaRMSNorm(c.hiddenSize, c.normEps, options);
  }

  override forward(x: Tensor, pass: Pass, rotary: Rotary): Tensor {
    const mixed = this.selfAttn.forward(this.inputLayernorm.forward(x), pass, rotary, this.scores);
    const h = add(x, this.postAttentionLayernorm.forward(mixed));
    const y = this.mlp.forward(this.preFeedforwardLayernorm.forward(h));
    return add(h, this.postFeedforwardLayernorm.forward(y));
  }
}

type Json = Readonly<Record<string, unknown>>;
const embedding = "model.embed_tokens.weight";
const defaults = { headDim: 256, maxPositionEmbeddings: 8192, tieWordEmbeddings: true };

export const gemma: Family<DecoderForCausalLM> = {
  create(json: Json, options) {
    const keys = new ConfigKeys(json);
    const c = readDecoderConfig(keys, defaults);
    // Older files say "gelu" in hidden_act and mean the approximation, with which the model was trained.
    const own = { activation: keys.text("hidden_activation", "gelu_pytorch_tanh"), bias: biasOf(keys), scores: {} };
    return gemmaModel(c, options, (i) => new GemmaLayer(c, i, options, own));
  },
  embedding,
};

export const gemma2: Family<DecoderForCausalLM> = {
  create(json: Json, options) {
    const keys = new ConfigKeys(withDefault(json, "sliding_window", 4096));
    const c = readDecoderConfig(keys, { ...defaults, window: (i) => i % 2 === 0 });
    const own = laterLayer(new ConfigKeys(withDefault(json, "attn_logit_softcapping", 50)));
    const cap = capOf(new ConfigKeys(withDefault(json, "final_logit_softcapping", 30)));
    return gemmaModel(c, options, (i) => new Gemma2Layer(c, i, options, own), cap);
  },
  embedding,
};

export const gemma3: Family<DecoderForCausalLM> = {
  create(json: Json, options) {
    const keys = new ConfigKeys(withDefault(json, "sliding_window", 4096));
    if (keys.has("use_bidirectional_attention")) keys.mustBe("use_bidirectional_attention", false);
    const pattern = keys.size("sliding_window_pattern", keys.size("_sliding_window_pattern", 6));
    const { local, global } = positionsOf(json);
    const window = (i: number): boolean => (i + 1) % pattern !== 0;
    const c = readDecoderConfig(new ConfigKeys({ ...keys.json, ...global }), {
      ...defaults,
      maxPositionEmbeddings: 131_072,
      window,
    });
    const positions = c.maxPositionEmbeddings;
    const [near, far] = [readRope(local, positions), c.rope].map((rope) => new RotaryCache(c.headDim, rope, positions));
    const types = keys.perLayer("layer_types", c.numHiddenLayers);
    const isLocal = (i: number): boolean => (types ? types[i] === "sliding_attention" : window(i));
    const own = { ...laterLayer(keys), hasQkNorm: true };
    const rotaryOf = (i: number): RotaryCache => (isLocal(i) ? near : far) as RotaryCache;
    return gemmaModel(c, options, (i) => new Gemma2Layer(c, i, options, own), capOf(keys), rotaryOf);
  },
  embedding,
};

/** The language model of a Gemma 3 that takes images, too; its other parts are left. */
export const gemma3WithImages: Family<DecoderForCausalLM> = {
  ...gemma3,
  languageConfig({ text_config, ...whole }) {
    const { dtype, torch_dtype, quantization_config } = whole;
    const outer = JSON.parse(JSON.stringify({ dtype, torch_dtype, quantization_config })) as Json;
    const given = (text_config ?? {}) as Json;
    return { ...textDefaults, ...given, ...outer, architectures: ["Gemma3ForCausalLM"], model_type: "gemma3_text" };
  },
  rename(name) {
    if (/^(model\.)?(vision_tower|multi_modal_projector)\./.test(name)) return null;
    return name.replace(/^language_model\.(model\.|lm_head\.)/, "$1").replace(/^model\.language_model\./, "model.");
  },
};
// What a text_config leaves out.
const textDefaults = {
  ...{ vocab_size: 262_208, hidden_size: 2304, intermediate_size: 9216, num_hidden_layers: 26 },
  ...{ num_attention_heads: 8, num_key_value_heads: 4 },
};

function gemmaModel(
  c: DecoderConfig,
  options: ModelOptions,
  layer: (index: number) => GemmaLayer,
  cap?: number,
  rotaryOf?: (layer: number) => RotaryCache,
): DecoderForCausalLM {
  const norm = new GemmaRMSNorm(c.hiddenSize, c.normEps, options);
  // Rounded as the models were trained: 55.5, not 55.4256, in bfloat16 of width 3072.
  const embeddingScale = (dtype: DType): number => rounded(Math.sqrt(c.hiddenSize), dtype);
  const parts = { layer, norm, embeddingScale, ...(rotaryOf && { rotaryOf }) };
  const capped = cap === undefined ? undefined : (x: Tensor) => mul(tanh(mul(x, 1 / cap)), cap);
  return new DecoderForCausalLM(c, options, new DecoderModel(c, options, parts), capped);
}

/** What the layers of Gemma 2 and 3 share. */
function laterLayer(keys: ConfigKeys): GemmaLayerOptions {
  const scale = keys.number("query_pre_attn_scalar", 256) ** -0.5;
  const softcap = keys.has("attn_logit_softcapping") && { softcap: keys.number("attn_logit_softcapping") };
  return {
    activation: keys.text("hidden_activation", "gelu_pytorch_tanh"),
    bias: biasOf(keys),
    scores: { scale, ...softcap },
  };
}

const biasOf = (keys: ConfigKeys): boolean => keys.flag("attention_bias", false);
const capOf = (keys: ConfigKeys): number | undefined =>
  keys.has("final_logit_softcapping") ? keys.number("final_logit_softcapping") : undefined;
const withDefault = (json: Json, key: string, value: unknown): Json =>
  json[key] === undefined ? { ...json, [key]: value } : json;

/** The keys of rotary positions with and without a window: newer files have a group for each, older ones two bases. */
function positionsOf(json: Json): { local: Json; global: Json } {
  const groups = json.rope_parameters as Record<string, Json> | undefined | null;
  if (groups?.full_attention && groups.sliding_attention) {
    return { local: { rope_parameters: groups.sliding_attention }, global: { rope_parameters: groups.full_attention } };
  }
  const local = { rope_theta: json.rope_local_base_freq ?? 10_000 };
  return { local, global: { rope_theta: json.rope_theta ?? 1e6 } };
}
