// The functions that configs call hidden_act, by their names there.
import { gelu, geluTanh, mul, relu, sigmoid, silu, tanh } from "../../ops/index.js";
import { BnbError } from "../../tensor/errors.js";
import type { Tensor } from "../../tensor/tensor.js";

const activations: Readonly<Record<string, (x: Tensor) => Tensor>> = {
  silu,
  swish: silu,
  gelu,
  gelu_python: gelu,
  gelu_new: geluTanh,
  gelu_pytorch_tanh: geluTanh,
  gelu_fast: geluTanh,
  quick_gelu: (x) => mul(x, sigmoid(mul(x, 1.702))),
  relu,
  tanh,
};

/** The function of a name. Throws ERR_BNB_UNSUPPORTED for an unknown one. */
export function activation(name: string): (x: Tensor) => Tensor {
  if (Object.hasOwn(activations, name)) return activations[name] as (x: Tensor) => Tensor;
  const known = Object.keys(activations).join(", ");
  throw new BnbError("ERR_BNB_UNSUPPORTED", `config.json: the activation must be one of ${known}, got ${name}`);
}
