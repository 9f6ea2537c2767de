// Linear layers and what stands next to them in one kernel, where the layers are plain Linear4bit and no gradient is
// wanted: the step of generating a token is so short that every launch and every pass over memory counts.
import { isGradEnabled } from "../autograd/no-grad.js";
import { add, linear4bit, linear4bitEach, linear4bitSwiglu, swiglu } from "../ops/index.js";
import { arrayOf, checkArgument, checkTensor } from "../tensor/checks.js";
import type { Quantized4Bit } from "../tensor/quantized.js";
import type { Tensor } from "../tensor/tensor.js";
import type { UnaryModule } from "./containers.js";
import { aModule } from "./module.js";
import { isPlain4bit } from "./plain-weight.js";

const modules = arrayOf(aModule);

/** @internal A layer that adds to what it is given better than `add` does. */
export interface AddsResidual extends UnaryModule {
  /** `residual + forward(x)`. */
  forwardOnto(x: Tensor, residual: Tensor): Tensor;
}

/** `residual + layer(x)`. A `Linear4bit` adds before it rounds. */
export function linearResidual(layer: UnaryModule, x: Tensor, residual: Tensor): Tensor {
  checkArgument("linearResidual", "layer", layer, aModule);
  checkTensor("linearResidual", "x", x);
  checkTensor("linearResidual", "residual", residual);
  if ("forwardOnto" in layer) return (layer as AddsResidual).forwardOnto(x, residual);
  if (!isPlain4bit(layer) || x.dtype !== residual.dtype) return add(residual, layer.forward(x));
  return linear4bit(x, layer.quantize().weight.quantized, layer.bias, residual);
}

/** `layer(x)` for two or three layers of one x. */
export function linearEach(layers: readonly UnaryModule[], x: Tensor): Tensor[] {
  const weights = weightsWithoutGradient("linearEach", layers, x);
  return weights ? linear4bitEach(x, weights) : layers.map((layer) => layer.forward(x));
}

/** `silu(gate(x)) * up(x)`. */
export function linearSwiglu(gate: UnaryModule, up: UnaryModule, x: Tensor): Tensor {
  const weights = weightsWithoutGradient("linearSwiglu", [gate, up], x);
  if (!weights) return swiglu(gate.forward(x), up.forward(x));
  const [first, second] = weights as [Quantized4Bit, Quantized4Bit];
  return linear4bitSwiglu(x, first, second);
}

/** Null where one of the layers is no plain Linear4bit or has a bias, or a gradient is wanted. */
function weightsWithoutGradient(op: string, layers: readonly UnaryModule[], x: Tensor): Quantized4Bit[] | null {
  checkArgument(op, "layers", layers, modules);
  checkTensor(op, "x", x);
  if (isGradEnabled() && x.requiresGrad) return null;
  const weights = layers.flatMap((layer) =>
    isPlain4bit(layer) && layer.bias === null ? [layer.quantize().weight.quantized] : [],
  );
  return weights.length === layers.length ? weights : null;
}
