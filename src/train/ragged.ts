// Samples one behind the other in one row of ids: no token is padding, and no sample sees another.
import { packTexts } from "../models/packing.js";
import type { Device } from "../tensor/device.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Sample } from "./sample.js";
import { IGNORED } from "./sample.js";

/** A batch: ids and starts are on the device. */
export interface RaggedBatch {
  readonly ids: Tensor; // [1, tokens] int32
  readonly starts: Tensor; // [samples + 1] int32
  /** What each token is to be followed by, or -100. */
  readonly targets: Int32Array; // [tokens]
  /** The first row of each sample, and one behind the last. */
  readonly bounds: Int32Array;
}

export function raggedBatch(samples: readonly Sample[], device: Device): RaggedBatch {
  const { ids, starts, bounds } = packTexts(
    samples.map((sample) => sample.ids),
    device,
  );
  const next = new Int32Array(ids.size).fill(IGNORED);
  samples.forEach(({ labels }, i) => {
    next.set(labels.subarray(1), bounds[i]);
  });
  return { ids, starts, targets: next, bounds };
}
