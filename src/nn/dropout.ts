// Dropout: active while the module trains, the identity in evaluation.

import { dropout } from "../ops/dropout.js";
import type { Generator } from "../ops/random.js";
import { aGenerator, defaultGenerator } from "../ops/random.js";
import { aNumberIn, checkArgument } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import { Module } from "./module.js";

const dropoutOptions = optionTable<{ generator?: Generator }>({ generator: aGenerator });

/** Sets each element to zero with probability `p` and scales the others by `1 / (1 - p)`, in training only. */
export class Dropout extends Module {
  readonly p: number;
  readonly #generator: Generator | undefined;

  constructor(p = 0.5, options: { generator?: Generator } = {}) {
    super();
    checkArgument("Dropout", "p", p, aNumberIn(0, 1));
    checkOptions("Dropout", options, dropoutOptions);
    this.p = p;
    this.#generator = options.generator;
  }

  /** @internal What it draws from. */
  get generator(): Generator {
    return this.#generator ?? defaultGenerator;
  }

  override details(): string {
    return `p=${this.p}`;
  }

  forward(x: Tensor): Tensor {
    return dropout(x, this.p, { training: this.training, generator: this.generator });
  }
}
