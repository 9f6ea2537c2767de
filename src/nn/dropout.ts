// Dropout: active while the module trains, the identity in evaluation.

import { dropout } from "../ops/dropout.js";
import type { Generator } from "../ops/random.js";
import type { Tensor } from "../tensor/tensor.js";
import { Module } from "./module.js";

/** Sets each element to zero with probability `p` and scales the others by `1 / (1 - p)`, in training only. */
export class Dropout extends Module {
  readonly p: number;
  readonly #generator: Generator | undefined;

  constructor(p = 0.5, options: { generator?: Generator } = {}) {
    super();
    this.p = p;
    this.#generator = options.generator;
  }

  forward(x: Tensor): Tensor {
    return dropout(x, this.p, { training: this.training, ...(this.#generator && { generator: this.#generator }) });
  }
}
