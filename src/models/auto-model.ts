// AutoModel and AutoModelForSequenceClassification: models that read texts and write none.
import type { JsonObject } from "../hub/config-text.js";
import { aString, checkArgument } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions } from "../tensor/options.js";
import { addTokenizer, familyIn } from "./auto.js";
import type { Encoder } from "./encoder.js";
import { causalFamilies, classifierFamilies, encoderFamilies } from "./families/index.js";
import type { Family, FromPretrainedOptions } from "./load.js";
import { fromPretrainedOptions, loadPretrained } from "./load.js";
import { readEmbedOptions } from "./sentence-transformers.js";
import type { SequenceClassifier } from "./sequence-classifier.js";

/**
 * Encoders from checkpoints as transformers and sentence-transformers write them: BERT and what is built like it (MiniLM,
 * bge, e5, gte), RoBERTa and XLM-R.
 *
 * @example
 * const model = await AutoModel.fromPretrained("sentence-transformers/all-MiniLM-L6-v2");
 * const vectors = await model.embed(["a cat sits", "a dog runs"]);
 */
export const AutoModel = {
  /** Loads an encoder; as `AutoModelForCausalLM.fromPretrained`. */
  async fromPretrained(path: string, options: FromPretrainedOptions = {}): Promise<Encoder> {
    checkArgument("fromPretrained", "path", path, aString);
    checkOptions("fromPretrained", options, fromPretrainedOptions);
    return loadPretrained(path, encoderOf, options, addEmbedParts);
  },
};

function encoderOf(config: JsonObject): Family<Encoder> {
  const type = config["model_type"];
  if (typeof type === "string" && Object.hasOwn(causalFamilies, type)) {
    const rule = `AutoModel: model_type must be one of ${Object.keys(encoderFamilies).join(", ")}`;
    const advice = "AutoModelForCausalLM opens it, and its embed gives vectors";
    throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got ${JSON.stringify(type)}: ${advice}`);
  }
  return familyIn(encoderFamilies, config);
}

async function addEmbedParts(model: Encoder, folder: string): Promise<void> {
  model.embedDefaults = await readEmbedOptions(folder);
  await addTokenizer(model, folder);
}

/** Classifiers and rerankers from checkpoints as transformers writes them (...ForSequenceClassification). */
export const AutoModelForSequenceClassification = {
  /** Loads a classifier; as `AutoModelForCausalLM.fromPretrained`. */
  async fromPretrained(path: string, options: FromPretrainedOptions = {}): Promise<SequenceClassifier> {
    checkArgument("fromPretrained", "path", path, aString);
    checkOptions("fromPretrained", options, fromPretrainedOptions);
    return loadPretrained(path, (config) => familyIn(classifierFamilies, config), options, addTokenizer);
  },
};
