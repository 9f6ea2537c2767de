// A stack of layers, each fed with what the one before gave.
import { isGradEnabled } from "../../autograd/no-grad.js";
import type { Module } from "../../nn/index.js";
import { checkpoint } from "../../ops/checkpoint.js";
import { memory, tidy } from "../../tensor/scope.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Pass } from "../pass.js";

/**
 * What the last of `layers` gives. Without gradients, what a layer makes on the way is freed when it ends: else a long prompt
 * would hold the intermediate results of all layers at once. Where the pass says so, the same holds with gradients: the first
 * layer, which is computed again, tells what one takes, and of the others as many are kept as its budget lets be.
 */
export function throughLayers<L extends Module>(
  x: Tensor,
  layers: Iterable<L>,
  pass: Pass,
  run: (layer: L, x: Tensor, index: number) => Tensor,
): Tensor {
  const keepsAll = isGradEnabled();
  let budget = pass.activationBudget;
  let each = Number.POSITIVE_INFINITY;
  const recomputed = (layer: L, input: Tensor, index: number): Tensor => {
    const before = budget > 0 ? liveBytes(input) : 0;
    const y = run(layer, input, index);
    if (budget > 0) each = Math.max(1, liveBytes(input) - before);
    return y;
  };
  let h = x;
  let i = 0;
  for (const layer of layers) {
    const index = i++;
    if (!keepsAll) {
      const next = tidy(() => run(layer, h, index));
      if (h !== x) h.dispose();
      h = next;
    } else if (!pass.recomputes || each <= budget) {
      if (pass.recomputes) budget -= each;
      h = run(layer, h, index);
    } else h = checkpoint((input) => recomputed(layer, input, index), h, layer.parameters());
  }
  return h;
}

const liveBytes = ({ device }: Tensor): number => memory().devices[String(device)]?.liveBytes ?? 0;
