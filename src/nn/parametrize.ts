// Parameters of any module in 4 bits: packed where they are stored, floats where they are read. For weights that no
// quantized layer covers, such as the stacked experts of a mixture.
import { noGrad } from "../autograd/no-grad.js";
import type { QuantType } from "../ops/codebooks.js";
import { firstNonFinite } from "../ops/non-finite.js";
import { aBlocksize, aQuantType } from "../ops/quant-checks.js";
import type { QuantState } from "../ops/quant-state.js";
import { dequantize4bit } from "../ops/quantize-4bit.js";
import { aBoolean, aString, checkArgument } from "../tensor/checks.js";
import { describe } from "../tensor/describe.js";
import type { Device, DeviceLike } from "../tensor/device.js";
import { isFloat } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import type { StateDict, StateSource } from "./module.js";
import { aModule, Module } from "./module.js";
import { Parameter } from "./parameter.js";
import type { WeightHolder } from "./params-4bit.js";
import { Params4bit, planWeight4bit } from "./params-4bit.js";

/** What turns packed codes into values: `forward(packed)` dequantizes them with the statistics that it was made with. */
export class Bnb4bitParametrization {
  readonly quantState: QuantState;

  constructor(quantState: QuantState) {
    this.quantState = quantState;
  }

  /** New values of the dtype and shape of the quantized tensor. Not differentiable. */
  forward(packed: Tensor): Tensor {
    return noGrad(() => dequantize4bit(packed, { quantState: this.quantState }));
  }
}

// What a parametrized field stands for: saved under the name of the field itself, statistics beside it.
class PackedParameter extends Module {
  weight: Params4bit;

  constructor(make: (module: WeightHolder) => Params4bit) {
    super();
    this.weight = make(this);
  }

  forward(): Tensor {
    return new Bnb4bitParametrization(this.weight.quantState as QuantState).forward(this.weight);
  }

  protected override moveTensors(device: Device): void {
    this.weight.moveTo(device);
  }

  // The prefix of a child ends in a point.
  override saveTo(dict: StateDict, prefix: string): void {
    const name = prefix.slice(0, -1);
    dict.set(name, this.weight);
    this.weight.saveStatisticsTo(dict, name);
  }

  override loadFrom(source: StateSource, prefix: string): void {
    planWeight4bit(source, prefix.slice(0, -1), this.weight.quantState?.shape ?? [], this);
  }
}

/** Options of `replaceParameter4bit`. */
export interface ReplaceParameterOptions {
  /** Whether the scales are quantized, too. Default false. */
  compressStatistics?: boolean;
  /** Default "nf4". */
  quantType?: QuantType;
  /** 32, 64, ... 4096; default 64. */
  blocksize?: number;
}
const replaceParameterOptions = optionTable<ReplaceParameterOptions>({
  compressStatistics: aBoolean,
  quantType: aQuantType,
  blocksize: aBlocksize,
});

/**
 * Quantizes the parameter `field` of a module, of any shape, and releases its floats. Reading the field from then on
 * gives new, dequantized values, which belong to the reader: read it inside a `tidy`. It is frozen.
 *
 * @example
 * replaceParameter4bit(layer.mlp.experts, "gateUpProj", { quantType: "nf4" });
 */
export function replaceParameter4bit(module: Module, field: string, options: ReplaceParameterOptions = {}): void {
  const op = "replaceParameter4bit";
  checkOptions(op, options, replaceParameterOptions);
  const { compressStatistics = false, quantType = "nf4", blocksize = 64 } = options;
  const parameter = parameterOf(op, module, field);
  if (!isFloat(parameter.dtype)) {
    throw new BnbError("ERR_BNB_DTYPE", `${op}: ${field} must be float32, float16 or bfloat16, got ${parameter.dtype}`);
  }
  const bad = firstNonFinite(parameter);
  if (bad) {
    throw new BnbError("ERR_BNB_NONFINITE", `${op}: ${field} must be finite, got ${bad.value} at ${bad.index}`);
  }
  const how = { compressStatistics, quantType, blocksize };
  const packed = new PackedParameter((holder) => new Params4bit(parameter, { ...how, module: holder }));
  packed.weight.quantize();
  module.parametrize(field, packed);
}

/**
 * The same for a parameter that holds packed codes already: `dict` has what a checkpoint keeps beside them, with or
 * without the parameter's name before it. They go to `device`, by default they stay.
 */
export function replaceParameter4bitPrequantized(
  module: Module,
  field: string,
  dict: Readonly<Record<string, Tensor>>,
  device?: DeviceLike,
): void {
  const codes = parameterOf("replaceParameter4bitPrequantized", module, field);
  const place = device === undefined ? {} : { device };
  const packed = new PackedParameter((holder) =>
    Params4bit.fromPrequantized(codes, dict, { ...place, module: holder }),
  );
  codes.dispose();
  module.parametrize(field, packed);
}

function parameterOf(op: string, module: Module, field: string): Parameter {
  checkArgument(op, "module", module, aModule);
  checkArgument(op, "field", field, aString);
  const parameter = module.members().find((member) => member.field === field)?.value;
  if (parameter instanceof Parameter) return parameter;
  throw new BnbError(
    "ERR_BNB_ARGUMENT",
    `${op}: ${field} must be a Parameter of the module, got ${describe(parameter)}`,
  );
}
