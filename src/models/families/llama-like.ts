// Llama (Touvron et al., 2023), Mistral (Jiang et al., 2023), Qwen2 (Yang et al., 2024), Qwen3 (2025) and SmolLM 3 (2025):
// pre-norm blocks of grouped-query attention and a SwiGLU MLP. They differ in biases, windows, norms of queries and
// keys, and in layers without positions.
import { RMSNorm } from "../../nn/index.js";
import { LlamaForCausalLM } from "../llama.js";
import { LlamaConfig } from "../llama-config.js";
import type { Family } from "../load.js";
import type { DecoderConfig } from "../parts/config-keys.js";
import { ConfigKeys, readDecoderConfig } from "../parts/config-keys.js";
import type { DecoderForCausalLM } from "../parts/decoder.js";
import type { ModelOptions } from "../parts/model-options.js";
import { place } from "../parts/model-options.js";
import type { PreNormLayerOptions } from "./pre-norm.js";
import { PreNormLayer, preNormModel } from "./pre-norm.js";

const embedding = "model.embed_tokens.weight";
type Json = Readonly<Record<string, unknown>>;

export const llama: Family<LlamaForCausalLM> = {
  create: (json, options) => new LlamaForCausalLM(LlamaConfig.fromJSON(json), options),
  embedding,
};

export const mistral: Family<DecoderForCausalLM> = {
  create(json: Json, options) {
    const keys = new ConfigKeys({ ...(json.sliding_window === undefined && { sliding_window: 4096 }), ...json });
    const c = readDecoderConfig(keys, { maxPositionEmbeddings: 131_072, window: () => true });
    const activation = keys.text("hidden_act", "silu");
    return preNormModel(c, options, (i) => new PreNormLayer(c, i, options, { activation }));
  },
  embedding,
};

export const qwen2: Family<DecoderForCausalLM> = {
  create(json: Json, options) {
    const keys = new ConfigKeys(json);
    const c = readDecoderConfig(keys, { maxPositionEmbeddings: 32_768, ...qwenWindows(keys) });
    const own = { bias: true, outputBias: false, activation: keys.text("hidden_act", "silu") };
    return preNormModel(c, options, (i) => new PreNormLayer(c, i, options, own));
  },
  embedding,
};

export const qwen3: Family<DecoderForCausalLM> = {
  create(json: Json, options) {
    const keys = new ConfigKeys(json);
    const c = readDecoderConfig(keys, { maxPositionEmbeddings: 32_768, headDim: 128, ...qwenWindows(keys) });
    return preNormModel(c, options, (i) => new PreNormLayer(c, i, options, qwen3Layer(keys, c, options)));
  },
  embedding,
};

export const smollm3: Family<DecoderForCausalLM> = {
  create(json: Json, options) {
    const keys = new ConfigKeys(json);
    const layers = keys.size("num_hidden_layers");
    const interval = keys.size("no_rope_layer_interval", 4);
    const listed = keys.perLayer("no_rope_layers", layers); // 1 where there is rope
    const hasRope = (i: number): boolean => (listed ? Boolean(listed[i]) : (i + 1) % interval !== 0);
    const isWindowed = keys.flag("use_sliding_window", false);
    const c = readDecoderConfig(keys, {
      maxPositionEmbeddings: 32_768,
      tieWordEmbeddings: true,
      ropeTheta: 2e6,
      ...(isWindowed && { window: (i: number) => !hasRope(i) }),
    });
    const own = {
      bias: keys.flag("attention_bias", false),
      mlpBias: keys.flag("mlp_bias", false),
      activation: keys.text("hidden_act", "silu"),
    };
    return preNormModel(c, options, (i) => new PreNormLayer(c, i, options, { ...own, hasRope: hasRope(i) }));
  },
  embedding,
};

/** The layer of Qwen3, dense or with experts: norms of each head of queries and keys. */
export function qwen3Layer(keys: ConfigKeys, c: DecoderConfig, options: ModelOptions): PreNormLayerOptions {
  return {
    bias: keys.flag("attention_bias", false),
    activation: keys.text("hidden_act", "silu"),
    norm: (size) => new RMSNorm(size, { eps: c.normEps, ...place(options) }),
  };
}

/** Qwen's windows begin at a layer, and only where they are switched on. */
function qwenWindows(keys: ConfigKeys): { window?: (layer: number) => boolean } {
  if (!keys.flag("use_sliding_window", false)) return {};
  const first = keys.number("max_window_layers", 28);
  return { window: (layer) => layer >= first };
}
