// NEFTune (Jain et al., 2023): uniform noise on the embeddings of a batch while it trains, by alpha / sqrt(length * width).
import type { Module } from "../nn/index.js";
import { Embedding } from "../nn/index.js";
import { add, cast, mul, rand, reshape } from "../ops/index.js";
import { AdapterLayer } from "../peft/adapter-layer.js";
import { tensor } from "../tensor/create.js";
import type { Tensor } from "../tensor/tensor.js";

/** Noise for the token embedding of a model; `remove` takes it away. */
export class EmbeddingNoise {
  readonly #embedding: Module & { forward(ids: Tensor): Tensor };
  readonly #alpha: number;
  /** Rows of each sample of the batch that is being computed; null: no noise. */
  bounds: Int32Array | null = null;

  /** The embedding of tokens is the first of the model, in all families; adapters may stand around it. */
  constructor(model: Module, alpha: number) {
    const found = model.modules().find((module) => {
      return module instanceof Embedding || (module instanceof AdapterLayer && module.baseLayer instanceof Embedding);
    });
    this.#embedding = found as Module & { forward(ids: Tensor): Tensor };
    this.#alpha = alpha;
    const forward = this.#embedding.forward.bind(this.#embedding);
    Object.defineProperty(this.#embedding, "forward", {
      configurable: true,
      enumerable: false,
      value: (ids: Tensor): Tensor => this.#noisy(forward(ids)),
    });
  }

  remove(): void {
    Reflect.deleteProperty(this.#embedding, "forward");
  }

  #noisy(x: Tensor): Tensor {
    const { bounds } = this;
    // Position embeddings have as many rows, but are not in the first table.
    if (bounds === null || x.size === 0) return x;
    const width = x.shape.at(-1) as number;
    const scale = new Float32Array(x.size / width);
    for (let i = 0; i + 1 < bounds.length; i++) {
      const [start, end] = [bounds[i] as number, bounds[i + 1] as number];
      scale.fill(this.#alpha / Math.sqrt((end - start) * width), start, end);
    }
    const noise = rand(x.shape, { low: -1, high: 1, device: x.device });
    const scales = reshape(tensor(scale, { device: x.device }), [...x.shape.slice(0, -1), 1]);
    return add(x, cast(mul(noise, scales), x.dtype));
  }
}
