// Where the weights of a new model are, and where their first values come from.
import type { LinearOptions } from "../../nn/index.js";

/** dtype, device and source of new weights. */
export type ModelOptions = Pick<LinearOptions, "dtype" | "device" | "generator">;

/** The options of a layer that starts with fixed values. */
export function place({ dtype, device }: ModelOptions): Pick<ModelOptions, "dtype" | "device"> {
  return { ...(dtype && { dtype }), ...(device && { device }) };
}
