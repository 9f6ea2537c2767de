// What the options of layers have in common: where and from what a new weight is made.
import type { Generator } from "../ops/random.js";
import { aGenerator } from "../ops/random.js";
import { aDevice, aDType, anInteger } from "../tensor/checks.js";
import type { DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";

/** Options of the initial values in `nn.init`. */
export interface InitOptions {
  /** dtype of the result; default float32. */
  dtype?: DType;
  device?: DeviceLike;
  /** Source of the values; default the global one. */
  generator?: Generator;
}

/** For layers, which take these among their own. */
export const initChecks = { dtype: aDType, device: aDevice, generator: aGenerator };

/** Of features, rows and columns. */
export const aSize = anInteger(0);

/** The options of an initializer among those of a layer. */
export function place({ dtype, device, generator }: InitOptions): InitOptions {
  return { dtype, device, generator };
}
