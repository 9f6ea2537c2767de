// Rows of a table by id, and the scaling of rows to a maximal norm.

import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { aBoolean, anInteger, orNull } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** Options of `embedding`. */
export interface EmbeddingOpOptions {
  /** The row that gets no gradient. */
  paddingIdx?: number | null;
  /** Whether the gradient of a row is divided by how often its id occurs. */
  scaleGradByFreq?: boolean;
}
const embeddingOptions = optionTable<EmbeddingOpOptions>({
  paddingIdx: orNull(anInteger(-1)),
  scaleGradByFreq: aBoolean,
});

/**
 * `y[i] = weight[ids[i]]` for int32 ids of any shape: `[...]` and `[V, D]` give `[..., D]`.
 *
 * An id outside the table is an error at the next read. The gradient of `weight` is dense and adds the rows up
 * in float32, in the order of the ids.
 *
 * @example
 * const x = embedding(ids, weight); // ids [batch, seq], weight [vocab, dim]
 */
export const embedding = defineOp({
  name: "embedding",
  arity: 3,

  forward(
    ctx: OpContext<[ids: Tensor, rows: number, options: EmbeddingOpOptions]>,
    ids: Tensor,
    weight: Tensor,
    options: EmbeddingOpOptions = {},
  ) {
    checkOptions("embedding", options, embeddingOptions);
    const [y] = run(addon.embedding, ids, weight);
    ctx.save(ids, weight.shape[0] as number, options);
    return y;
  },

  backward(ctx, dy) {
    const [ids, rows, { paddingIdx, scaleGradByFreq }] = ctx.saved;
    const [dweight] = run(addon.embeddingBackward, dy, ids, rows, paddingIdx ?? -1, scaleGradByFreq ?? false);
    return [null, dweight];
  },
});

/**
 * Scales the rows of `weight` that `ids` name, in place, to at most `maxNorm` in the `normType` norm, by
 * `maxNorm / (norm + 1e-7)`. No gradient.
 */
export function embeddingRenorm(ids: Tensor, weight: Tensor, maxNorm: number, normType = 2): void {
  run(addon.embeddingRenorm, ids, weight, maxNorm, normType);
}
