// Sizes and hashes read off the objects themselves.
import { createHash } from "node:crypto";
import type { Module } from "../nn/index.js";
import { Linear, Linear4bit, Linear8bitLt } from "../nn/index.js";
import type { Optimizer8bit } from "../optim/index.js";
import { Tensor } from "../tensor/tensor.js";

/** Tables that are the same for every layer of a format, and its description: stored in files, one copy in memory. */
const shared = /(quant_map|weight_format|quant_state\.bitsandbytes__\w+)$/;

/** Bytes of a model's weights with their statistics. */
export function modelBytes(model: Module): number {
  let bytes = 0;
  for (const [name, { nbytes }] of model.stateDict()) if (!shared.test(name)) bytes += nbytes;
  return bytes;
}

/** How many linear layers are quantized. */
export function quantizedLayers(model: Module): number {
  const isQuantized = (module: Module): boolean =>
    module instanceof Linear4bit || (module instanceof Linear8bitLt && module.isQuantized);
  return model.modules().filter(isQuantized).length;
}

/** Bytes and number of the weights in the model's linear layers, whatever their format. */
export function layerSizes(model: Module): { bytes: number; weights: number } {
  const layers = model.modules().filter((module) => module instanceof Linear);
  return {
    bytes: layers.reduce((sum, layer) => sum + modelBytes(layer), 0),
    weights: layers.reduce((sum, { inFeatures, outFeatures }) => sum + inFeatures * outFeatures, 0),
  };
}

/** Bytes of everything that an optimizer remembers about parameters. */
export function optimizerBytes(optimizer: Optimizer8bit, parameters: readonly Tensor[]): number {
  let bytes = 0;
  for (const parameter of parameters) {
    for (const value of Object.values(optimizer.stateOf(parameter) ?? {})) {
      if (value instanceof Tensor) bytes += value.nbytes;
    }
  }
  return bytes;
}

/**
 * SHA-256 over names and bytes of a model's state dict, without the adapters: the same before and after layers were
 * wrapped.
 */
export async function hashOfBase(model: Module): Promise<string> {
  const hash = createHash("sha256");
  const entries = [...model.stateDict()]
    .filter(([name]) => !name.includes("lora_"))
    .map(([name, tensor]) => [name.replace(".base_layer.", "."), tensor] as const)
    .sort(([a], [b]) => (a < b ? -1 : 1));
  for (const [name, tensor] of entries) {
    const { buffer, byteOffset, byteLength } = await tensor.data();
    hash.update(name).update(new Uint8Array(buffer, byteOffset, byteLength));
  }
  return hash.digest("hex");
}
