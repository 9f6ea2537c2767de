// AutoModelForCausalLM: opens a checkpoint by what its config.json calls itself. A family is one line here.
import { join } from "node:path";
import { exists } from "../hub/cache.js";
import type { JsonObject } from "../hub/config-text.js";
import { readGenerationConfig } from "../hub/generation-config.js";
import { AutoTokenizer } from "../hub/index.js";
import type { Module } from "../nn/index.js";
import { initChecks } from "../nn/layer-options.js";
import { aPlainObject, aString, checkArgument, orNull } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { CausalLM } from "./causal-lm.js";
import { causalFamilies } from "./families/index.js";
import type { Family, FromPretrainedOptions } from "./load.js";
import { createModel, fromPretrainedOptions, loadPretrained } from "./load.js";
import { drawWeights } from "./parts/decoder.js";
import type { ModelOptions } from "./parts/model-options.js";
import type { HeadFormat } from "./quantized-head.js";
import { aHeadFormat } from "./quantized-head.js";
import type { TextModel } from "./text-model.js";

/** Options of `AutoModelForCausalLM.fromPretrained`. */
export interface CausalLMOptions extends FromPretrainedOptions {
  /** Also keeps a copy of the output projection in this format, which generates; see `CausalLM.quantizeHead`. Default null. */
  quantizeHead?: HeadFormat | null;
}
const causalLMOptions = optionTable<CausalLMOptions>({
  ...fromPretrainedOptions.checks,
  quantizeHead: orNull(aHeadFormat),
});

/**
 * Language models from checkpoints as transformers writes them.
 *
 * @example
 * const quantizationConfig = new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" });
 * const model = await AutoModelForCausalLM.fromPretrained("./model", { quantizationConfig });
 */
export const AutoModelForCausalLM = {
  /**
   * Loads the model of a folder with config.json and its weights in safetensors files, or of an id on the hub such as
   * "meta-llama/Llama-3.2-1B": from the cache that Hugging Face's libraries share, into which it is downloaded if need be
   * (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE). Weights are quantized as they are there, or as `quantizationConfig`
   * says. The model is in evaluation mode.
   *
   * Rejects with ERR_BNB_UNSUPPORTED for an architecture that is not known, ERR_BNB_FILE and ERR_BNB_FORMAT for files that
   * cannot be read, ERR_BNB_ABORTED when the signal is.
   */
  async fromPretrained(path: string, options: CausalLMOptions = {}): Promise<CausalLM> {
    checkArgument("fromPretrained", "path", path, aString);
    checkOptions("fromPretrained", options, causalLMOptions);
    const { quantizeHead = null, ...rest } = options;
    return loadPretrained(path, familyOf, rest, async (model, folder, config) => {
      model.quantizeHead(quantizeHead);
      await addTextParts(model, folder, config);
    });
  },

  /**
   * A new model of the object of a config.json; weights are normal with its `initializer_range`, biases and norms start as
   * their layers have it. The dtype is `options.dtype`, else the config's. `savePretrained` saves the model beside that
   * config. Inside of `uninitialized` it takes no memory.
   *
   * Throws as `fromPretrained` does for what is wrong in the config.
   */
  fromConfig(config: Readonly<Record<string, unknown>>, options: ModelOptions = {}): CausalLM {
    checkArgument("fromConfig", "config", config, aPlainObject);
    checkOptions("fromConfig", options, modelOptions);
    const model = createModel(config, familyOf, options);
    drawWeights(model, typeof config["initializer_range"] === "number" ? config["initializer_range"] : 0.02, {
      ...options,
      dtype: model.dtype,
    });
    return model;
  },
};

const modelOptions = optionTable<ModelOptions>(initChecks);

/** What turns a model's tokens into texts. */
async function addTextParts(model: CausalLM, folder: string, config: JsonObject): Promise<void> {
  model.generationConfig = await readGenerationConfig(folder, config);
  await addTokenizer(model, folder);
}

/** @internal The tokenizer of a checkpoint that has one. */
export async function addTokenizer(model: TextModel, folder: string): Promise<void> {
  if (!(await exists(join(folder, "tokenizer.json")))) return;
  try {
    model.adoptTokenizer(await AutoTokenizer.fromPretrained(folder));
  } catch (error) {
    if (!(error instanceof BnbError)) throw error;
    // The model computes without it.
    process.emitWarning(`fromPretrained: model.tokenizer is null: ${error.message}`, {
      type: "BnbWarning",
      code: "BNB_NO_TOKENIZER",
    });
  }
}

/** @internal The family of a language model's config.json. */
export const familyOf = (config: JsonObject): Family<CausalLM> => familyIn(causalFamilies, config);

/** @internal The family that a config names. Throws ERR_BNB_UNSUPPORTED. */
export function familyIn<M extends Module>(
  families: Readonly<Record<string, Family<M>>>,
  config: JsonObject,
): Family<M> {
  const type = config["model_type"];
  if (typeof type === "string" && Object.hasOwn(families, type)) return families[type] as Family<M>;
  const rule = `config.json: model_type must be one of ${Object.keys(families).join(", ")}`;
  throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got ${JSON.stringify(type)}`);
}
