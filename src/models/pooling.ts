// One vector a text, from the hidden states of its tokens.
import { cast, concat, div, embedding, matmul, maximum, slice, sqrt, square, sum } from "../ops/index.js";
import { tensor } from "../tensor/create.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

/** Which hidden states of a text are its vector: their mean, that of the first or of the last token. */
export type Pooling = "mean" | "first" | "last";
export const poolings = ["mean", "first", "last"] as const satisfies readonly Pooling[];

/**
 * The vectors, float32 [texts, hidden], of packed texts: hidden states [1, tokens, hidden], of which rows bounds[i] to
 * bounds[i + 1] are text i. With `normalize` they have length 1.
 */
export function pool(hidden: Tensor, bounds: Int32Array, pooling: Pooling, normalize: boolean): Tensor {
  return tidy(() => {
    const rows = hidden.reshape(hidden.shape.slice(-2));
    const pooled = pooling === "mean" ? means(rows, bounds) : cast(picked(rows, bounds, pooling), "float32");
    if (!normalize) return pooled;
    const norms = sqrt(sum(square(pooled), { axis: 1, keepDims: true }));
    return div(pooled, maximum(norms, 1e-12));
  });
}

function picked(rows: Tensor, bounds: Int32Array, pooling: "first" | "last"): Tensor {
  const at = pooling === "first" ? bounds.slice(0, -1) : bounds.slice(1).map((end) => end - 1);
  return embedding(tensor(at, { device: rows.device }), rows);
}

/** Text by text: a matrix of the shares of all texts would be mostly zeros. */
function means(rows: Tensor, bounds: Int32Array): Tensor {
  const vectors = Array.from(bounds.subarray(1), (to, i) => {
    const from = bounds[i] as number;
    const share = tensor(new Float32Array(to - from).fill(1 / (to - from)), {
      shape: [1, to - from],
      device: rows.device,
    });
    return matmul(share, cast(slice(rows, 0, from, to), "float32"));
  });
  return concat(vectors, 0);
}
