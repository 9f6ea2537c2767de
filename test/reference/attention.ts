// Attention in float64, one query and one head at a time.

export interface AttentionSizes {
  batch: number;
  queries: number;
  keys: number;
  heads: number;
  kvHeads: number;
  dim: number;
  causal?: boolean;
  scale?: number;
  window?: number;
  softcap?: number;
  /** A logit per head. */
  sinks?: ArrayLike<number>;
  /** Bounds of samples in the one batch entry. */
  starts?: readonly number[];
}

/** Whether query position p sees key j. */
function sees(p: number, j: number, { causal = true, window = Infinity, starts }: AttentionSizes): boolean {
  if (starts) {
    const sampleOf = (at: number) => starts.findIndex((from, i) => from <= at && at < (starts[i + 1] ?? -1));
    if (sampleOf(p) < 0 || sampleOf(p) !== sampleOf(j)) return false;
  }
  return causal ? j <= p && p - window < j : Math.abs(p - j) < window;
}

export function attentionReference(
  q: ArrayLike<number>,
  k: ArrayLike<number>,
  v: ArrayLike<number>,
  sizes: AttentionSizes,
): Float64Array {
  const { batch, queries, keys, heads, kvHeads, dim, softcap, sinks } = sizes;
  const { scale = 1 / Math.sqrt(dim) } = sizes;
  const y = new Float64Array(batch * queries * heads * dim);
  for (let b = 0; b < batch; b++) {
    for (let i = 0; i < queries; i++) {
      const seen = Array.from({ length: keys }, (_, j) => j).filter((j) => sees(keys - queries + i, j, sizes));
      for (let h = 0; h < heads; h++) {
        const kvHead = Math.floor((h * kvHeads) / heads);
        const at = ((b * queries + i) * heads + h) * dim;
        const keyAt = (j: number): number => ((b * keys + j) * kvHeads + kvHead) * dim;
        const scores = seen.map((j) => {
          let dot = 0;
          for (let d = 0; d < dim; d++) dot += (q[at + d] as number) * (k[keyAt(j) + d] as number);
          return softcap === undefined ? dot * scale : softcap * Math.tanh((dot * scale) / softcap);
        });
        const sink = sinks?.[h] ?? -Infinity;
        const top = Math.max(sink, ...scores);
        const total = scores.reduce((sum, s) => sum + Math.exp(s - top), sink === -Infinity ? 0 : Math.exp(sink - top));
        seen.forEach((j, n) => {
          const p = Math.exp(scores[n]! - top) / total;
          for (let d = 0; d < dim; d++) y[at + d]! += p * (v[keyAt(j) + d] as number);
        });
      }
    }
  }
  return y;
}
