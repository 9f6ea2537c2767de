// A Llama of six small layers, as config.json has it: enough of them to be in several places.
export const sixLayers = (dtype: "float32" | "bfloat16") => ({
  model_type: "llama",
  architectures: ["LlamaForCausalLM"],
  hidden_size: 128,
  intermediate_size: 256,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  num_hidden_layers: 6,
  vocab_size: 128,
  max_position_embeddings: 256,
  rms_norm_eps: 1e-6,
  rope_theta: 10_000,
  initializer_range: 0.2,
  tie_word_embeddings: false,
  dtype,
});
