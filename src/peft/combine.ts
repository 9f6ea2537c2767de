// One adapter made of several: their updates weighted, as PEFT's add_weighted_adapter combines them.
import { tensor } from "../tensor/create.js";
import { BnbError } from "../tensor/errors.js";
import type { Tensor } from "../tensor/tensor.js";
import type { AdapterLayer } from "./adapter-layer.js";
import type { LoraConfig } from "./config.js";
import { LoraAdapter } from "./lora-adapter.js";
import type { Matrix } from "./low-rank.js";
import { decomposedProduct, leading, matrix, scaledColumns, transposed } from "./low-rank.js";
import { isNamed } from "./targets.js";

/**
 * "cat" is exact, its rank the sum of the ranks. "linear" sums A and B apart, each by the root of the weight, so that products
 * of different adapters come in; ranks must be equal. "svd" is the best approximation of the sum at a rank.
 */
export type CombinationType = "linear" | "cat" | "svd";

interface Part {
  readonly adapter: LoraAdapter;
  readonly weight: number;
}

/** The rank of the combination. Throws ERR_BNB_OPTION where "linear" has different ranks. */
export function combinedRank(type: CombinationType, ranks: readonly number[], svdRank: number | undefined): number {
  if (type === "cat") return ranks.reduce((sum, r) => sum + r, 0);
  if (type === "svd") return svdRank ?? Math.max(...ranks);
  const [first = 0] = ranks;
  if (ranks.every((r) => r === first)) return first;
  const rule = 'addWeightedAdapter: "linear" needs adapters of one rank';
  throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${ranks.join(", ")}; "cat" and "svd" take any`);
}

/** A and B of a layer's combination at `rank`, padded with zeros where its adapters have less. */
export function combined(type: CombinationType, parts: readonly Part[], rank: number): { a: Matrix; b: Matrix } {
  const own = parts.map(({ adapter: { loraA, loraB, scaling, r }, weight }) => ({
    a: matrix(r, loraA.shape[1] as number, loraA.floatsSync()),
    b: matrix(loraB.shape[0] as number, r, loraB.floatsSync()),
    factor: weight * scaling,
  }));
  const { columns: inputs } = (own[0] as { a: Matrix }).a;
  const { rows: outputs } = (own[0] as { b: Matrix }).b;
  if (type === "linear") {
    combinedRank("linear", [rank, ...own.map((part) => part.a.rows)], undefined);
    const a = new Float64Array(rank * inputs);
    const b = new Float64Array(outputs * rank);
    for (const part of own) {
      const root = Math.sqrt(Math.abs(part.factor));
      const signed = part.factor < 0 ? -root : root;
      part.a.data.forEach((v, i) => {
        a[i] = (a[i] as number) + signed * v;
      });
      part.b.data.forEach((v, i) => {
        b[i] = (b[i] as number) + root * v;
      });
    }
    return { a: matrix(rank, inputs, a), b: matrix(outputs, rank, b) };
  }
  const total = own.reduce((sum, { a }) => sum + a.rows, 0);
  const tall = new Float64Array(total * inputs);
  const wide = new Float64Array(outputs * total);
  let at = 0;
  for (const { a, b, factor } of own) {
    for (let i = 0; i < a.data.length; i++) tall[at * inputs + i] = factor * (a.data[i] as number);
    for (let i = 0; i < outputs; i++) {
      for (let j = 0; j < b.columns; j++) wide[i * total + at + j] = b.data[i * b.columns + j] as number;
    }
    at += a.rows;
  }
  const a = matrix(total, inputs, tall);
  const b = matrix(outputs, total, wide);
  if (type === "cat") return { a: transposed(leading(transposed(a), rank)), b: leading(b, rank) };
  const { u, values, v } = decomposedProduct(b, a);
  return { a: transposed(leading(v, rank)), b: leading(scaledColumns(u, values), rank) };
}

/**
 * The settings of a combination: those of the first adapter, for the targets of all. `paths`: of the layers that any of them
 * has, which are the targets where the adapters choose theirs differently, or by names that match nothing.
 */
export function combinedConfig(
  configs: readonly LoraConfig[],
  paths: readonly string[],
  type: CombinationType,
  svdRank: number | undefined,
): LoraConfig {
  const [first] = configs as [LoraConfig];
  for (const { useDora, modulesToSave, trainableTokenIndices, loraBias } of configs) {
    const wrong = { useDora, modulesToSave, trainableTokenIndices, loraBias };
    const found = Object.entries(wrong).find(([, value]) => Boolean(value))?.[0];
    if (found === undefined) continue;
    throw new BnbError("ERR_BNB_OPTION", `addWeightedAdapter: the adapters must be LoRA alone, got one with ${found}`);
  }
  const ranks = configs.map(({ r, rankPattern }) => Math.max(r, ...Object.values(rankPattern)));
  const r = combinedRank(type, ranks, svdRank);
  const common = { r, loraAlpha: r, rankPattern: {}, alphaPattern: {}, initLoraWeights: true };
  const choices = configs.map(({ layersToTransform, layersPattern, excludeModules }) =>
    JSON.stringify([layersToTransform, layersPattern, excludeModules]),
  );
  const names = new Set(choices).size === 1 ? unionOf(configs, paths) : null;
  if (names !== null) return first.with({ ...common, targetModules: names });
  const all = { layersToTransform: null, layersPattern: null, excludeModules: null };
  return first.with({ ...common, ...all, targetModules: paths });
}

/** What names the targets of all in their own form: lists whose names all match, or patterns; null where there is none. */
function unionOf(configs: readonly LoraConfig[], paths: readonly string[]): LoraConfig["targetModules"] {
  const targets = configs.map(({ targetModules }) => targetModules);
  const texts = [...new Set(targets.filter((item): item is string => typeof item === "string"))];
  if (texts.length === 0) {
    const items = [...new Set(targets.flatMap((item) => item ?? []))];
    return items.every((item) => paths.some((path) => isNamed(path, [item]))) ? items : null;
  }
  if (!targets.every((item) => typeof item === "string")) return null;
  if (texts.length === 1) return texts[0] as string;
  return texts.includes("all-linear") ? null : texts.map((pattern) => `(${pattern})`).join("|");
}

/** Gives the adapter `name` of each layer the combination of those adapters that the layer has. */
export function fillCombination(
  layers: ReadonlyMap<string, AdapterLayer>,
  name: string,
  adapters: readonly string[],
  weights: readonly number[],
  type: CombinationType,
): void {
  for (const layer of layers.values()) {
    const target = layer.adapters.get(name);
    if (!(target instanceof LoraAdapter)) continue;
    const parts = adapters.flatMap((item, i) => {
      const adapter = layer.adapters.get(item);
      return adapter instanceof LoraAdapter ? [{ adapter, weight: weights[i] as number }] : [];
    });
    if (parts.length === 0) continue; // B is zero
    const { a, b } = combined(type, parts, target.r);
    const { device } = target.loraA;
    const [loraA, loraB] = [a, b].map(({ data, rows, columns }) =>
      tensor(Float32Array.from(data), { shape: [rows, columns], device }),
    ) as [Tensor, Tensor];
    target.assign({ loraA, loraB });
    loraA.dispose();
    loraB.dispose();
  }
}
