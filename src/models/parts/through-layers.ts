// A stack of layers, each fed with what the one before gave.
import { isGradEnabled } from "../../autograd/no-grad.js";
import { tidy } from "../../tensor/scope.js";
import type { Tensor } from "../../tensor/tensor.js";

/**
 * What the last of `layers` gives. Without gradients, what a layer makes on the way is freed when it ends: else a long prompt
 * would hold the intermediate results of all layers at once.
 */
export function throughLayers<L>(
  x: Tensor,
  layers: Iterable<L>,
  run: (layer: L, x: Tensor, index: number) => Tensor,
): Tensor {
  const keepsAll = isGradEnabled();
  let h = x;
  let i = 0;
  for (const layer of layers) {
    const next = keepsAll ? run(layer, h, i) : tidy(() => run(layer, h, i));
    if (!keepsAll && h !== x) h.dispose();
    h = next;
    i++;
  }
  return h;
}
