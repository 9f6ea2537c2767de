// The two functions that begin a fine-tuning: new adapters for a model, and a quantized model made ready for them.
import { noGrad } from "../autograd/no-grad.js";
import type { Module } from "../nn/index.js";
import { Parameter } from "../nn/index.js";
import { aModule } from "../nn/module.js";
import { cast } from "../ops/index.js";
import { aGenerator } from "../ops/random.js";
import { arrayOf, aString, checkArgument, required } from "../tensor/checks.js";
import { isFloat } from "../tensor/dtype.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { keep, tidy } from "../tensor/scope.js";
import { LoraConfig } from "./config.js";
import type { LoraOptions } from "./lora-adapter.js";
import { loraOptions } from "./lora-adapter.js";
import { PeftModel } from "./peft-model.js";
import type { AddAdapterOptions } from "./peft-options.js";

/** Options of `getPeftModel`. */
export interface GetPeftModelOptions extends AddAdapterOptions {
  /** Default "default". */
  adapterName?: string;
}
const getOptions = optionTable<GetPeftModelOptions>({ adapterName: aString, generator: aGenerator });

/**
 * Freezes a model and gives it an adapter that learns. The model is changed in place, and belongs to the result. Throws
 * ERR_BNB_OPTION where a name of the config matches nothing in the model, saying which name was probably meant, and for a
 * model that has adapters.
 *
 * @example
 * const model = getPeftModel(base, new LoraConfig({ r: 16, targetModules: ["q_proj", "v_proj"] }));
 * model.printTrainableParameters();
 * const optimizer = new AdamW8bit(model.parametersOf("default"), { lr: 2e-4 });
 */
export function getPeftModel<M extends Module>(
  model: M,
  config: LoraConfig,
  options: GetPeftModelOptions = {},
): PeftModel<M> {
  checkOptions("getPeftModel", options, getOptions);
  const { adapterName = "default", ...rest } = options;
  const peft = new PeftModel(model);
  peft.addUnder("getPeftModel", adapterName, config, rest);
  peft.adopt();
  return peft;
}

/**
 * Makes a quantized model ready for the training of adapters: freezes every parameter, and replaces those in float16 and
 * bfloat16, which are norms, embeddings and the head, by float32 ones. Returns the model. Call it before getPeftModel.
 *
 * @example
 * const base = await AutoModelForCausalLM.fromPretrained(folder, { quantizationConfig });
 * const model = getPeftModel(prepareModelForKbitTraining(base), config);
 */
export function prepareModelForKbitTraining<M extends Module>(model: M): M {
  checkArgument("prepareModelForKbitTraining", "model", model, aModule);
  model.requiresGrad_(false);
  const replaced = new Map<Parameter, Parameter>();
  for (const module of model.modules()) {
    for (const { field, value } of module.members()) {
      if (!(value instanceof Parameter) || value.constructor !== Parameter) continue;
      if (!isFloat(value.dtype) || value.dtype === "float32") continue;
      const next = replaced.get(value) ?? widened(value);
      replaced.set(value, next);
      Reflect.set(module, field, next);
    }
  }
  for (const old of replaced.keys()) old.dispose();
  return model;
}

function widened(parameter: Parameter): Parameter {
  const values = noGrad(() => tidy(() => keep(cast(parameter, "float32"))));
  const next = new Parameter(values, { requiresGrad: false });
  next.optimConfig = parameter.optimConfig;
  return next;
}

/** Options of `applyLora`. */
export interface ApplyLoraOptions extends Omit<LoraOptions, "device"> {
  /** Layers whose path is an item or ends with "." + item. */
  targetModules: readonly string[];
}
const { device: _, ...layerChecks } = loraOptions.checks;
const applyOptions = optionTable<ApplyLoraOptions>({
  ...layerChecks,
  targetModules: required(arrayOf(aString)),
});

/**
 * getPeftModel in one call, for those who need the parameters alone: gives the model one adapter and returns what learns.
 *
 * @example
 * const adapters = applyLora(model, { r: 8, loraAlpha: 16, targetModules: ["q_proj", "v_proj"] });
 */
export function applyLora(model: Module, settings: ApplyLoraOptions): Parameter[] {
  checkOptions("applyLora", settings, applyOptions);
  const { generator, ...config } = settings;
  const peft = new PeftModel(model);
  peft.addUnder("applyLora", "default", new LoraConfig(config), generator ? { generator } : {});
  peft.adopt();
  return peft.parametersOf("default");
}
