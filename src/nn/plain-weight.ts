// What a linear layer multiplies by, for ops that compute many layers at once.
import { isGradEnabled } from "../autograd/no-grad.js";
import type { Quantized4Bit } from "../tensor/quantized.js";
import type { Tensor } from "../tensor/tensor.js";
import type { UnaryModule } from "./containers.js";
import { Linear } from "./linear.js";
import { Linear4bit } from "./linear-4bit.js";
import { Parameter } from "./parameter.js";

/** A `Linear4bit` that computes as its class says: a subclass such as a wrapper keeps its forward. */
export function isPlain4bit(layer: UnaryModule): layer is Linear4bit {
  return layer instanceof Linear4bit && layer.forward === Linear4bit.prototype.forward;
}

/** The matrix of a plain `Linear4bit` or `Linear` without a bias; null of others, and where the matrix wants a gradient. */
export function plainWeight(layer: UnaryModule): Quantized4Bit | Tensor | null {
  if (isPlain4bit(layer)) return layer.bias === null ? layer.quantize().weight.quantized : null;
  if (!(layer instanceof Linear) || layer.forward !== Linear.prototype.forward || layer.bias !== null) return null;
  const { weight } = layer; // computed anew at each reading where the field is parametrized
  return weight instanceof Parameter && !(weight.requiresGrad && isGradEnabled()) ? weight : null;
}
