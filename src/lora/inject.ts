// Puts adapters around the linear layers of a model, chosen by name, and freezes everything else.
import type { Parameter } from "../nn/index.js";
import { Module } from "../nn/index.js";
import { aModule } from "../nn/module.js";
import { arrayOf, aString, checkArgument, required } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { withNearest } from "../tensor/nearest.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import type { LinearLike, LoraOptions } from "./lora-linear.js";
import { LoraLinear, loraChecks } from "./lora-linear.js";

/** Which layers get an adapter, and what it looks like. */
export interface ApplyLoraOptions extends LoraOptions {
  /**
   * Layers whose path is an item or ends with "." + item, in state-dict spelling: `["q_proj", "v_proj"]`. An item that
   * names no layer is ERR_BNB_OPTION.
   */
  targetModules: readonly string[];
}

const applyOptions = optionTable<ApplyLoraOptions>({ ...loraChecks, targetModules: required(arrayOf(aString)) });

/**
 * Freezes the model except for the adapters that it has already, wraps the targeted layers in `LoraLinear` and returns
 * the parameters of the new adapters, which are all that an optimizer should be given. The insides of an adapter are no
 * targets, and a layer with an adapter gets no second one: ERR_BNB_OPTION.
 *
 * @example
 * const adapters = applyLora(model, { r: 8, loraAlpha: 16, targetModules: ["q_proj", "v_proj"] });
 * const optimizer = new AdamW8bit(adapters, { lr: 2e-3 });
 */
export function applyLora(model: Module, settings: ApplyLoraOptions): Parameter[] {
  checkArgument("applyLora", "model", model, aModule);
  checkOptions("applyLora", settings, applyOptions);
  const { targetModules, ...options } = settings;
  const names = (path: string, item: string) => path === item || path.endsWith(`.${item}`);
  const isTarget = (path: string) => targetModules.some((item) => names(path, item));
  const targets = model.namedModules().flatMap(([parentPath, parent]) =>
    (parent instanceof LoraLinear ? [] : parent.members()).flatMap(({ field, name, value }) => {
      const path = parentPath === "" ? (name ?? field) : `${parentPath}.${name ?? field}`;
      return value instanceof Module && isTarget(path) ? [{ parent, field, path, layer: value }] : [];
    }),
  );
  if (targets.length === 0) {
    const wanted = targetModules.join(", ");
    throw new BnbError("ERR_BNB_OPTION", `applyLora: targetModules must name layers of the model, got [${wanted}]`);
  }
  const unmatched = targetModules.find((item) => !targets.some(({ path }) => names(path, item)));
  if (unmatched !== undefined) {
    const known = model.namedModules().flatMap(([path]) => [path.slice(path.lastIndexOf(".") + 1), path]);
    const rule = "applyLora: each of targetModules must name layers of the model";
    throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${withNearest(unmatched, known)}`);
  }
  const adapted = targets.find(({ layer }) => layer instanceof LoraLinear);
  if (adapted) {
    const rule = "applyLora: a target must have no adapter yet";
    throw new BnbError("ERR_BNB_OPTION", `${rule}, got one at ${adapted.path}`);
  }
  const wrong = targets.find(({ layer }) => !isLinearLike(layer));
  if (wrong) {
    const type = wrong.layer.constructor.name;
    throw new BnbError("ERR_BNB_OPTION", `applyLora: a target must be a linear layer, got ${type} at ${wrong.path}`);
  }

  // A layer that is used in two places gets one adapter. All are made before the model changes.
  const layers = [...new Set(targets.map(({ layer }) => layer as LinearLike))];
  const wrapped = new Map(layers.map((layer): [Module, LoraLinear] => [layer, new LoraLinear(layer, options)]));
  for (const [layer, lora] of wrapped) lora.train(layer.training);
  const adapters = new Set<Tensor>(
    model.modules().flatMap((module) => (module instanceof LoraLinear ? [module.loraA, module.loraB] : [])),
  );
  for (const parameter of model.parameters()) if (!adapters.has(parameter)) parameter.requiresGrad = false;
  for (const { parent, field, layer } of targets) parent.replaceMember(field, wrapped.get(layer) as LoraLinear);
  return [...wrapped.values()].flatMap(({ loraA, loraB }) => [loraA, loraB]);
}

function isLinearLike(layer: Module): boolean {
  return "inFeatures" in layer && "outFeatures" in layer;
}
