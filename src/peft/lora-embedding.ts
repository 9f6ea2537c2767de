// Adapters beside a frozen table of rows: A [r, rows] starts at zero, B [dim, r] normal.
import type { Embedding } from "../nn/index.js";
import { add, cast, embedding, linear, matmul, mul, sqrt, sub, sum, transpose } from "../ops/index.js";
import type { Tensor } from "../tensor/tensor.js";
import { deviceOf } from "./base-weight.js";
import type { LoraOptions } from "./lora-adapter.js";
import { LoraAdapter } from "./lora-adapter.js";
import { LoraLayer } from "./lora-layer.js";

/**
 * `y = base(ids) + scaling * A[:, ids]^T B^T`. A head that shares the table multiplies by the base's weight, as in PEFT,
 * until the adapter is merged into it.
 */
export class LoraEmbedding extends LoraLayer<Embedding> {
  get numEmbeddings(): number {
    return this.baseLayer.numEmbeddings;
  }

  get embeddingDim(): number {
    return this.baseLayer.embeddingDim;
  }

  /** The table without adapters, as a tied head takes it. */
  get weight(): Tensor {
    return this.baseLayer.weight;
  }

  override addAdapter(name: string, options: LoraOptions = {}): LoraAdapter {
    const { numEmbeddings: inputs, embeddingDim: outputs } = this.baseLayer;
    const shape = { inputs, outputs, device: deviceOf(this.baseLayer), isEmbedding: true };
    const adapter = new LoraAdapter(shape, options);
    if (adapter.useDora) this.startMagnitude(adapter);
    return this.put(name, adapter);
  }

  override updateOf({ loraA, loraB, scaling }: LoraAdapter): Tensor {
    return mul(transpose(matmul(loraB, loraA)), scaling);
  }

  protected override lengthsOf(weight: Tensor): Tensor {
    return sqrt(sum(mul(weight, weight), { axis: 0 }));
  }

  protected override scaleRows(weight: Tensor, by: Tensor): Tensor {
    return mul(weight, by);
  }

  forward(ids: Tensor): Tensor {
    let y = this.baseLayer.forward(ids);
    for (const adapter of this.applied) {
      const { loraA, loraB, scaling, magnitude } = adapter;
      const low = mul(linear(embedding(ids, transpose(loraA)), loraB, null), scaling);
      if (!magnitude) {
        y = add(y, cast(low, y.dtype));
        continue;
      }
      const ratio = magnitude.div(this.lengthsWith(adapter));
      y = add(y, cast(add(mul(sub(ratio, 1), cast(y, "float32")), mul(ratio, low)), y.dtype));
    }
    return y;
  }
}
