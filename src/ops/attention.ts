// Scaled dot-product attention with grouped key and value heads.
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { aBoolean, aFiniteNumber, anInteger, aTensor, checkTensor } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** How queries and keys meet. */
export interface AttentionOptions {
  /** Whether a query sees only keys up to its own position; default true. */
  causal?: boolean;
  /** Factor of the scores; default 1 / sqrt(D). */
  scale?: number;
  /** How many of the S keys are in use, as in a cache that is filled step by step; default all. */
  length?: number;
  /**
   * An int32 tensor [1] that the kernel reads: the position of the first query, so that `position + T` keys are in use;
   * then `length` is not given. For inference.
   */
  position?: Tensor;
}
const attentionOptions = optionTable<AttentionOptions>({
  causal: aBoolean,
  scale: aFiniteNumber,
  length: anInteger(0),
  position: aTensor,
});

type Settings = readonly [scale: number, causal: boolean, length: number];

const attend = defineOp<
  [q: Tensor, k: Tensor, v: Tensor, settings: Settings, position: Tensor | null],
  [q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, settings: Settings]
>({
  name: "attention",
  forward(ctx, q, k, v, settings, position) {
    const wanted = ctx.needs(0) || ctx.needs(1) || ctx.needs(2);
    const [y, lse] = run(addon.attention, q, k, v, ...settings, wanted, position);
    if (lse) {
      ctx.save(q, k, v, y, lse, settings);
      lse.dispose();
    }
    return y;
  },
  backward(ctx, dy) {
    const [q, k, v, y, lse, settings] = ctx.saved;
    return [...run(addon.attentionBackward, q, k, v, y, lse, dy, ...settings), null];
  },
});

/**
 * softmax(scale * q k^T) v for q[B, T, H, D], k and v[B, S, Hkv, D], where each of the Hkv heads serves H / Hkv heads
 * of q. Query i sits at position length - T + i. Gives [B, T, H, D].
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  checkTensor("attention", "q", q);
  checkTensor("attention", "k", k);
  checkOptions("attention", options, attentionOptions);
  const { causal = true, scale = 1 / Math.sqrt(q.shape[3] ?? 1), position } = options;
  const length = options.length ?? (position ? q.shape[1] : k.shape[1]) ?? 0;
  return attend(q, k, v, [scale, causal, length], position ?? null);
}
