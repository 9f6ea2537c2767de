// A checkpoint under other names: for models whose files call their tensors differently.
import type { Tensor } from "../tensor/tensor.js";
import { formatError } from "./safetensors-header.js";
import type { LoadOptions, TensorInfo, TensorSource } from "./source.js";

/** The tensors of `source` under new names. Closing it closes the source. */
export class RenamedSource implements TensorSource {
  readonly #source: TensorSource;
  readonly #originals = new Map<string, string>();

  /** `rename` gives the name of each tensor, or null for one that is left out. Throws ERR_BNB_FORMAT when two meet. */
  constructor(source: TensorSource, rename: (name: string) => string | null) {
    this.#source = source;
    for (const original of source.names()) {
      const name = rename(original);
      if (name === null) continue;
      const other = this.#originals.get(name);
      if (other !== undefined) {
        const both = `${JSON.stringify(other)} and ${JSON.stringify(original)}`;
        throw formatError(source.info(original).file, `tensors ${both} are both ${JSON.stringify(name)} of the model`);
      }
      this.#originals.set(name, original);
    }
  }

  names(): IterableIterator<string> {
    return this.#originals.keys();
  }
  has(name: string): boolean {
    return this.#originals.has(name);
  }
  info(name: string): TensorInfo {
    return this.#source.info(this.#original(name));
  }
  async load(name: string, options?: LoadOptions): Promise<Tensor> {
    return this.#source.load(this.#original(name), options);
  }
  async bytes(name: string, begin?: number, end?: number): Promise<Uint8Array> {
    return this.#source.bytes(this.#original(name), begin, end);
  }
  close(): Promise<void> {
    return this.#source.close();
  }

  // What no tensor is called is left to the source to refuse.
  #original(name: string): string {
    return this.#originals.get(name) ?? name;
  }
}
