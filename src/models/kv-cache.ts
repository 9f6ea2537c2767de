// Keys and values of every position seen so far, one pair of preallocated buffers per layer: a token writes one
// row into each and nothing is reallocated or copied while the text grows.
import { copyInto } from "../ops/index.js";
import { aDevice, aDType, anInteger, required } from "../tensor/checks.js";
import { zeros } from "../tensor/create.js";
import type { DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { keep } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

/** Sizes of a cache. */
export interface KvCacheOptions {
  layers: number;
  batch: number;
  maxLength: number;
  kvHeads: number;
  headDim: number;
  dtype?: DType;
  device?: DeviceLike;
}

const sizes = required(anInteger(0));
const cacheOptions = optionTable<KvCacheOptions>({
  layers: sizes,
  batch: sizes,
  maxLength: sizes,
  kvHeads: sizes,
  headDim: sizes,
  dtype: aDType,
  device: aDevice,
});

/** What attention reads: whole buffers, of which the first `length` positions are valid. */
export interface CachedKeysValues {
  keys: Tensor; // [batch, maxLength, kvHeads, headDim]
  values: Tensor; // [batch, maxLength, kvHeads, headDim]
  length: number;
  /** Where the first new position sits, when only the device knows: `length` then counts the new ones alone. */
  position?: Tensor;
}

/**
 * The key-value cache of one generation.
 *
 * Owns its buffers until `dispose()`; no gradient flows through it.
 */
export class KvCache implements Disposable {
  readonly maxLength: number;
  readonly #keys: Tensor[] = [];
  readonly #values: Tensor[] = [];
  #length = 0;
  #position: Tensor | null = null;

  constructor(options: KvCacheOptions) {
    checkOptions("KvCache", options ?? null, cacheOptions);
    const { layers, batch, maxLength, kvHeads, headDim, dtype = "float32", device } = options;
    this.maxLength = maxLength;
    for (let i = 0; i < layers; i++) {
      this.#keys.push(keep(zeros([batch, maxLength, kvHeads, headDim], { dtype, device })));
      this.#values.push(keep(zeros([batch, maxLength, kvHeads, headDim], { dtype, device })));
    }
  }

  /** Positions filled so far; the next token sits at this position. */
  get length(): number {
    return this.#length;
  }

  /** Where the next token goes, for ops that take a position: a number, or the tensor given to `readPositionFrom`. */
  get position(): number | Tensor {
    return this.#position ?? this.#length;
  }

  /**
   * From now on kernels read the position from an int32 tensor [1] on the device, which must be kept at `length`; null
   * ends it. For recorded graphs, where a number would stay what it was. The tensor stays the caller's.
   */
  readPositionFrom(tensor: Tensor | null): void {
    this.#position = tensor;
  }

  /** Writes keys and values of `t` new positions of one layer behind those already there. */
  append(layer: number, k: Tensor, v: Tensor): CachedKeysValues {
    const cached = this.extend(layer, k.shape[1] as number);
    copyInto(cached.keys, k, { axis: 1, start: this.position });
    copyInto(cached.values, v, { axis: 1, start: this.position });
    return cached;
  }

  /** What attention reads once the caller has written `added` new positions of one layer, from `position` on. */
  extend(layer: number, added: number): CachedKeysValues {
    const keys = this.#keys[layer] as Tensor;
    const values = this.#values[layer] as Tensor;
    if (this.#length + added > this.maxLength) {
      throw new BnbError(
        "ERR_BNB_SHAPE",
        `kvCache: at most ${this.maxLength} positions fit, got ${this.#length} + ${added}`,
      );
    }
    return this.#position
      ? { keys, values, length: added, position: this.#position }
      : { keys, values, length: this.#length + added };
  }

  /** Counts `t` positions as filled, once every layer has appended them. */
  advance(t: number): void {
    this.#length += t;
  }

  dispose(): void {
    for (const buffer of [...this.#keys, ...this.#values]) buffer.dispose();
    this.#keys.length = 0;
    this.#values.length = 0;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
