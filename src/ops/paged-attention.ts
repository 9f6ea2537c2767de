// Attention of the last tokens of any sequences over their pages of keys and values.
import { isGradEnabled } from "../autograd/no-grad.js";
import { addon } from "../tensor/addon.js";
import {
  aFiniteNumber,
  aNumberAbove,
  anInteger,
  anObject,
  aTensor,
  checkArgument,
  checkTensor,
} from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";
import type { KvLayer } from "./kv-append.js";
import { pagesOf } from "./kv-append.js";

/** Which rows belong to which of S sequences, and where their keys and values lie: int32, on the device. */
export interface PageTable {
  /** [S + 1] first row of each sequence. */
  readonly starts: Tensor;
  /** [S] keys in use, those of the rows included. */
  readonly lengths: Tensor;
  /** [S, maxPages] the pages of each sequence in order; what lies beyond its length is not read. */
  readonly pages: Tensor;
}

/** What becomes of the scores. */
export interface PagedAttentionOptions {
  /** Factor of the scores; default 1 / sqrt(D). */
  scale?: number;
  /** How many keys a query sees, its own included; default all before it. */
  window?: number;
  /** c: a scaled score s becomes `c * tanh(s / c)`. */
  softcap?: number;
  /** float32 [H]: one more logit per head in the denominator of the softmax, which has no value. */
  sinks?: Tensor;
}
const pagedAttentionOptions = optionTable<PagedAttentionOptions>({
  scale: aFiniteNumber,
  window: anInteger(1),
  softcap: aNumberAbove(0),
  sinks: aTensor,
});

/**
 * Causal attention of q [tokens, H, D] over pages. Rows starts[s] to starts[s + 1] of q are the last ones of sequence s,
 * which has lengths[s] keys: single tokens of some sequences and chunks of prompts of others share a call. Each of the
 * Hkv heads of the layer serves H / Hkv heads of q. Gives [tokens, H, D] in the dtype of q.
 *
 * Rows that no sequence has give zeros. Nothing of the table is read by JavaScript; what does not fit (a page that is
 * not there, more rows than keys) is reported at the next read. There is no gradient: throws ERR_BNB_ARGUMENT where one
 * is wanted.
 *
 * @example
 * const y = pagedAttention(turned, layer, plan, { window: 4096 });
 */
export function pagedAttention(
  q: Tensor,
  layer: KvLayer,
  table: PageTable,
  options: PagedAttentionOptions = {},
): Tensor {
  const op = "pagedAttention";
  checkTensor(op, "q", q);
  checkArgument(op, "table", table, anObject);
  checkOptions(op, options, pagedAttentionOptions);
  if (isGradEnabled() && q.requiresGrad) {
    throw new BnbError("ERR_BNB_ARGUMENT", `${op}: no gradient goes through pages, call it inside noGrad`);
  }
  const { scale = 1 / Math.sqrt(q.shape[2] ?? 1), window = 0, softcap = 0, sinks = null } = options;
  const { starts, lengths, pages } = table;
  const [y] = run(
    addon.pagedAttention,
    q,
    ...pagesOf(op, layer),
    starts,
    lengths,
    pages,
    scale,
    window,
    softcap,
    sinks,
  );
  return y;
}
