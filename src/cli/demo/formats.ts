// The formats that the demo compares: how each turns the Linear layers of a trained model into its own.

import { LlamaForCausalLM } from "../../models/index.js";
import type { Module } from "../../nn/index.js";
import { Linear4bit, Linear8bitLt, replaceLinear } from "../../nn/index.js";
import type { Device } from "../../tensor/device.js";

/** A named way to store the weights; without `layer` they stay float32. */
export interface Format {
  name: string;
  layer?: (inputFeatures: number, outputFeatures: number, bias: boolean, device: Device) => Module;
}

/** Float first: the others are compared with it. */
export const formats: readonly Format[] = [
  { name: "float32" },
  {
    name: "INT8",
    layer: (inputs, outputs, bias, device) =>
      new Linear8bitLt(inputs, outputs, { bias, hasFp16Weights: false, device }),
  },
  {
    name: "FP4",
    layer: (inputs, outputs, bias, device) =>
      new Linear4bit(inputs, outputs, { bias, quantType: "fp4", compressStatistics: false, device }),
  },
  {
    name: "NF4",
    layer: (inputs, outputs, bias, device) =>
      new Linear4bit(inputs, outputs, { bias, quantType: "nf4", compressStatistics: false, device }),
  },
  {
    name: "NF4 + DQ",
    layer: (inputs, outputs, bias, device) =>
      new Linear4bit(inputs, outputs, { bias, quantType: "nf4", compressStatistics: true, device }),
  },
];

/** A copy of a trained model in a format. The original stays as it is. */
export function inFormat(trained: LlamaForCausalLM, { layer }: Format): LlamaForCausalLM {
  const { device } = trained;
  const model = new LlamaForCausalLM(trained.config, { device });
  model.loadStateDict(trained.stateDict());
  if (layer) {
    replaceLinear(model, (inputs, outputs, bias) => layer(inputs, outputs, bias, device), {
      copyWeights: true,
      postProcessingFunction: "quantize",
    });
  }
  return model;
}
