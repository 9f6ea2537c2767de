// Checks backward() against central differences. With a float64 reference of the forward pass the differences are
// taken there (step 1e-5), so the comparison is only as loose as float32 arithmetic; without one they are taken on
// the op itself with a step that balances rounding and curvature.

import { backward } from "../../src/autograd/backward.js";
import type { Tensor } from "../../src/index.js";
import { tensor } from "../../src/index.js";
import { expectClose } from "./expect-close.js";
import type { Tolerance } from "./tolerance.js";

export interface GradcheckInput {
  data: ArrayLike<number>;
  shape: readonly number[];
}

export interface GradcheckOptions extends Partial<Tolerance> {
  device?: string;
  /** The same function on float64 arrays: outputs in row-major order. */
  reference?: (...inputs: Float64Array[]) => ArrayLike<number>;
  /** Indices of inputs whose gradient is checked; default all. */
  inputs?: readonly number[];
}

/** Asserts that the gradients of sum(weights * fn(inputs)) agree, for fixed pseudo-random weights. */
export function gradcheck(
  fn: (...inputs: Tensor[]) => Tensor,
  inputs: readonly GradcheckInput[],
  options: GradcheckOptions = {},
): void {
  const { device = "cpu", reference } = options;
  const make = (values: ArrayLike<number>, i: number): Tensor =>
    tensor(Float32Array.from(values), { shape: (inputs[i] as GradcheckInput).shape, device });
  const wanted = options.inputs ?? inputs.map((_, i) => i);
  const tensors = inputs.map((input, i) => make(input.data, i));
  for (const i of wanted) (tensors[i] as Tensor).requiresGrad = true;
  const y = fn(...tensors);
  const weights = Float32Array.from({ length: y.size }, (_, i) => Math.sin(1.7 * i + 0.3) + 0.2);
  const dy = tensor(weights, { shape: y.shape, device });
  backward(y, dy);

  const project = (values: ArrayLike<number>): number =>
    weights.reduce((total, w, i) => total + w * (values[i] as number), 0);
  const evaluate = (values: Float64Array[]): number => {
    if (reference) return project(reference(...values));
    const probe = values.map(make);
    const out = fn(...probe);
    const result = project(out.floatsSync());
    for (const t of [...probe, out]) t.dispose();
    return result;
  };
  const step = reference ? 1e-5 : 1e-2;
  const point = inputs.map((input) => Float64Array.from(Float32Array.from(input.data)));
  for (const i of wanted) {
    const values = point[i] as Float64Array;
    const numeric = Float64Array.from(values, (value, at) => {
      values[at] = value + step;
      const above = evaluate(point);
      values[at] = value - step;
      const below = evaluate(point);
      values[at] = value;
      return (above - below) / (2 * step);
    });
    const grad = (tensors[i] as Tensor).grad;
    if (!grad) throw new Error(`gradcheck: input ${i} got no gradient`);
    expectClose(grad.floatsSync(), numeric, {
      atol: options.atol ?? (reference ? 5e-5 : 5e-3),
      rtol: options.rtol ?? (reference ? 5e-5 : 5e-3),
    });
  }
  for (const t of [...tensors, y, dy]) t.dispose();
}
