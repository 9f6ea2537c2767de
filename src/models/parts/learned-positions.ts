// Learned positions: a row of a table for each place in a text.
import type { Embedding } from "../../nn/index.js";
import { add } from "../../ops/index.js";
import { arange } from "../../tensor/create.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Pass } from "../pass.js";

/** The rows of the positions of a pass, which broadcast to its hidden states. `offset` is the row of position 0. */
export function learnedPositions(table: Embedding, pass: Pass, offset = 0): Tensor {
  const { ids } = pass;
  const places = { dtype: "int32", device: ids.device } as const;
  const positions = pass.positions ?? arange(0, ids.shape.at(-1) as number, 1, places);
  return table.forward(offset === 0 ? positions : add(positions, offset));
}
