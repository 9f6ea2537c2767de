// What a linear layer loses when it is quantized: its weights before, compared with those that it computes with after.
import { noGrad } from "../autograd/no-grad.js";
import type { Module } from "../nn/index.js";
import { Linear4bit, Linear8bitLt } from "../nn/index.js";
import type { QuantState } from "../ops/index.js";
import { cast, dequantize4bit, int8VectorwiseDequant, mean, mul, sub } from "../ops/index.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

/** The error of one quantized layer. */
export interface QuantizationLoss {
  /** Path of the layer, such as "model.layers.0.mlp.up_proj". */
  readonly name: string;
  readonly format: "nf4" | "fp4" | "int8";
  /** [out, in]. */
  readonly shape: readonly number[];
  /** Root of the mean squared difference of its weights. */
  readonly rmse: number;
  /** That, relative to the root mean square of the weights; 0 for weights that are all zero. */
  readonly relative: number;
}

type Quantizable = Linear4bit | Linear8bitLt;

export function isQuantizable(module: Module): module is Quantizable {
  return module instanceof Linear4bit || module instanceof Linear8bitLt;
}

/** The values that a quantized layer computes with, in the dtype that they had before; of int8 float32. [out, in] */
export function decodedWeight(layer: Quantizable): Tensor {
  if (layer instanceof Linear8bitLt) return int8VectorwiseDequant(layer.weight, layer.SCB as Tensor);
  const { weight } = layer.quantize();
  return dequantize4bit(weight, { quantState: weight.quantState as QuantState });
}

/** Quantizes a layer whose weights are still floats, and reports what that lost; one that is quantized stays silent. */
export async function quantizeMeasured(
  layer: Quantizable,
  name: string,
  report: (loss: QuantizationLoss) => void,
): Promise<void> {
  const isFloat = layer instanceof Linear8bitLt ? !layer.isQuantized : !layer.weight.bnbQuantized;
  const before = isFloat ? noGrad(() => tidy(() => keep(cast(layer.weight.detach(), "float32")))) : null;
  try {
    layer.quantize();
    // With llmInt8HasFp16Weight the weights stay floats.
    if (!before || (layer instanceof Linear8bitLt && !layer.isQuantized)) return;
    const [error, size] = noGrad(() => tidy(() => squares(before, cast(decodedWeight(layer), "float32"))));
    const [squaredError, square] = await Promise.all([error.item(), size.item()]).finally(() => {
      error.dispose();
      size.dispose();
    });
    const rmse = Math.sqrt(squaredError);
    const format = layer instanceof Linear8bitLt ? "int8" : layer.weight.quantType;
    const relative = square === 0 ? 0 : rmse / Math.sqrt(square);
    report({ name, format: format as QuantizationLoss["format"], shape: [...before.shape], rmse, relative });
  } finally {
    before?.dispose();
  }
}

function squares(before: Tensor, after: Tensor): [error: Tensor, size: Tensor] {
  const difference = sub(after, before);
  return [mean(mul(difference, difference)), mean(mul(before, before))];
}
