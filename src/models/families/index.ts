// The families of language models by the `model_type` of their config.json: one line each.
import type { CausalLM } from "../causal-lm.js";
import type { Family } from "../load.js";
import { mixtral, qwen3Moe } from "./experts.js";
import { falcon } from "./falcon.js";
import { gemma, gemma2, gemma3 } from "./gemma.js";
import { gptNeox } from "./gpt-neox.js";
import { gpt2 } from "./gpt2.js";
import { granite } from "./granite.js";
import { llama, mistral, qwen2, qwen3, smollm3 } from "./llama-like.js";
import { olmo2 } from "./olmo2.js";
import { opt } from "./opt.js";
import { phi3 } from "./phi3.js";

export const causalFamilies: Readonly<Record<string, Family<CausalLM>>> = {
  llama,
  mistral,
  mixtral,
  qwen2,
  qwen3,
  qwen3_moe: qwen3Moe,
  smollm3,
  gemma,
  gemma2,
  gemma3_text: gemma3,
  phi3,
  olmo2,
  granite,
  gpt2,
  gpt_neox: gptNeox,
  opt,
  falcon,
};
