// The weight that a base layer computes with, whatever it is stored as.
import { decodedWeight } from "../hub/quantization-loss.js";
import type { Module } from "../nn/index.js";
import { Embedding4bit, Embedding8bit, Linear4bit, Linear8bitLt } from "../nn/index.js";
import type { QuantState } from "../ops/index.js";
import { cast, dequantize4bit, int8VectorwiseDequant } from "../ops/index.js";
import type { Device } from "../tensor/device.js";
import { defaultDevice } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import { Tensor } from "../tensor/tensor.js";

/** How the weight of a layer is quantized; null for floats. `state` is that of 4 bits. */
export function quantizedFormat(layer: Module): { format: "nf4" | "fp4" | "int8"; state: QuantState | null } | null {
  if (layer instanceof Linear4bit || layer instanceof Embedding4bit) {
    const { weight } = layer.quantize();
    return { format: weight.quantType as "nf4" | "fp4", state: weight.quantState };
  }
  if (layer instanceof Linear8bitLt) return layer.quantize().isQuantized ? { format: "int8", state: null } : null;
  return layer instanceof Embedding8bit ? { format: "int8", state: null } : null;
}

/** The values of a layer's weight in float32; of float32 weights the weight itself. No gradient reaches it. */
export function floatWeight(layer: Module): Tensor {
  const quantized = quantizedFormat(layer);
  if (layer instanceof Linear4bit || (layer instanceof Linear8bitLt && quantized)) {
    return cast(decodedWeight(layer), "float32");
  }
  if (layer instanceof Embedding4bit) {
    return cast(dequantize4bit(layer.weight, { quantState: layer.weight.quantState as QuantState }), "float32");
  }
  if (layer instanceof Embedding8bit) {
    return int8VectorwiseDequant(layer.quantize().weight, layer.SCB as Tensor);
  }
  const weight: unknown = Reflect.get(layer, "weight");
  if (weight instanceof Tensor) return cast(weight.detach(), "float32");
  throw new BnbError("ERR_BNB_UNSUPPORTED", `peft: ${layer.constructor.name} has no weight that could be read`);
}

/** Where a layer computes: where its first tensor is. */
export function deviceOf(layer: Module): Device {
  for (const module of layer.modules()) {
    for (const { value } of module.members()) if (value instanceof Tensor) return value.device;
  }
  return defaultDevice();
}
