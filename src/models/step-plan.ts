// One forward pass over any sequences, as models see it: a flat list of tokens, where each sits, and the pages that hold
// the keys and values of those before. src/generation makes plans and pages; models know only what stands here.
import type { KvLayer, PageTable } from "../ops/index.js";
import type { Device } from "../tensor/device.js";
import type { Tensor } from "../tensor/tensor.js";

/** Tokens of a page of keys and values. */
export const pageSize = 16;

/** One step of any sequences: decode rows and parts of prompts, one after another, no padding. All int32. */
export interface StepPlan extends PageTable {
  readonly ids: Tensor; // [tokens]
  readonly positions: Tensor; // [tokens]
  readonly slots: Tensor; // [tokens]: page * 16 + row that takes a token's key and value; negative: none
  /** The rows of `ids` whose logits are wanted, [rows]; null: all. */
  readonly logitRows: Tensor | null;
  /** Tokens of the longest text, those to come included where they are known; null for a step to be recorded. */
  readonly longest: number | null;
}

/** What one attention layer keeps of a token. */
export interface LayerLayout {
  readonly kvHeads: number;
  readonly headDim: number;
  /** Keys further back are never read again. */
  readonly window?: number;
  /** Whether keys hold numbers that int8 would lose. */
  readonly isExact?: boolean;
  /** Where the layer computes, in a model on several devices. */
  readonly device?: Device;
}

/** The pages of every attention layer. */
export interface KvStore {
  layer(index: number): KvLayer;
}
