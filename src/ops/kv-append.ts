// Keys and values on their way into the pages of a layer, with the turn of rotary embedding.
import { isGradEnabled } from "../autograd/no-grad.js";
import { addon } from "../tensor/addon.js";
import { anObject, aTensor, checkArgument } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/**
 * The keys and values of one layer, in pages of 16 tokens: [pages, kvHeads, 16, headDim], float32, float16, bfloat16 or
 * int8. int8 codes are symmetric, one float32 scale [pages, kvHeads, 16] a token and head: `x = code * scale`.
 */
export interface KvLayer {
  readonly keys: Tensor;
  readonly values: Tensor;
  readonly keyScales?: Tensor;
  readonly valueScales?: Tensor;
}

/** The angles of rotary embedding (tables float32 [P, R/2], as `rope` has them) and each token's position int32 [tokens]. */
export interface TokenRotary {
  readonly cos: Tensor;
  readonly sin: Tensor;
  readonly positions: Tensor;
}

/**
 * Gives q [tokens, H, D] turned as `rope` turns it, and writes to the pages of `layer` k [tokens, Hkv, D] turned and v
 * as it is: token t at `slots[t]` (int32 [tokens]), which is page * 16 + row; a negative slot writes nothing. With null
 * for `rotary` nothing turns. What is written is rounded once to the dtype of the pages; int8 codes are
 * `rint(x * 127 / absmax)` of a head, with the scale `absmax / 127`.
 *
 * There is no gradient: throws ERR_BNB_ARGUMENT where one is wanted. Slots and positions that are out of range are
 * reported at the next read.
 *
 * @example
 * const turned = kvAppend(q, k, v, layer, plan.slots, { cos, sin, positions: plan.positions });
 */
export function kvAppend(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  layer: KvLayer,
  slots: Tensor,
  rotary: TokenRotary | null,
): Tensor {
  const op = "kvAppend";
  if (isGradEnabled() && [q, k, v].some((x) => x?.requiresGrad)) {
    throw new BnbError("ERR_BNB_ARGUMENT", `${op}: no gradient goes through pages, call it inside noGrad`);
  }
  const pages = pagesOf(op, layer);
  const angles = rotary === null ? [null, null, null] : anglesOf(op, rotary);
  const [turned] = run(addon.kvAppend, q, k, v, ...pages, slots, ...(angles as [Tensor, Tensor, Tensor]));
  return turned;
}

type Pages = [keys: Tensor, values: Tensor, keyScales: Tensor | null, valueScales: Tensor | null];

/** @internal The tensors of a layer, as native ops take them. */
export function pagesOf(op: string, layer: KvLayer): Pages {
  checkArgument(op, "layer", layer, anObject);
  const { keys, values, keyScales = null, valueScales = null } = layer;
  return [keys, values, keyScales, valueScales];
}

function anglesOf(op: string, rotary: TokenRotary): [Tensor, Tensor, Tensor] {
  checkArgument(op, "rotary", rotary, anObject);
  for (const name of ["cos", "sin", "positions"] as const) checkArgument(op, `rotary.${name}`, rotary[name], aTensor);
  return [rotary.cos, rotary.sin, rotary.positions];
}
