// Gradient checkpointing (Chen et al., 2016): of a part of a model only the input is kept, and backward() computes the rest
// again, with the random numbers that it had.
import { backward } from "../autograd/backward.js";
import { defineOp } from "../autograd/define-op.js";
import { isGradEnabled, withGrad } from "../autograd/no-grad.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Draws } from "./random.js";
import { recordDraws, replayDraws } from "./random.js";

type Part = (x: Tensor) => Tensor;

const recomputed = defineOp<
  [x: Tensor, learning: readonly Tensor[], part: Part],
  [x: Tensor, part: Part, draws: Draws, ...learning: Tensor[]]
>({
  name: "checkpoint",
  forward(ctx, x, learning, part) {
    // With a graph, which is then forgotten: layers may compute by other ways, of other roundings, where none is wanted.
    const compute = (): Tensor => tidy(() => withGrad(() => part(inputOf(x, ctx.needs(0)))).detach());
    const [y, draws] = recordDraws(compute);
    // What learns is kept only to notice its change.
    ctx.save(x, part, draws, ...learning);
    return y;
  },
  backward(ctx, dy) {
    const [x, part, draws, ...learning] = ctx.saved;
    // What learns gets its gradient from the inner tape.
    const none = learning.map(() => null);
    const dx = tidy(() => {
      const input = inputOf(x, ctx.needs(0));
      backward(
        withGrad(() => replayDraws(draws, () => part(input))),
        dy,
      );
      const { grad } = input;
      // A tensor takes its gradient along when it goes.
      input.grad = null;
      return grad;
    });
    return [dx, none];
  },
});

function inputOf(x: Tensor, learns: boolean): Tensor {
  const input = x.detach();
  input.requiresGrad = learns;
  return input;
}

/**
 * `part(x)`, of which only `x` is kept for `backward()`: what is between is computed again then, to the same bits, dropout
 * included. `learning`: the tensors beside `x` that learn in it. All that `part` reads must live until `backward()`, and it
 * must return a new tensor.
 */
export function checkpoint(part: Part, x: Tensor, learning: readonly Tensor[]): Tensor {
  const wanted = learning.filter(({ requiresGrad }) => requiresGrad);
  if (!isGradEnabled() || (!x.requiresGrad && wanted.length === 0)) return part(x);
  return recomputed(x, wanted, part);
}
