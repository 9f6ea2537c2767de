// Attention in float64, one query and one head at a time.
import { softmaxReference } from "./softmax.js";

export interface AttentionSizes {
  batch: number;
  queries: number;
  keys: number;
  heads: number;
  kvHeads: number;
  dim: number;
  causal?: boolean;
  scale?: number;
  length?: number;
}

export function attentionReference(
  q: ArrayLike<number>,
  k: ArrayLike<number>,
  v: ArrayLike<number>,
  sizes: AttentionSizes,
): Float64Array {
  const { batch, queries, keys, heads, kvHeads, dim, causal = true } = sizes;
  const { scale = 1 / Math.sqrt(dim), length = keys } = sizes;
  const y = new Float64Array(batch * queries * heads * dim);
  for (let b = 0; b < batch; b++) {
    for (let i = 0; i < queries; i++) {
      const seen = causal ? length - queries + i + 1 : length;
      for (let h = 0; h < heads; h++) {
        const kvHead = Math.floor((h * kvHeads) / heads);
        const at = ((b * queries + i) * heads + h) * dim;
        const keyAt = (j: number): number => ((b * keys + j) * kvHeads + kvHead) * dim;
        const scores = new Float64Array(seen);
        for (let j = 0; j < seen; j++) {
          let dot = 0;
          for (let d = 0; d < dim; d++) dot += (q[at + d] as number) * (k[keyAt(j) + d] as number);
          scores[j] = dot * scale;
        }
        const p = softmaxReference(scores, seen);
        for (let j = 0; j < seen; j++) {
          for (let d = 0; d < dim; d++) y[at + d]! += p[j]! * (v[keyAt(j) + d] as number);
        }
      }
    }
  }
  return y;
}
