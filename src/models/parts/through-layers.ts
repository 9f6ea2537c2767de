// A stack of layers, each fed with what the one before gave.
import { isGradEnabled } from "../../autograd/no-grad.js";
import type { Module } from "../../nn/index.js";
import { checkpoint } from "../../ops/checkpoint.js";
import { tidy } from "../../tensor/scope.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Pass } from "../pass.js";

/**
 * What the last of `layers` gives. Without gradients, what a layer makes on the way is freed when it ends: else a long prompt
 * would hold the intermediate results of all layers at once. Where the pass says so, the same holds with gradients.
 */
export function throughLayers<L extends Module>(
  x: Tensor,
  layers: Iterable<L>,
  pass: Pass,
  run: (layer: L, x: Tensor, index: number) => Tensor,
): Tensor {
  const keepsAll = isGradEnabled();
  let h = x;
  let i = 0;
  for (const layer of layers) {
    const index = i++;
    if (!keepsAll) {
      const next = tidy(() => run(layer, h, index));
      if (h !== x) h.dispose();
      h = next;
    } else if (pass.recomputes) h = checkpoint((input) => run(layer, input, index), h, layer.parameters());
    else h = run(layer, h, index);
  }
  return h;
}
