// The output projection in int8 or 4 bits while a model runs: a copy beside the float weight, which checkpoints keep.
import { noGrad } from "../autograd/no-grad.js";
import type { UnaryModule } from "../nn/index.js";
import { Linear, Linear4bit, Linear8bitLt } from "../nn/index.js";
import { firstNonFinite } from "../ops/non-finite.js";
import { oneOf } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { uninitialized } from "../tensor/placeholder.js";
import { tidy } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";

/** How `quantizeHead` holds the weight. */
export type HeadFormat = "int8" | "nf4" | "fp4";
/** @internal */
export const aHeadFormat = oneOf(["int8", "nf4", "fp4"]);

/** What a head is made of: a layer, or the weight [vocab, hidden] that it shares with the embedding. */
export type OutputProjection = UnaryModule | Tensor;

/** The copy; it follows its source where that changes. */
export class QuantizedHead {
  readonly format: HeadFormat;
  readonly layer: Linear4bit | Linear8bitLt;
  // What the copy was made from.
  #source: { weight: Tensor; bias: Tensor | null; versions: string } | null = null;

  /** Throws ERR_BNB_UNSUPPORTED for a layer that is quantized already or has adapters, ERR_BNB_NONFINITE. */
  constructor(format: HeadFormat, source: OutputProjection) {
    const { weight, bias } = partsOf(source);
    const [vocab, hidden] = weight.shape as [number, number];
    this.format = format;
    const common = { bias: bias !== null, dtype: weight.dtype, device: weight.device };
    this.layer = uninitialized(() =>
      format === "int8"
        ? new Linear8bitLt(hidden, vocab, { ...common, hasFp16Weights: false, threshold: OUTLIERS })
        : new Linear4bit(hidden, vocab, { ...common, quantType: format, compressStatistics: false }),
    );
    try {
      this.#follow(source);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Logits [..., vocab] of hidden states, without a gradient. */
  forward(hidden: Tensor, source: OutputProjection): Tensor {
    this.#follow(source);
    return this.layer.forward(hidden);
  }

  dispose(): void {
    this.layer.dispose();
  }

  #follow(source: OutputProjection): void {
    const { weight, bias } = partsOf(source);
    const versions = `${weight.version} ${bias?.version}`;
    const known = this.#source;
    if (known?.weight === weight && known.bias === bias && known.versions === versions) return;
    const bad = tidy(() => firstNonFinite(weight));
    if (bad) {
      const rule = "quantizeHead: the weight of the head must be finite";
      throw new BnbError("ERR_BNB_NONFINITE", `${rule}, got ${bad.value} at ${bad.index}`);
    }
    noGrad(() => this.layer.loadStateDict(bias ? { weight, bias } : { weight }));
    this.layer.quantize();
    this.#source = { weight, bias, versions };
  }
}

// As in LLM.int8(): a few columns of the last hidden states are far larger than the others.
const OUTLIERS = 6;

function partsOf(source: OutputProjection): { weight: Tensor; bias: Tensor | null } {
  if (source instanceof Tensor) return { weight: source, bias: null };
  if (source.constructor === Linear) return source as Linear;
  const rule = "quantizeHead: the output projection must be a Linear";
  throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got ${source.constructor.name}`);
}
