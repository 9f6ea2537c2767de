// The way back: a model whose quantized linear layers become float ones, for tools that read nothing else.
import { noGrad } from "../autograd/no-grad.js";
import { decodedWeight } from "../hub/quantization-loss.js";
import { Linear, Linear4bit, Linear8bitLt, Module, replaceLinear } from "../nn/index.js";
import { cast } from "../ops/index.js";
import { aFloatDType, anInstance, checkArgument } from "../tensor/checks.js";
import type { DType } from "../tensor/dtype.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { materialize, uninitialized } from "../tensor/placeholder.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { forgetQuantization, originDType } from "./save.js";
import { refuseSpread, TextModel } from "./text-model.js";

/** Options of `dequantizeModel`. */
export interface DequantizeOptions {
  /** Of the float weights. Default: that of the weights before they were quantized; for int8 that of the model. */
  dtype?: DType;
}
const dequantizeOptions = optionTable<DequantizeOptions>({ dtype: aFloatDType });

/**
 * Replaces every `Linear4bit` and `Linear8bitLt` below `model` by a `Linear` with the values that it computes with. What
 * quantization lost stays lost. `savePretrained` then saves a float model.
 */
export function dequantizeModel<M extends Module>(model: M, options: DequantizeOptions = {}): M {
  checkArgument(
    "dequantizeModel",
    "model",
    model,
    anInstance(() => Module, "a Module"),
  );
  checkOptions("dequantizeModel", options, dequantizeOptions);
  if (model instanceof TextModel && !model.isWhole) {
    refuseSpread("dequantizeModel", "load it without a deviceMap to dequantize it");
  }
  const otherwise = originDType(model) ?? "float32";
  replaceLinear(model, (_in, _out, _bias, linear) => floatLayer(linear, options.dtype, otherwise), {
    skipModules: [],
    predicate: (_, linear) => linear instanceof Linear4bit || (linear instanceof Linear8bitLt && linear.isQuantized),
  });
  forgetQuantization(model);
  return model;
}

function floatLayer(layer: Linear, asked: DType | undefined, otherwise: DType): Linear {
  const weight = noGrad(() => tidy(() => keep(floatWeight(layer, asked, otherwise))));
  const { inFeatures, outFeatures, bias } = layer;
  const { dtype, device } = weight;
  const linear = uninitialized(() => new Linear(inFeatures, outFeatures, { bias: bias !== null, dtype, device }));
  materialize(linear.weight, weight);
  if (linear.bias && bias)
    materialize(
      linear.bias,
      tidy(() => keep(cast(bias.detach(), dtype))),
    );
  return linear;
}

function floatWeight(layer: Linear, asked: DType | undefined, otherwise: DType): Tensor {
  const values = decodedWeight(layer as Linear4bit | Linear8bitLt);
  return cast(values, asked ?? (layer instanceof Linear8bitLt ? otherwise : values.dtype));
}
