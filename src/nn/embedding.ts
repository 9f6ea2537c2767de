// Embedding and StableEmbedding: rows of a table by id. Their weights keep a 32-bit optimizer state, because
// rare rows see large updates that an 8-bit state does not hold.

import { noGrad } from "../autograd/no-grad.js";
import { cast } from "../ops/cast.js";
import { embedding, embeddingRenorm } from "../ops/embedding.js";
import type { Generator } from "../ops/random.js";
import { copyInto } from "../ops/shape.js";
import { aBoolean, aNumber, aNumberAbove, checkArgument, orNull } from "../tensor/checks.js";
import { zeros } from "../tensor/create.js";
import type { DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { isUninitialized } from "../tensor/placeholder.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { xavierUniform } from "./init.js";
import { LayerNorm } from "./layer-norm.js";
import { aSize, initChecks, place } from "./layer-options.js";
import { Module } from "./module.js";
import { Parameter } from "./parameter.js";

/** Options of `Embedding`. */
export interface EmbeddingOptions {
  /** The row that starts at zero and gets no gradient; negative ones count from the end. */
  paddingIdx?: number | null;
  /** Rows that are looked up are first scaled down, in place, to at most this norm. */
  maxNorm?: number | null;
  /** The p of that norm; default 2. */
  normType?: number;
  /** Whether the gradient of a row is divided by how often its id occurs. */
  scaleGradByFreq?: boolean;
  /** Sparse gradients do not exist here: only false is accepted. */
  sparse?: boolean;
  dtype?: DType;
  device?: DeviceLike;
  /** Source of the initial values; default the global one. */
  generator?: Generator;
}
const embeddingOptions = optionTable<EmbeddingOptions>({
  ...initChecks,
  paddingIdx: orNull(aNumber),
  maxNorm: orNull(aNumberAbove(0)),
  normType: aNumberAbove(0),
  scaleGradByFreq: aBoolean,
  sparse: aBoolean,
});

/**
 * `y[i] = weight[ids[i]]`, ids int32 of any shape. The weight starts Xavier-uniform; an 8-bit optimizer keeps
 * its state in 32 bits.
 *
 * @example
 * const tokens = new Embedding(256, 64);
 * const x = tokens.forward(ids); // ids [batch, seq] -> x [batch, seq, 64]
 */
export class Embedding extends Module {
  readonly numEmbeddings: number;
  readonly embeddingDim: number;
  readonly paddingIdx: number | null;
  readonly maxNorm: number | null;
  readonly normType: number;
  readonly scaleGradByFreq: boolean;
  weight: Parameter; // [numEmbeddings, embeddingDim]

  constructor(numEmbeddings: number, embeddingDim: number, options: EmbeddingOptions = {}) {
    super();
    checkArgument("Embedding", "numEmbeddings", numEmbeddings, aSize);
    checkArgument("Embedding", "embeddingDim", embeddingDim, aSize);
    checkOptions("Embedding", options, embeddingOptions);
    if (options.sparse) {
      throw new BnbError("ERR_BNB_UNSUPPORTED", "Embedding: sparse must be false, got true");
    }
    this.numEmbeddings = numEmbeddings;
    this.embeddingDim = embeddingDim;
    this.paddingIdx = rowOf(options.paddingIdx ?? null, numEmbeddings);
    this.maxNorm = options.maxNorm ?? null;
    this.normType = options.normType ?? 2;
    this.scaleGradByFreq = options.scaleGradByFreq ?? false;
    this.weight = new Parameter(xavierUniform([numEmbeddings, embeddingDim], place(options)));
    this.weight.optimConfig = { optimBits: 32 };
    const padding = this.paddingIdx;
    if (padding !== null && !isUninitialized()) clearRow(this.weight, padding);
  }

  override details(): string {
    return `${this.numEmbeddings}, ${this.embeddingDim}`;
  }

  forward(ids: Tensor): Tensor {
    if (this.maxNorm !== null) embeddingRenorm(ids, this.weight, this.maxNorm, this.normType);
    return embedding(ids, this.weight, { paddingIdx: this.paddingIdx, scaleGradByFreq: this.scaleGradByFreq });
  }
}

/**
 * An Embedding followed by a LayerNorm in float32; the result has the dtype of the weight. The normalization
 * keeps the training of large models with 8-bit optimizers stable.
 */
export class StableEmbedding extends Embedding {
  norm: LayerNorm;

  constructor(numEmbeddings: number, embeddingDim: number, options: EmbeddingOptions = {}) {
    super(numEmbeddings, embeddingDim, options);
    this.norm = new LayerNorm(embeddingDim, options.device ? { device: options.device } : {});
  }

  override forward(ids: Tensor): Tensor {
    const rows = cast(super.forward(ids), "float32");
    return cast(this.norm.forward(rows), this.weight.dtype);
  }
}

function rowOf(paddingIdx: number | null, rows: number): number | null {
  if (paddingIdx === null) return null;
  if (!Number.isInteger(paddingIdx) || paddingIdx < -rows || paddingIdx >= rows) {
    throw new BnbError(
      "ERR_BNB_OPTION",
      `Embedding: paddingIdx must be an integer in [${-rows}, ${rows}), got ${paddingIdx}`,
    );
  }
  return paddingIdx < 0 ? paddingIdx + rows : paddingIdx;
}

function clearRow(weight: Parameter, row: number): void {
  noGrad(() =>
    tidy(() => {
      const dim = weight.shape[1] ?? 0;
      copyInto(weight, zeros([1, dim], { dtype: weight.dtype, device: weight.device }), { axis: 0, start: row });
    }),
  );
}
