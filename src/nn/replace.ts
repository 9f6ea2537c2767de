// replaceLinear: swaps the Linear layers of a model for others, usually quantized ones.

import { noGrad } from "../autograd/no-grad.js";
import {
  aBoolean,
  aFunction,
  arrayOf,
  aString,
  checkArgument,
  checkFunction,
  either,
  orNull,
} from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { withNearest } from "../tensor/nearest.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { Linear } from "./linear.js";
import type { StateDict } from "./module.js";
import { aModule, Module } from "./module.js";
import { StateLoader } from "./state-loader.js";

/** Makes the layer that takes the place of `linear`. */
export type LinearFactory = (
  inputFeatures: number,
  outputFeatures: number,
  bias: boolean,
  linear: Linear,
  path: string,
) => Module;

/** Options of `replaceLinear`. */
export interface ReplaceLinearOptions {
  /**
   * What stays, with everything below it, such as the base of an adapter: own names or whole paths in the state dict. The
   * own name of a list's item, a number, is that of a layer alone. Default `["lm_head"]`.
   */
  skipModules?: readonly string[];
  /** Only layers for which this holds are replaced; it is asked after `skipModules`. */
  predicate?: (path: string, linear: Linear) => boolean;
  /** Whether weight and bias go into the new layer through its `loadStateDict`. Default false. */
  copyWeights?: boolean;
  /** Called with each new layer; or the name of a method of it to call, if it has one. */
  postProcessingFunction?: string | ((layer: Module, path: string) => void) | null;
}

const replaceOptions = optionTable<ReplaceLinearOptions>({
  skipModules: arrayOf(aString),
  predicate: aFunction,
  copyWeights: aBoolean,
  postProcessingFunction: orNull(either(aString, aFunction)),
});

/**
 * Replaces every `Linear` below `model`, quantized ones included, by what `factory` makes, and disposes the old
 * ones. The head, `lm_head`, stays unless `skipModules` says otherwise. Returns the model. All new layers are made
 * before the first is put in, so that a failure changes nothing: ERR_BNB_NONFINITE, naming the tensor, where weights that
 * are to be quantized hold NaN or infinity.
 *
 * @example
 * replaceLinear(model, (k, n, bias) => new LinearNF4(k, n, { bias }), { copyWeights: true });
 */
export function replaceLinear<M extends Module>(
  model: M,
  factory: LinearFactory,
  options: ReplaceLinearOptions | ((path: string, linear: Linear) => boolean) = {},
): M {
  const settings = typeof options === "function" ? { predicate: options } : options;
  checkArgument("replaceLinear", "model", model, aModule);
  checkFunction("replaceLinear", "factory", factory);
  checkOptions("replaceLinear", settings, replaceOptions);
  checkSkips(model, settings.skipModules ?? []);
  if (model instanceof Linear) {
    throw new BnbError("ERR_BNB_ARGUMENT", "replaceLinear: model must contain its Linear layers, got a Linear");
  }
  const skips = settings.skipModules ?? ["lm_head"];
  const stays = (path: string): boolean => {
    const names = path.split(".");
    const isNamed = (item: string): boolean => (/^\d+$/.test(item) ? names.at(-1) === item : names.includes(item));
    return skips.some((item) => isNamed(item) || `${path}.`.startsWith(`${item}.`));
  };
  // Listed first: the new layers may contain Linear layers that must stay.
  const found = model.namedModules().flatMap(([path, parent]) =>
    parent.members().flatMap(({ field, name, value }) => {
      const own = name ?? field;
      const whole = path === "" ? own : `${path}.${own}`;
      if (!(value instanceof Linear) || stays(whole)) return [];
      return settings.predicate?.(whole, value) === false ? [] : [{ parent, field, path: whole, linear: value }];
    }),
  );
  // A layer used in two places is made once.
  const replaced = new Map<Linear, Module>();
  try {
    for (const { path, linear } of found) {
      if (!replaced.has(linear)) replaced.set(linear, build(linear, path, factory, settings));
    }
  } catch (error) {
    disposeUnused(model, replaced.values());
    throw error;
  }
  for (const { parent, field, linear } of found) parent.replaceMember(field, replaced.get(linear) as Module);
  disposeUnused(model, replaced.keys());
  return model;
}

/** Throws where a name to skip is that of no Linear and of nothing above one. lm_head may: tied models lack it. */
function checkSkips(model: Module, skips: readonly string[]): void {
  const paths = model.namedModules().flatMap(([path, module]) => (module instanceof Linear ? [path] : []));
  const known = [...new Set(["lm_head", ...paths.flatMap((path) => path.split(".")), ...paths])];
  const wrong = skips.find((item) => !known.includes(item) && !paths.some((path) => path.startsWith(`${item}.`)));
  if (wrong === undefined) return;
  const rule = "replaceLinear: each of skipModules must name a Linear of the model or what is above one";
  throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${withNearest(wrong, known)}`);
}

function build(linear: Linear, path: string, factory: LinearFactory, options: ReplaceLinearOptions): Module {
  const next = factory(linear.inFeatures, linear.outFeatures, linear.bias !== null, linear, path);
  if (!(next instanceof Module)) {
    throw new BnbError("ERR_BNB_ARGUMENT", `replaceLinear: factory must return a Module, got ${typeof next}`);
  }
  if (options.copyWeights && next !== linear) copyWeights(linear, next, `${path}.`);
  next.train(linear.training);
  const after = options.postProcessingFunction;
  if (typeof after === "function") after(next, path);
  else if (after) {
    const method: unknown = Reflect.get(next, after);
    if (typeof method === "function") method.call(next);
  }
  return next;
}

// Like `loadStateDict`, with the path in what it says.
function copyWeights(from: Linear, into: Module, prefix: string): void {
  const dict: StateDict = new Map();
  from.saveTo(dict, prefix);
  const loader = new StateLoader(dict);
  try {
    into.loadFrom(loader, prefix);
    noGrad(() => loader.finish(true));
  } catch (error) {
    into.dispose();
    throw error;
  }
}

/** Frees the layers' tensors, except those that the model holds: the factory may have moved them. */
function disposeUnused(model: Module, layers: Iterable<Module>): void {
  const kept = new Set<unknown>(model.modules().flatMap((module) => module.members().map(({ value }) => value)));
  for (const layer of layers) {
    if (kept.has(layer)) continue;
    for (const { value } of layer.members()) if (!kept.has(value)) value.dispose();
  }
}
