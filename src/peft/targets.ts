// Which modules of a model an adapter is for: by lists of names, patterns, layer numbers, or all that are linear.
import { Embedding, Module, snakeCase } from "../nn/index.js";
import { BnbError } from "../tensor/errors.js";
import { withNearest } from "../tensor/nearest.js";
import { AdapterLayer } from "./adapter-layer.js";
import type { LoraConfig } from "./config.js";
import type { LinearLike } from "./lora-linear.js";
import { matchesEnd, matchesPath } from "./path-patterns.js";

/** A module of the model, with where it is held. One that is used in several places is found in each. */
export interface Site {
  readonly parent: Module;
  readonly field: string;
  readonly path: string;
  readonly module: Module;
}

/** Every module below `model` but those inside of adapters, whose base stands at their path. */
export function sitesOf(model: Module): Site[] {
  const inside = new Set<Module>();
  return model.namedModules().flatMap(([path, parent]) => {
    if (parent instanceof AdapterLayer || inside.has(parent)) {
      for (const child of parent.children()) inside.add(child);
      return [];
    }
    return parent.members().flatMap(({ field, name, value }) => {
      const own = name ?? snakeCase(field);
      return value instanceof Module
        ? [{ parent, field, path: path === "" ? own : `${path}.${own}`, module: value }]
        : [];
    });
  });
}

/** Whether a path is an item or ends with "." + item. */
export function isNamed(path: string, items: readonly string[]): boolean {
  return items.some((item) => path === item || path.endsWith(`.${item}`));
}

/** Heads of language models and classifiers: "all-linear" leaves them out. */
const heads = /^(lm_head|embed_out|score|classifier|cls|pooler|qa_outputs)$/;

export function isLinearLike(module: Module): module is LinearLike {
  return "inFeatures" in module && "outFeatures" in module;
}

/**
 * The modules that a config names, in the order of the model. Throws ERR_BNB_OPTION where none is, where an item of a list
 * matches none, and for modules that cannot have an adapter. With `isLoaded` the config comes from a file, where PEFT has also
 * names that match nothing: the tensors beside it say what there must be.
 */
export function findTargets(
  op: string,
  sites: readonly Site[],
  config: LoraConfig,
  saved: readonly string[],
  isLoaded: boolean,
): Site[] {
  const { targetModules, excludeModules } = config;
  if (targetModules === null) return [];
  const excluded = (path: string): boolean =>
    (excludeModules !== null && matches(path, excludeModules)) ||
    saved.some((item) => isNamed(path, [item]) || new RegExp(`(^|\\.)${escaped(item)}\\.`).test(path));
  const base = (site: Site): Module => (site.module instanceof AdapterLayer ? site.module.baseLayer : site.module);
  const isWanted = (site: Site): boolean => {
    if (targetModules === "all-linear") return isLinearLike(base(site)) && !isHead(site.path);
    return matches(site.path, targetModules) && isInLayers(site.path, config);
  };
  const named = sites.filter(isWanted);
  const found = named.filter(({ path }) => !excluded(path));
  if (found.length === 0) failUnmatched(op, sites, config, named.length);
  if (Array.isArray(targetModules) && !isLoaded) {
    const unmatched = targetModules.find((item: string) => !sites.some(({ path }) => isNamed(path, [item])));
    if (unmatched !== undefined) {
      const rule = `${op}: each of targetModules must name layers of the model`;
      throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${withNearest(unmatched, namesOf(sites))}`);
    }
  }
  const wrong = found.find((site) => !isLinearLike(base(site)) && !(base(site) instanceof Embedding));
  if (wrong) {
    const type = base(wrong).constructor.name;
    const rule = `${op}: a target must be a linear layer or an embedding`;
    throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${type} at ${wrong.path}`);
  }
  return found;
}

/** @internal Whether a module is a head, or in one. */
export const isHead = (path: string): boolean => path.split(".").some((part) => heads.test(part));

function matches(path: string, items: readonly string[] | string): boolean {
  return typeof items === "string" ? matchesPath(items, path) : isNamed(path, items);
}

/** Whether the first number behind a name in the path is one of the layers that are transformed. */
function isInLayers(path: string, { layersToTransform, layersPattern }: LoraConfig): boolean {
  if (layersToTransform === null) return true;
  const wanted = typeof layersToTransform === "number" ? [layersToTransform] : layersToTransform;
  // To PEFT an empty list says nothing.
  if (wanted.length === 0) return true;
  const before = layersPattern === null ? [] : [layersPattern].flat();
  const names = before.length === 0 ? ["[^.]*"] : before;
  const parts = path.split(".");
  const isNumberOf = (name: string, i: number): boolean =>
    /^\d+$/.test(parts[i] as string) && matchesEnd(name, parts.slice(0, i).join("."));
  const numbers = names.map((name) => parts.slice(0, -1).find((_, i) => i > 0 && isNumberOf(name, i)));
  const number = numbers.find((digits) => digits !== undefined);
  return number !== undefined && wanted.includes(Number(number));
}

/** @internal Names that could be meant: paths and their last parts. */
export function namesOf(sites: readonly Site[]): string[] {
  return [...new Set(sites.flatMap(({ path }) => [path.slice(path.lastIndexOf(".") + 1), path]))];
}

function failUnmatched(op: string, sites: readonly Site[], config: LoraConfig, before: number): never {
  const { targetModules } = config;
  const known = namesOf(sites);
  const shown = Array.isArray(targetModules)
    ? `[${targetModules.map((item: string) => (known.includes(item) ? item : withNearest(item, known))).join(", ")}]`
    : JSON.stringify(targetModules);
  const why =
    before > 0
      ? ", and all that it names are excluded or saved whole"
      : config.layersToTransform !== null
        ? ` in layers ${JSON.stringify(config.layersToTransform)}`
        : "";
  throw new BnbError("ERR_BNB_OPTION", `${op}: targetModules must name layers of the model, got ${shown}${why}`);
}

const escaped = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
