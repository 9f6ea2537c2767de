// Parameter: a tensor that a module owns and an optimizer changes.

import { aBoolean, checkTensor } from "../tensor/checks.js";
import { isFloat } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { Tensor } from "../tensor/tensor.js";

/** What an optimizer does differently for one parameter; the keys are those of its options. */
export interface ParameterOptimConfig {
  /** 32 keeps the state of this parameter in float32 also under an 8-bit optimizer. */
  optimBits?: 8 | 32;
}

const parameterOptions = optionTable<{ requiresGrad?: boolean }>({ requiresGrad: aBoolean });

/**
 * A trainable tensor. It takes over the memory of the tensor it is made from, which counts as disposed from
 * then on, and it belongs to no `tidy`: its module disposes it.
 *
 * @example
 * this.weight = new Parameter(zeros([dim]));
 */
export class Parameter extends Tensor {
  /** Overrides of the optimizer's options for this parameter, if any. */
  optimConfig: ParameterOptimConfig | null = null;

  /** Throws ERR_BNB_DTYPE where a gradient is wanted, as by default, and `data` are no floats. */
  constructor(data: Tensor, options: { requiresGrad?: boolean } = {}) {
    checkTensor("Parameter", "data", data);
    checkOptions("Parameter", options, parameterOptions);
    const { requiresGrad = true } = options;
    if (requiresGrad && !isFloat(data.dtype)) {
      const rule = "Parameter: data must be float32, float16 or bfloat16 unless requiresGrad is false";
      throw new BnbError("ERR_BNB_DTYPE", `${rule}, got ${data.dtype}`);
    }
    super(data.takeHandle(), data.dtype, data.shape, data.device, false);
    this.escape();
    this.requiresGrad = requiresGrad;
  }

  /** Whether it can have a gradient at all: packed codes cannot. */
  get trainable(): boolean {
    return isFloat(this.dtype);
  }

  /** @internal What belongs to its codes and grows with them, where it is quantized. */
  get statistics(): readonly Tensor[] {
    return [];
  }

  /** @internal Bytes of what belongs to its codes, where it is quantized. */
  get statisticsBytes(): number {
    return 0;
  }
}
