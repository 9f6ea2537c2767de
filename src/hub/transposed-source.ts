// Matrices that files hold the other way around: GPT-2's [in, out], where a linear layer has [out, in].
import { noGrad } from "../autograd/no-grad.js";
import { transpose } from "../ops/index.js";
import type { Tensor } from "../tensor/tensor.js";
import type { LoadOptions, TensorInfo, TensorSource } from "./source.js";

/** The tensors of `source`, some of them transposed. Closing it closes the source. */
export class TransposedSource implements TensorSource {
  readonly #source: TensorSource;
  readonly #isTransposed: (name: string) => boolean;

  constructor(source: TensorSource, isTransposed: (name: string) => boolean) {
    this.#source = source;
    this.#isTransposed = isTransposed;
  }

  names(): IterableIterator<string> {
    return this.#source.names();
  }
  has(name: string): boolean {
    return this.#source.has(name);
  }
  info(name: string): TensorInfo {
    const info = this.#source.info(name);
    return this.#isTransposed(name) ? { ...info, shape: [...info.shape].reverse() } : info;
  }
  async load(name: string, options?: LoadOptions): Promise<Tensor> {
    const stored = await this.#source.load(name, options);
    if (!this.#isTransposed(name) || stored.ndim !== 2) return stored;
    try {
      return noGrad(() => transpose(stored));
    } finally {
      stored.dispose();
    }
  }
  /** As they are in the file. */
  bytes(name: string, begin?: number, end?: number): Promise<Uint8Array> {
    return this.#source.bytes(name, begin, end);
  }
  close(): Promise<void> {
    return this.#source.close();
  }
}
