// The cross-entropy of hidden states, head and loss together, some rows at a time and only those that count: the logits of a
// vocabulary of 128,000 would be the largest tensor of a step by far. Gradients are computed in the forward pass, chunk by
// chunk, so that no chunk is computed twice.
import { backward } from "../autograd/backward.js";
import { defineOp } from "../autograd/define-op.js";
import { withGrad } from "../autograd/no-grad.js";
import type { ModelHalves } from "../models/causal-lm.js";
import { add, cast, concat, crossEntropy, div, embedding, mul, reshape, slice } from "../ops/index.js";
import { full, tensor } from "../tensor/create.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { IGNORED } from "./sample.js";

type Head = ModelHalves["head"];

/** Logits of a chunk. */
const ELEMENTS = 2 ** 25;

/** Rows of a chunk: from 64, below which products are slow, to 1024, above which nothing becomes faster. */
export const chunkRows = (vocab: number): number => Math.max(64, Math.min(1024, Math.floor(ELEMENTS / vocab)));

const chunked = defineOp<
  [rows: Tensor, learning: readonly Tensor[], targets: Tensor, head: Head, chunk: number, gradient: number],
  [drows: Tensor | null, gradient: number, ...dlearning: (Tensor | null)[]]
>({
  name: "headLoss",
  forward(ctx, rows, learning, targets, head, chunk, gradient) {
    const total = rows.shape[0] as number;
    const wants = ctx.needs(0) || ctx.needs(1);
    // The tapes of the chunks add to what they find: it is put aside for them.
    const before = learning.map(({ grad }) => grad);
    for (const parameter of learning) parameter.grad = null;
    const pieces: Tensor[] = [];
    try {
      // The mean of no row is no number.
      let loss = full([], total === 0 ? Number.NaN : 0, { device: rows.device });
      for (let start = 0; start < total; start += chunk) {
        const end = Math.min(start + chunk, total);
        const share = (end - start) / total;
        const sum = loss;
        loss = tidy(() => {
          const piece = slice(rows, 0, start, end).detach();
          piece.requiresGrad = ctx.needs(0);
          const own = slice(targets, 0, start, end);
          const compute = (): Tensor => crossEntropy(head(piece), own);
          const mean = wants ? withGrad(compute) : compute();
          if (mean.requiresGrad) backward(mean, full([], gradient * share, { device: mean.device }));
          if (piece.grad) pieces.push(piece.grad);
          // A tensor takes its gradient along when it goes.
          piece.grad = null;
          return add(sum, mul(mean.detach(), share));
        });
        sum.dispose();
      }
      const drows = pieces.length > 0 ? concat(pieces, 0) : null;
      ctx.save(drows, gradient, ...learning.map(({ grad }) => grad));
      drows?.dispose();
      return loss;
    } finally {
      for (const piece of pieces) piece.dispose();
      learning.forEach((parameter, i) => {
        parameter.grad?.dispose();
        parameter.grad = before[i] as Tensor | null;
      });
    }
  },
  backward(ctx, dloss) {
    const [drows, gradient, ...dlearning] = ctx.saved;
    // 1, where backward() begins with what was said.
    const factor = div(dloss, gradient);
    const scaled = (x: Tensor): Tensor => mul(x, cast(factor, x.dtype));
    return [drows && scaled(drows), dlearning.map((grad) => grad && scaled(grad)), null];
  },
});

/**
 * Mean cross-entropy of the rows [..., hidden] of a model whose target is not -100; float32 scalar. `targets`: one for each
 * row. `gradient`: what backward() will begin with, up to a factor near 1, so that nothing is lost in 16 bits.
 */
export function headLoss(
  { hidden, head, learning, vocab }: ModelHalves,
  targets: Int32Array,
  gradient: number,
  chunk: number = chunkRows(vocab),
): Tensor {
  const { device } = hidden;
  const width = hidden.shape.at(-1) as number;
  const counted = Int32Array.from(targets.keys()).filter((row) => targets[row] !== IGNORED);
  const flat = reshape(hidden, [-1, width]);
  const rows = counted.length === targets.length ? flat : embedding(tensor(counted, { device }), flat);
  const wanted = tensor(
    counted.map((row) => targets[row] as number),
    { device },
  );
  return chunked(rows, learning, wanted, head, chunk, gradient);
}
