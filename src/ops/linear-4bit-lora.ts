// A frozen 4-bit linear layer with a low-rank adapter (QLoRA, Dettmers et al., 2023) as one op.
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { dtypeCode } from "../tensor/dtype.js";
import type { Quantized4Bit } from "../tensor/quantized.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Generator, GeneratorState } from "./random.js";

/** What is done to an adapter's product. */
export interface AdapterScale {
  readonly scaling: number;
  /** Probability of dropping an element of x before A. */
  readonly p: number;
  readonly generator: Generator;
}

const product = defineOp<
  [
    x: Tensor,
    weight: Quantized4Bit,
    bias: Tensor | null,
    residual: Tensor | null,
    a: Tensor,
    b: Tensor,
    scale: AdapterScale,
  ],
  [
    x: Tensor,
    weight: Quantized4Bit,
    low: Tensor,
    a: Tensor,
    b: Tensor,
    biasDtype: number,
    scale: AdapterScale,
    state: GeneratorState,
  ]
>({
  name: "linear4bitLora",
  forward(ctx, x, weight, bias, residual, a, b, scale) {
    const { scaling, p, generator } = scale;
    const state = generator.state;
    const { seed, offset } = state;
    const [y, low] = run(addon.linear4bitLora, x, weight, bias, residual, a, b, scaling, p, seed, offset);
    if (p > 0) generator.take(x.size);
    ctx.save(x, weight, low, a, b, dtypeCode(bias?.dtype ?? "float32"), scale, state);
    low.dispose();
    return y;
  },
  // With s = scaling, d = dropout and h = s d(x) A^T: dx = dy W + d(s (dy B) A), dA = s (dy B)^T d(x), dB = dy^T h.
  backward(ctx, dy) {
    const [x, weight, low, a, b, biasDtype, { scaling, p }, { seed, offset }] = ctx.saved;
    const wants = [ctx.needs(0), ctx.needs(1), ctx.needs(3), ctx.needs(4)] as const;
    const [dx, dbias, da, db] = run(
      addon.linear4bitLoraBackward,
      ...([dy, x, weight, low, a, b, scaling, p, seed, offset, biasDtype, ...wants] as const),
    );
    return [dx, dbias, dy, da, db];
  },
});

/**
 * `y = x W^T + bias + residual + scaling * dropout(x) a^T b^T` with W = dequantize(weight). x [..., K] and residual [..., N]
 * float32, float16 or bfloat16 of one dtype; a [r, K] and b [N, r] of another or the same. All sums are float32; y has the
 * dtype of x. Gradients reach all but the weight. Of x nothing is kept but x itself: what dropout left is made again.
 *
 * @internal
 */
export function linear4bitLora(
  x: Tensor,
  weight: Quantized4Bit,
  bias: Tensor | null,
  residual: Tensor | null,
  { a, b, ...scale }: AdapterScale & { readonly a: Tensor; readonly b: Tensor },
): Tensor {
  return product(x, weight, bias, residual, a, b, scale);
}
