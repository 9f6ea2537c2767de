// The families of models by the `model_type` of their config.json: one line each.
import { CausalSequenceClassifier } from "../causal-classifier.js";
import type { CausalLM } from "../causal-lm.js";
import type { Encoder } from "../encoder.js";
import type { Family } from "../load.js";
import { ConfigKeys } from "../parts/config-keys.js";
import type { SequenceClassifier } from "../sequence-classifier.js";
import { readLabels } from "../sequence-classifier.js";
import { bert, bertClassifier, roberta, robertaClassifier } from "./bert.js";
import { distilBert, distilBertClassifier } from "./distilbert.js";
import { mixtral, qwen3Moe } from "./experts.js";
import { falcon } from "./falcon.js";
import { gemma, gemma2, gemma3, gemma3WithImages } from "./gemma.js";
import { gptNeox } from "./gpt-neox.js";
import { gpt2 } from "./gpt2.js";
import { granite } from "./granite.js";
import { llama, mistral, qwen2, qwen3, smollm3 } from "./llama-like.js";
import { nomicBert } from "./nomic-bert.js";
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
  gemma3: gemma3WithImages,
  phi3,
  olmo2,
  granite,
  gpt2,
  gpt_neox: gptNeox,
  opt,
  falcon,
};

export const encoderFamilies: Readonly<Record<string, Family<Encoder>>> = {
  bert,
  roberta,
  "xlm-roberta": roberta,
  camembert: roberta,
  distilbert: distilBert,
  nomic_bert: nomicBert,
};

export const classifierFamilies: Readonly<Record<string, Family<SequenceClassifier>>> = {
  bert: bertClassifier,
  roberta: robertaClassifier,
  "xlm-roberta": robertaClassifier,
  camembert: robertaClassifier,
  distilbert: distilBertClassifier,
  ...Object.fromEntries(Object.entries(causalFamilies).map(([type, family]) => [type, classifierOf(family)])),
};

/** The same body with a head of labels. */
function classifierOf({
  create,
  rename,
  languageConfig,
  isTransposed,
  head = "lm_head",
}: Family<CausalLM>): Family<SequenceClassifier> {
  return {
    create(config, options, source) {
      const width = source?.has("score.weight") ? source.info("score.weight").shape[1] : undefined;
      const body = create(config, options, source);
      const labels = readLabels(new ConfigKeys(config));
      return new CausalSequenceClassifier(body, labels, head, width ?? body.config.vocabSize, options);
    },
    ...(rename && { rename }),
    ...(languageConfig && { languageConfig }),
    ...(isTransposed && { isTransposed }),
    head: "score",
  };
}
