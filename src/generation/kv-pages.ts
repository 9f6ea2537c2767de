// The memory of keys and values: per attention layer two blocks of pages, allocated once.
import type { KvStore, LayerLayout } from "../models/step-plan.js";
import { pageSize } from "../models/step-plan.js";
import type { KvLayer } from "../ops/index.js";
import { copyInto, slice } from "../ops/index.js";
import { zeros } from "../tensor/create.js";
import type { Device } from "../tensor/device.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

/** What keys and values are stored as; int8 has a scale for each token and head. */
export type KvDType = "float32" | "float16" | "bfloat16" | "int8";

/** Pages of 16 tokens for every layer of a model. */
export class KvPages implements KvStore, Disposable {
  readonly #layers: KvLayer[];
  readonly #tensors: Tensor[] = [];

  constructor(layout: readonly LayerLayout[], pages: number, dtype: KvDType, device: Device) {
    const make = (shape: number[], dtype: KvDType) => {
      const tensor = keep(zeros(shape, { dtype, device }));
      this.#tensors.push(tensor);
      return tensor;
    };
    this.#layers = layout.map(({ kvHeads, headDim }) => {
      const block = () => make([pages, kvHeads, pageSize, headDim], dtype);
      const scales = () => make([pages, kvHeads, pageSize], "float32");
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

  dispose(): void {
    for (const tensor of this.#tensors) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
