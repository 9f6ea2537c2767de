// A mixture of experts whose weights are frozen, each a gated MLP.
import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import type { Check } from "../tensor/checks.js";
import { anInstance, anObject, arrayOf, checkArgument } from "../tensor/checks.js";
import { NativeObject } from "../tensor/native-object.js";
import { ExpertWeights, Quantized4Bit } from "../tensor/quantized.js";
import { run } from "../tensor/run.js";
import { Tensor } from "../tensor/tensor.js";
import type { ExpertChoice } from "./choose-experts.js";

const aMatrix: Check = {
  rule: "a Tensor or a Quantized4Bit",
  holds: (v) => NativeObject.is(v) && (v instanceof Tensor || v instanceof Quantized4Bit),
};
const matrices = arrayOf(aMatrix);

/**
 * The matrices of E experts behind one handle: gates and ups of shape [width, hidden], downs [hidden, width], all 4-bit
 * or all floats of one dtype. They are frozen: no gradient reaches them. Their memory lives as long as the result.
 * Throws ERR_BNB_ARGUMENT for lists of different lengths, ERR_BNB_SHAPE and ERR_BNB_DTYPE for unlike matrices.
 */
export function expertWeights(
  gates: readonly (Tensor | Quantized4Bit)[],
  ups: readonly (Tensor | Quantized4Bit)[],
  downs: readonly (Tensor | Quantized4Bit)[],
): ExpertWeights {
  for (const [name, list] of Object.entries({ gates, ups, downs })) {
    checkArgument("expertWeights", name, list, matrices);
  }
  const [weights] = run(addon.expertWeights, gates, ups, downs);
  return weights;
}

type Saved = [x: Tensor, shares: Tensor, experts: Tensor, weights: ExpertWeights];

const mixture = defineOp({
  name: "expertsSwiglu",

  forward(
    ctx: OpContext<Saved>,
    x: Tensor,
    shares: Tensor,
    experts: Tensor,
    weights: ExpertWeights,
    residual: Tensor | null,
  ) {
    const [y] = run(addon.expertsSwiglu, x, shares, experts, weights, residual);
    ctx.save(x, shares, experts, weights);
    return y;
  },

  backward(ctx, dy) {
    const [dx, dshares] = run(addon.expertsSwigluBackward, dy, ...ctx.saved);
    return [dx, dshares, null, dy];
  },
});

const aWeights = anInstance(() => ExpertWeights, "ExpertWeights");

/**
 * `residual + the sum of share * down(silu(gate(x)) * up(x))` over the experts that each token chose (Shazeer et al.,
 * 2017; Jiang et al., 2024). Only those are computed, and nothing waits for the choice.
 *
 * x and residual [T, hidden] of one float dtype, `choice` of `chooseExperts`. Products and sums are float32, rounded once.
 * The gradient reaches x, the shares and the residual; the weights must stay alive until `backward()` has run. An expert
 * outside [0, E) is an error at the next read.
 */
export function expertsSwiglu(
  x: Tensor,
  choice: ExpertChoice,
  weights: ExpertWeights,
  residual: Tensor | null = null,
): Tensor {
  checkArgument("expertsSwiglu", "choice", choice, anObject);
  checkArgument("expertsSwiglu", "weights", weights, aWeights);
  return mixture(x, choice.shares, choice.experts, weights, residual);
}
