// Scaled dot-product attention with grouped key and value heads.
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { aBoolean, aFiniteNumber, aNumberAbove, anInteger, aTensor, checkTensor } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** How queries and keys meet. */
export interface AttentionOptions {
  /** Whether a query sees only keys up to its own position; default true. */
  causal?: boolean;
  /** Factor of the scores; default 1 / sqrt(D). */
  scale?: number;
  /** w: a query at position p sees keys j with p - w < j <= p, and those with |p - j| < w when not causal. */
  window?: number;
  /** c: a scaled score s becomes `c * tanh(s / c)` (Gemma 2). */
  softcap?: number;
  /** float32 [H]: one more logit per head in the denominator of the softmax, which has no value. It gets a gradient. */
  sinks?: Tensor;
  /**
   * int32 [N + 1], for samples packed into one batch entry with T = S: tokens starts[i] to starts[i + 1] are sample i and
   * see each other only. Tokens of no sample give zeros. Read by the kernel: bounds that make no sense are reported at
   * the next read.
   */
  starts?: Tensor;
}
const attentionOptions = optionTable<AttentionOptions>({
  causal: aBoolean,
  scale: aFiniteNumber,
  window: anInteger(1),
  softcap: aNumberAbove(0),
  sinks: aTensor,
  starts: aTensor,
});

type Settings = readonly [scale: number, causal: boolean, window: number, softcap: number];

const attend = defineOp<
  [q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | null, settings: Settings, starts: Tensor | null],
  [
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    lse: Tensor,
    settings: Settings,
    sinks: Tensor | null,
    starts: Tensor | null,
  ]
>({
  name: "attention",
  forward(ctx, q, k, v, sinks, settings, starts) {
    const wanted = ctx.needs(0) || ctx.needs(1) || ctx.needs(2) || ctx.needs(3);
    const [y, lse] = run(addon.attention, q, k, v, ...settings, sinks, starts, wanted);
    if (lse) {
      ctx.save(q, k, v, y, lse, settings, sinks, starts);
      lse.dispose();
    }
    return y;
  },
  backward(ctx, dy) {
    const [q, k, v, y, lse, settings, sinks, starts] = ctx.saved;
    const [dq, dk, dv, dsinks] = run(addon.attentionBackward, q, k, v, y, lse, dy, ...settings, sinks, starts);
    return [dq, dk, dv, dsinks, null];
  },
});

/**
 * softmax(scale * q k^T) v for q[B, T, H, D], k and v[B, S, Hkv, D], where each of the Hkv heads serves H / Hkv heads
 * of q. Query i sits at position S - T + i. Gives [B, T, H, D]; a query that sees no key gives zeros.
 *
 * @example
 * const y = attention(q, k, v, { starts, window: 4096 }); // packed samples, Mistral's window
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  checkTensor("attention", "q", q);
  checkTensor("attention", "k", k);
  checkOptions("attention", options, attentionOptions);
  const { causal = true, scale = 1 / Math.sqrt(q.shape[3] ?? 1), window = 0, softcap = 0 } = options;
  const settings = [scale, causal, window, softcap] as const;
  return attend(q, k, v, options.sinks ?? null, settings, options.starts ?? null);
}
