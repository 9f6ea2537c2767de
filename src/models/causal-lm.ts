// What a language model offers to those who drive it, whatever its family.
import type { Device } from "../tensor/device.js";
import type { Tensor } from "../tensor/tensor.js";
import type { KvCache } from "./kv-cache.js";

/** A model that `generate` can drive. */
export interface CausalLM {
  readonly config: { readonly maxPositionEmbeddings: number; readonly vocabSize: number };
  readonly device: Device;
  createCache(batch: number, maxLength: number): KvCache;
  /** Logits [batch, t, vocab] of ids [batch, t], or of the last `logitsToKeep` positions. */
  forward(ids: Tensor, options?: { cache?: KvCache; logitsToKeep?: number }): Tensor;
}
