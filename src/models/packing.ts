// Texts of any lengths in one row of ids: no token of it is padding.
import { tensor } from "../tensor/create.js";
import type { Device } from "../tensor/device.js";
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

/** The first tokens of a text, and its last one, which marks the end. */
export function shortened(ids: Int32Array, most: number): Int32Array {
  if (ids.length <= most) return ids;
  const short = ids.slice(0, most);
  short[most - 1] = ids.at(-1) as number;
  return short;
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
