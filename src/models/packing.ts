// Texts of any lengths in one row of ids: no token of it is padding.
import { noGrad } from "../autograd/no-grad.js";
import { add, argmax, cast, concat, mul, reshape, sum } from "../ops/index.js";
import { arange, tensor } from "../tensor/create.js";
import type { Device } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

/** Tokens that are worth computing together: more would only take memory. */
const BATCH_TOKENS = 8192;

/** Texts side by side: `ids` [1, tokens], of which rows starts[i] to starts[i + 1] are text i. */
export interface PackedTexts {
  readonly ids: Tensor;
  readonly starts: Tensor; // int32 [texts + 1]
  /** The same in JavaScript's memory. */
  readonly bounds: Int32Array;
}

export function packTexts(texts: readonly Int32Array[], device: Device): PackedTexts {
  const bounds = new Int32Array(texts.length + 1);
  texts.forEach((text, i) => {
    bounds[i + 1] = (bounds[i] as number) + text.length;
  });
  const all = new Int32Array(bounds.at(-1) as number);
  texts.forEach((text, i) => {
    all.set(text, bounds[i]);
  });
  return { ids: tensor(all, { shape: [1, all.length], device }), starts: tensor(bounds, { device }), bounds };
}

/**
 * Rows of padded texts as packed samples: of each row what is before its text, its text, and what is behind. `mask` as ids
 * [rows, length], 1 where a token is one of the text, whose tokens stand together.
 */
export function packRows(ids: Tensor, mask: Tensor): { readonly ids: Tensor; readonly starts: Tensor; firsts: Tensor } {
  const [rows, length] = ids.shape as [number, number];
  const { device } = ids;
  return noGrad(() =>
    tidy(() => {
      const isText = cast(mask, "float32");
      const row = mul(arange(0, rows, 1, { device, dtype: "int32" }), length);
      const firsts = add(row, argmax(isText, { axis: 1 }));
      const ends = add(firsts, cast(sum(isText, { axis: 1 }), "int32"));
      const each = [row, firsts, ends].map((column) => reshape(column, [rows, 1]));
      const starts = concat(
        [reshape(concat(each, 1), [3 * rows]), tensor(Int32Array.of(rows * length), { device })],
        0,
      );
      return { ids: reshape(ids, [1, rows * length]), starts, firsts };
    }),
  );
}

/** The first tokens of a text, and its last one, which marks the end. */
export function shortened(ids: Int32Array, most: number): Int32Array {
  if (ids.length <= most) return ids;
  const short = ids.slice(0, most);
  short[most - 1] = ids.at(-1) as number;
  return short;
}

/** Throws ERR_BNB_ARGUMENT for a text of which nothing is left: a tokenizer need not mark where one begins and ends. */
export function refuseEmpty(op: string, texts: readonly { readonly length: number }[]): void {
  const at = texts.findIndex(({ length }) => length === 0);
  if (at >= 0) throw new BnbError("ERR_BNB_ARGUMENT", `${op}: texts must have at least one token, got none at ${at}`);
}

/** Texts in groups to be computed together, in order; at least one. */
export function inBatches<T extends { readonly length: number }>(texts: readonly T[]): T[][] {
  const batches: T[][] = [[]];
  let tokens = 0;
  for (const text of texts) {
    if (tokens > 0 && tokens + text.length > BATCH_TOKENS) {
      batches.push([]);
      tokens = 0;
    }
    (batches.at(-1) as T[]).push(text);
    tokens += text.length;
  }
  return batches;
}
