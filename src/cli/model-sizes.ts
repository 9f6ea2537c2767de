// What a model takes in memory, by its config alone: the layers are made without their weights, and counted.
import type { BitsAndBytesConfig, TensorSource } from "../hub/index.js";
import { formatsOf, quantizeLinears } from "../hub/quantize-linears.js";
import { familyOf } from "../models/auto.js";
import type { CausalLM, LayerLayout } from "../models/index.js";
import { AutoModelForCausalLM } from "../models/index.js";
import { tiesOf } from "../models/load.js";
import { pageSize } from "../models/step-plan.js";
import { Linear, Linear4bit, Linear8bitLt } from "../nn/index.js";
import type { DType } from "../tensor/dtype.js";
import { uninitialized } from "../tensor/placeholder.js";

type Json = Readonly<Record<string, unknown>>;

/** One linear layer. */
export interface LinearSize {
  path: string;
  inFeatures: number;
  outFeatures: number;
  is4bit: boolean;
}

/** What a model is made of. */
export interface ModelSize {
  dtype: DType;
  parameters: number;
  /** Bytes of all weights with their statistics. */
  weightBytes: number;
  linears: readonly LinearSize[];
  vocabSize: number;
  maxPositions: number;
  layout: readonly LayerLayout[];
}

/** A checkpoint without tensors: only the config decides. */
const nothing: TensorSource = {
  names: () => new Map<string, never>().keys(),
  has: () => false,
  info: () => {
    throw new Error("it has no tensors");
  },
  load: () => Promise.reject(new Error("it has no tensors")),
  bytes: () => Promise.reject(new Error("it has no tensors")),
  close: () => Promise.resolve(),
};

/** Patterns of llmInt8SkipModules that match no module of the model of a config.json, and the names that there are. */
export function unmatchedSkips(
  config: Json,
  quantization: BitsAndBytesConfig,
): { unmatched: string[]; names: string[] } {
  const model: CausalLM = uninitialized(() => AutoModelForCausalLM.fromConfig(config));
  try {
    const { unmatched } = formatsOf(model, nothing, quantization, tiesOf(model, familyOf(config)));
    const names = model.namedModules().flatMap(([path]) => [path.split(".").at(-1) as string, path]);
    return { unmatched: [...unmatched], names: [...new Set(names)].filter((name) => name !== "") };
  } finally {
    model.dispose();
  }
}

/** The sizes of the model of a config.json, its linear layers quantized as fromPretrained would. */
export function modelSize(config: Json, quantization: BitsAndBytesConfig | null, dtype?: DType): ModelSize {
  const family = familyOf(config);
  const model: CausalLM = uninitialized(() => AutoModelForCausalLM.fromConfig(config, { ...(dtype && { dtype }) }));
  try {
    const parameters = model.parameters().reduce((sum, parameter) => sum + parameter.size, 0);
    const ties = tiesOf(model, family);
    quantizeLinears(model, nothing, quantization, ties);
    const linears: LinearSize[] = [];
    let saved = 0;
    for (const [path, module] of model.namedModules()) {
      if (!(module instanceof Linear)) continue;
      const isQuantized = module instanceof Linear4bit || (module instanceof Linear8bitLt && !module.hasFp16Weights);
      const { inFeatures, outFeatures } = module;
      linears.push({ path, inFeatures, outFeatures, is4bit: module instanceof Linear4bit });
      if (isQuantized) saved += module.weight.nbytes - quantizedBytes(module);
    }
    const floats = model.parameters().reduce((sum, { nbytes }) => sum + nbytes, 0);
    const { vocabSize, maxPositionEmbeddings: maxPositions } = model.config;
    const layout = model.kvLayout();
    return { dtype: model.dtype, parameters, weightBytes: floats - saved, linears, vocabSize, maxPositions, layout };
  } finally {
    model.dispose();
  }
}

/** Codes and scales of a layer that will be quantized, without the tables that all layers share. */
function quantizedBytes(layer: Linear): number {
  const elements = layer.inFeatures * layer.outFeatures;
  if (!(layer instanceof Linear4bit)) return elements + 4 * layer.outFeatures;
  const { blocksize, compressStatistics } = layer.weight;
  const blocks = Math.ceil(elements / blocksize);
  // Scales in 8 bits have scales themselves, one for 256, and a mean.
  const scales = compressStatistics ? blocks + 4 * Math.ceil(blocks / 256) + 4 : 4 * blocks;
  return Math.ceil(elements / 2) + scales;
}

const sizes: Readonly<Record<string, number>> = { float32: 4, float16: 2, bfloat16: 2, int8: 1 };

/** Bytes of an element. */
export const sizeOf = (dtype: string): number => sizes[dtype] ?? 4;

/** Bytes of keys and values of `batch` texts of `context` tokens, in whole pages. */
export function kvBytes(layout: readonly LayerLayout[], context: number, batch: number, dtype: string): number {
  const tokens = batch * Math.ceil(context / pageSize) * pageSize;
  const scale = dtype === "int8" ? 4 : 0;
  return layout.reduce(
    (sum, { kvHeads, headDim }) => sum + 2 * tokens * kvHeads * (headDim * sizeOf(dtype) + scale),
    0,
  );
}

/** Of each decoder layer, in elements a token: inputs and outputs of its linear layers, and what stands between them. */
function widths({ linears }: ModelSize): { in: number; out: number; between: number }[] {
  const layers = new Map<string, LinearSize[]>();
  for (const linear of linears) {
    const number = /\.(\d+)\./.exec(linear.path)?.[1];
    if (number !== undefined) layers.set(number, [...(layers.get(number) ?? []), linear]);
  }
  return [...layers.values()].map((own) => {
    const inputs = own.map(({ inFeatures }) => inFeatures);
    // The gated hidden layer of the MLP; residuals, norms and turned queries, about as wide as the model.
    const between = Math.max(...inputs) + 6 * (inputs[0] as number);
    const sum = (values: readonly number[]): number => values.reduce((total, n) => total + n, 0);
    return { in: sum(inputs), out: sum(own.map(({ outFeatures }) => outFeatures)), between };
  });
}

/** About what a step of `tokens` takes beside weights and pages: what the widest layer makes, and the logits. */
export function stepBytes(size: ModelSize, tokens: number, rows: number): number {
  const widest = Math.max(...widths(size).map(({ out, between }) => out + between));
  return tokens * widest * sizeOf(size.dtype) + rows * size.vocabSize * 4;
}

/** Two moments: in 8 bits with a scale for 256, but of small tensors in 32. */
export const adamBytes = (n: number): number => (n < 4096 ? 8 * n : 2 * (n + 4 * Math.ceil(n / 256)));
