// The config.json of a new small model of each family, in the keys that the family has.

/** Sizes of a new model. */
export interface NewModel {
  hiddenSize: number;
  intermediateSize: number;
  layers: number;
  heads: number;
  kvHeads: number;
  positions: number;
  dtype: string;
  tokens: { vocabSize: number; bos: number; eos: number };
}

type Json = Record<string, unknown>;

/** The keys of Llama and its heirs. */
const decoder = (m: NewModel): Json => ({
  hidden_act: "silu",
  hidden_size: m.hiddenSize,
  intermediate_size: m.intermediateSize,
  max_position_embeddings: m.positions,
  num_attention_heads: m.heads,
  num_hidden_layers: m.layers,
  num_key_value_heads: m.kvHeads,
  head_dim: m.hiddenSize / m.heads,
  rms_norm_eps: 1e-6,
  rope_theta: 10_000,
  tie_word_embeddings: false,
});
const experts = (m: NewModel): Json => ({ ...decoder(m), num_experts_per_tok: 2 });
const gemma = (m: NewModel): Json => ({
  ...decoder(m),
  hidden_act: undefined,
  hidden_activation: "gelu_pytorch_tanh",
  tie_word_embeddings: true,
});

const byFamily: Readonly<Record<string, [architecture: string, keys: (m: NewModel) => Json]>> = {
  llama: ["LlamaForCausalLM", decoder],
  mistral: ["MistralForCausalLM", (m) => ({ ...decoder(m), sliding_window: m.positions })],
  mixtral: ["MixtralForCausalLM", (m) => ({ ...experts(m), num_local_experts: 4 })],
  qwen2: ["Qwen2ForCausalLM", decoder],
  qwen3: ["Qwen3ForCausalLM", decoder],
  qwen3_moe: [
    "Qwen3MoeForCausalLM",
    (m) => ({ ...experts(m), num_experts: 4, moe_intermediate_size: m.intermediateSize, norm_topk_prob: true }),
  ],
  smollm3: ["SmolLM3ForCausalLM", (m) => ({ ...decoder(m), tie_word_embeddings: true })],
  gemma: ["GemmaForCausalLM", gemma],
  gemma2: ["Gemma2ForCausalLM", (m) => ({ ...gemma(m), sliding_window: 256, query_pre_attn_scalar: 32 })],
  gemma3_text: ["Gemma3ForCausalLM", (m) => ({ ...gemma(m), sliding_window: 256, query_pre_attn_scalar: 32 })],
  phi3: ["Phi3ForCausalLM", decoder],
  olmo2: ["Olmo2ForCausalLM", decoder],
  granite: ["GraniteForCausalLM", decoder],
  gpt2: [
    "GPT2LMHeadModel",
    (m) => ({
      activation_function: "gelu_new",
      n_embd: m.hiddenSize,
      n_head: m.heads,
      n_inner: m.intermediateSize,
      n_layer: m.layers,
      n_positions: m.positions,
    }),
  ],
  gpt_neox: ["GPTNeoXForCausalLM", (m) => ({ ...decoder(m), hidden_act: "gelu", rotary_pct: 0.25 })],
  opt: [
    "OPTForCausalLM",
    (m) => ({
      activation_function: "relu",
      ffn_dim: m.intermediateSize,
      hidden_size: m.hiddenSize,
      max_position_embeddings: m.positions,
      num_attention_heads: m.heads,
      num_hidden_layers: m.layers,
      word_embed_proj_dim: m.hiddenSize,
    }),
  ],
  falcon: [
    "FalconForCausalLM",
    (m) => ({
      alibi: false,
      ffn_hidden_size: m.intermediateSize,
      hidden_size: m.hiddenSize,
      max_position_embeddings: m.positions,
      new_decoder_architecture: true,
      num_attention_heads: m.heads,
      num_hidden_layers: m.layers,
      num_kv_heads: m.kvHeads,
      rope_theta: 10_000,
    }),
  ],
};

/** The families that a new model can be of. */
export const families: readonly string[] = Object.keys(byFamily);

/** The object of a config.json, its keys in the order of the alphabet, as transformers writes them. */
export function newConfig(family: string, sizes: NewModel): Json {
  const [architecture, keys] = byFamily[family] as (typeof byFamily)[string];
  const { dtype, tokens } = sizes;
  const config: Json = {
    ...keys(sizes),
    architectures: [architecture],
    bos_token_id: tokens.bos,
    dtype,
    eos_token_id: tokens.eos,
    initializer_range: 0.02,
    model_type: family,
    vocab_size: tokens.vocabSize,
  };
  const known = Object.entries(config).filter(([, value]) => value !== undefined);
  return Object.fromEntries(known.sort(([a], [b]) => (a < b ? -1 : 1)));
}
