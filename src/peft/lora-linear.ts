// Adapters around a frozen linear layer (Hu et al., 2021; DoRA: Liu et al., 2024). The base may be a Linear or a quantized
// layer, its class does not matter here.
import { noGrad } from "../autograd/no-grad.js";
import type { UnaryModule } from "../nn/index.js";
import { aModule } from "../nn/module.js";
import { isPlain4bit } from "../nn/plain-weight.js";
import type { AddsResidual } from "../nn/together.js";
import { add, cast, linear, matmul, mul, sub, sum } from "../ops/index.js";
import { linear4bitLora } from "../ops/linear-4bit-lora.js";
import { checkArgument } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions } from "../tensor/options.js";
import { tidy } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";
import { deviceOf, floatWeight } from "./base-weight.js";
import type { LoraOptions } from "./lora-adapter.js";
import { LoraAdapter, loraOptions } from "./lora-adapter.js";
import { LoraLayer } from "./lora-layer.js";

/** What an adapter needs of its base: a module that maps [..., inFeatures] to [..., outFeatures]. */
export interface LinearLike extends UnaryModule {
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** @internal For the constructor of a LoraLinear that gets its adapters later. */
export const withoutAdapter: LoraOptions = {};

/**
 * `y = base(x) + scaling * dropout(x) A^T B^T`, summed over the active adapters. With DoRA, where m are the learned lengths
 * of the rows of W + scaling * B A and n those that they have, constants in the backward pass:
 * `y = base(x) + (m / n - 1) * (base(x) - bias) + m / n * scaling * x A^T B^T`.
 *
 * Made with options, it has the adapter "default", which is active. Adapters are float32; what they add is cast to the
 * dtype of `base(x)`. Owns its base.
 *
 * @example
 * const layer = new LoraLinear(new LinearNF4(4096, 4096), { r: 16, loraAlpha: 32 });
 */
export class LoraLinear extends LoraLayer<LinearLike> implements AddsResidual {
  constructor(base: LinearLike, options: LoraOptions = {}) {
    checkArgument("LoraLinear", "base", base, aModule);
    checkOptions("LoraLinear", options, loraOptions);
    super(base);
    if (options === withoutAdapter) return;
    this.addAdapter("default", options);
    this.setActive(["default"]);
  }

  get inFeatures(): number {
    return this.baseLayer.inFeatures;
  }

  get outFeatures(): number {
    return this.baseLayer.outFeatures;
  }

  override addAdapter(name: string, options: LoraOptions = {}): LoraAdapter {
    const { inFeatures: inputs, outFeatures: outputs } = this.baseLayer;
    const adapter = new LoraAdapter({ inputs, outputs, device: deviceOf(this.baseLayer) }, options);
    if (adapter.useDora) this.startMagnitude(adapter);
    return this.put(name, adapter);
  }

  override updateOf({ loraA, loraB, scaling }: LoraAdapter): Tensor {
    return mul(matmul(loraB, loraA), scaling);
  }

  protected override biasUpdate(adapters: readonly LoraAdapter[], path: string): Tensor | null {
    const own = adapters.flatMap(({ loraBias, scaling }) => (loraBias ? [mul(loraBias, scaling)] : []));
    if (own.length === 0) return null;
    const bias: unknown = Reflect.get(this.baseLayer, "bias");
    if (bias instanceof Tensor)
      return own.reduce<Tensor>((sum, more) => add(sum, more), cast(bias.detach(), "float32"));
    const rule = "merge: an adapter with loraBias needs a base with a bias";
    throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got none at ${path}`);
  }

  forward(x: Tensor): Tensor {
    const fused = this.#asOneOp(x, null);
    if (fused) return fused;
    let y = this.baseLayer.forward(x);
    for (const adapter of this.applied) y = adapter.magnitude ? this.#withDora(adapter, x, y) : withLora(adapter, x, y);
    return y;
  }

  /** @internal `residual + forward(x)`. */
  forwardOnto(x: Tensor, residual: Tensor): Tensor {
    return this.#asOneOp(x, residual) ?? add(residual, this.forward(x));
  }

  /** QLoRA's usual layer: a 4-bit base and one adapter without a bias or lengths of rows. Null for others. */
  #asOneOp(x: Tensor, residual: Tensor | null): Tensor | null {
    const [adapter, ...more] = this.applied;
    const base = this.baseLayer;
    if (!adapter || more.length > 0 || adapter.magnitude || adapter.loraBias || !isPlain4bit(base)) return null;
    if (residual && residual.dtype !== x.dtype) return null;
    const { dropout, loraA: a, loraB: b, scaling } = adapter;
    const p = dropout.training ? dropout.p : 0;
    const { generator } = dropout;
    return linear4bitLora(x, base.quantize().weight.quantized, base.bias, residual, { a, b, scaling, p, generator });
  }

  #withDora(adapter: LoraAdapter, x: Tensor, y: Tensor): Tensor {
    const { dropout, loraA, loraB, scaling } = adapter;
    const dropped = dropout.p > 0 && dropout.training ? dropout.forward(x) : x;
    const plain = dropped === x ? y : this.baseLayer.forward(dropped);
    const bias: unknown = Reflect.get(this.baseLayer, "bias");
    const product = cast(bias instanceof Tensor ? sub(plain, bias) : plain, "float32");
    const lengths = noGrad(() => tidy(() => this.#lengths(adapter)));
    const ratio = (adapter.magnitude as Tensor).div(lengths);
    const low = linear(mul(linear(cast(dropped, "float32"), loraA, null), scaling), loraB, null);
    return add(y, cast(add(mul(sub(ratio, 1), product), mul(ratio, low)), y.dtype));
  }

  // |w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A^T) b for each row: the product B A is never formed.
  #lengths({ loraA, loraB, scaling }: LoraAdapter): Tensor {
    const weight = floatWeight(this.baseLayer);
    const mixed = mul(rowSums(linear(weight, loraA, null), loraB), 2 * scaling);
    const own = mul(rowSums(matmul(loraB, linear(loraA, loraA, null)), loraB), scaling * scaling);
    return add(add(rowSums(weight, weight), mixed), own)
      .maximum(0)
      .sqrt();
  }
}

/** Sums of the products of each row. */
function rowSums(a: Tensor, b: Tensor): Tensor {
  return sum(mul(a, b), { axis: 1 });
}

function withLora({ dropout, loraA, loraB, loraBias, scaling }: LoraAdapter, x: Tensor, y: Tensor): Tensor {
  // Scaled where it is narrow: r columns instead of as many as y has.
  const low = mul(linear(dropout.forward(cast(x, "float32")), loraA, null), scaling);
  return add(y, cast(linear(low, loraB, loraBias && mul(loraBias, scaling)), y.dtype));
}
