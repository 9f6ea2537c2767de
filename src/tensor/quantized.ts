// What weights are natively, each as one object behind one handle: the scales of blocks, a packed 4-bit weight with its
// scales, and the weights of many experts.
import type { Device } from "./device.js";
import type { Handle } from "./handle.js";
import { NativeObject } from "./native-object.js";

abstract class NativeWeight extends NativeObject {
  readonly shape: readonly number[];
  readonly device: Device;

  /** @internal */
  constructor(handle: Handle, shape: readonly number[], device: Device) {
    super(handle);
    this.shape = shape;
    this.device = device;
  }
}

/**
 * A frozen 4-bit weight, as `linear4bit` takes it; `shape` is that of the unquantized tensor. It has no gradient: that the
 * base is frozen is in the types.
 */
export class Quantized4Bit extends NativeWeight {
  declare protected readonly kind: "4-bit";
}

/**
 * @internal The scales of a blockwise quantized tensor with what expands them: float32, or quantized themselves. `shape` is
 * [blocks].
 */
export class BlockScales extends NativeWeight {
  declare protected readonly kind: "scales";
}

/**
 * The frozen weights of experts, as `expertsSwiglu` takes them; `shape` is [experts, width, hidden]. It holds the memory of the
 * matrices it was made of.
 */
export class ExpertWeights extends NativeWeight {
  declare protected readonly kind: "experts";
}
