// The memory of keys and values: per attention layer two blocks of pages, allocated once.
import type { KvStore, LayerLayout } from "../models/step-plan.js";
import { pageSize } from "../models/step-plan.js";
import type { KvLayer } from "../ops/index.js";
import { copyInto, slice } from "../ops/index.js";
import { aDevice, anInteger, anObject, arrayOf, checkArgument, oneOf, required } from "../tensor/checks.js";
import { zeros } from "../tensor/create.js";
import type { DeviceLike } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import { notCloneable, refuseJson } from "../tensor/native-only.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

/** What keys and values are stored as; int8 has a scale for each token and head. */
export type KvDType = "float32" | "float16" | "bfloat16" | "int8";

/** How much a KvPages holds, and as what. */
export interface KvPagesOptions {
  /** Pages of 16 tokens. */
  pages: number;
  /** Default float32. */
  dtype?: KvDType;
  /** Of layers whose layout names none. Default the default device. */
  device?: DeviceLike;
}

/** @internal */
export const kvDtypeCheck = oneOf(["float32", "float16", "bfloat16", "int8"]);
const pagesOptions = optionTable<KvPagesOptions>({
  pages: required(anInteger(0)),
  dtype: kvDtypeCheck,
  device: aDevice,
});

/**
 * Pages of 16 tokens for every attention layer of a model (`model.kvLayout()`). Owns its memory until `dispose()`.
 *
 * @example
 * using kv = new KvPages(model.kvLayout(), { pages: 64, dtype: "bfloat16" });
 */
export class KvPages implements KvStore, Disposable {
  readonly #layers: KvLayer[];
  readonly #tensors: Tensor[] = [];

  /** @internal */
  readonly transfer: typeof notCloneable = notCloneable;

  constructor(layout: readonly LayerLayout[], options: KvPagesOptions) {
    checkArgument("KvPages", "layout", layout, arrayOf(anObject));
    checkOptions("KvPages", options ?? null, pagesOptions);
    const { pages, dtype = "float32", device } = options;
    if (dtype === "int8" && layout.some(({ isExact }) => isExact)) {
      const rule =
        "KvPages: dtype must be float32, float16 or bfloat16 for a model with alibi, whose keys hold positions";
      throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got int8`);
    }
    const make = (shape: number[], dtype: KvDType, device: DeviceLike | undefined) => {
      const tensor = keep(zeros(shape, { dtype, device }));
      this.#tensors.push(tensor);
      return tensor;
    };
    this.#layers = layout.map(({ kvHeads, headDim, device: own = device }) => {
      const block = () => make([pages, kvHeads, pageSize, headDim], dtype, own);
      const scales = () => make([pages, kvHeads, pageSize], "float32", own);
      const layer = { keys: block(), values: block() };
      return dtype === "int8" ? { ...layer, keyScales: scales(), valueScales: scales() } : layer;
    });
  }

  layer(index: number): KvLayer {
    return this.#layers[index] as KvLayer;
  }

  /** Makes page `to` what page `from` is, in every layer. */
  copy(from: number, to: number): void {
    tidy(() => {
      for (const tensor of this.#tensors) copyInto(slice(tensor, 0, to, to + 1), slice(tensor, 0, from, from + 1));
    });
  }

  /** Throws ERR_BNB_UNSUPPORTED: JSON would hold no element. */
  toJSON(): never {
    refuseJson("a KvPages");
  }

  dispose(): void {
    for (const tensor of this.#tensors) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
