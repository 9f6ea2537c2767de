// What a training step of adapters takes at its most beside the weights, from the sizes of a model alone: the tensors that stand
// in memory together at the two moments that can be the fullest.
import { chunkRows } from "../train/head-loss.js";
import type { LinearSize, ModelSize } from "./model-sizes.js";
import { adamBytes, sizeOf } from "./model-sizes.js";

/** A run. */
export interface TrainingUse {
  /** Of a forward pass, all samples together. */
  readonly tokens: number;
  readonly rank: number;
  /** Whether of each layer only the input is kept (gradient checkpointing). */
  readonly recomputes: boolean;
}

/** Bytes beside the weights; together they are the peak. */
export interface TrainingMemory {
  readonly adapters: number;
  readonly gradients: number;
  readonly optimizer: number;
  readonly activations: number;
}

const sum = (values: readonly number[]): number => values.reduce((total, n) => total + n, 0);

/** Adapters of a rank on every linear layer but the head, float32, with gradients and the state of AdamW8bit. */
function adapterSizes(linears: readonly LinearSize[], rank: number) {
  const tensors = linears.flatMap(({ inFeatures, outFeatures }) => [rank * inFeatures, rank * outFeatures]);
  return { bytes: 4 * sum(tensors), optimizer: sum(tensors.map(adamBytes)) };
}

/** The linear layers of each decoder layer, in their order. */
function layersOf({ linears }: ModelSize): LinearSize[][] {
  const layers = new Map<string, LinearSize[]>();
  for (const linear of linears) {
    const number = /\.(\d+)\./.exec(linear.path)?.[1];
    if (number !== undefined) layers.set(number, [...(layers.get(number) ?? []), linear]);
  }
  return [...layers.values()];
}

/** Of one token in one decoder layer. */
function tokenBytes(own: readonly LinearSize[], bytes: number, rank: number) {
  const hidden = (own[0] as LinearSize).inFeatures;
  const turned = own.filter(({ path }) => /\.[qk]_proj$/.test(path)).map(({ outFeatures }) => outFeatures);
  // Inputs that no linear layer gave: of heads that attended, and of the hidden layer of an MLP.
  const made = own.filter(({ path }) => /\.(o_proj|down_proj)$/.test(path) || /\.(dense|c_proj|fc2)$/.test(path));
  const outputs = sum(own.map(({ outFeatures }) => outFeatures));
  // Two norms with their statistics.
  const elements = outputs + 2 * hidden + sum(turned) + sum(made.map(({ inFeatures }) => inFeatures));
  const last = own.at(-1) as LinearSize;
  // A layer that is no 4-bit one computes its adapter by single ops, in float32.
  const apart = own
    .filter(({ is4bit }) => !is4bit)
    .map(({ inFeatures: k, outFeatures: n }) => {
      const widened = bytes === 4 ? 0 : 4 * k + bytes * n;
      return widened + 8 * rank + 4 * n + bytes * n;
    });
  return {
    hidden,
    kept: bytes * elements + 8 + sum(apart),
    /** Freed layer by layer on the way back: what stands between A and B. */
    narrow: 4 * rank * own.length,
    /** The gradients of the MLP's hidden layer: of the product, and of its two factors. */
    between: 3 * bytes * last.inFeatures,
  };
}

/**
 * The peak of a step over one pass: at the loss, with the logits of some rows, or at the MLP of the first layer on the way back,
 * where all other layers have their gradients.
 */
export function trainingMemory(size: ModelSize, { tokens, rank, recomputes }: TrainingUse): TrainingMemory {
  const bytes = sizeOf(size.dtype);
  const layers = layersOf(size);
  const { bytes: adapters, optimizer } = adapterSizes(layers.flat(), rank);
  const [first = []] = layers;
  const { hidden, kept, narrow, between } = tokenBytes(first, bytes, rank);
  const [layout] = size.layout;
  const headDim = layout?.headDim ?? hidden;
  const heads = Math.max(1, Math.round((first[0]?.outFeatures ?? 0) / headDim));
  const lse = 4 * heads;

  // Angles of the positions; the embedding, the last norm, the rows whose loss counts, ids and targets.
  const positions = Math.min(size.maxPositions, Math.max(1024, 2 ** Math.ceil(Math.log2(tokens))));
  const always = 4 * positions * headDim + tokens * (3 * bytes * hidden + 4 + 16);
  const whole = layers.length * (kept + narrow + lse);
  const standing = always + tokens * (recomputes ? layers.length * bytes * hidden : whole);

  const rows = Math.min(tokens, chunkRows(size.vocabSize));
  const atLoss = standing + 2 * rows * size.vocabSize * bytes + tokens * bytes * hidden;

  // Of the first layer only what comes behind its MLP has gradients.
  const down = first.at(-1) as LinearSize;
  const missing = adapterSizes(first, rank).bytes - 4 * rank * (down.inFeatures + down.outFeatures);
  const freed = recomputes ? 0 : (layers.length - 1) * (narrow + lse);
  const inLayer = recomputes ? kept + narrow + lse : 0;
  const onWay = inLayer - freed - 4 * rank + bytes * hidden + between;
  const onTheWayBack = standing + tokens * onWay + adapters - missing;

  const peak = Math.max(atLoss, onTheWayBack);
  return { adapters, gradients: adapters, optimizer, activations: Math.max(0, peak - adapters) };
}
