// What weights are natively, each as one object behind one handle: the scales of blocks, a packed 4-bit weight with its
// scales, and the weights of many experts.
import type { Device } from "./device.js";
import type { Handle } from "./handle.js";
import { NativeObject } from "./native-object.js";

/** A frozen 4-bit weight, as `linear4bit` takes it. It has no gradient: that the base is frozen is in the types. */
export class Quantized4Bit extends NativeObject {
  /** Shape of the unquantized tensor. */
  readonly shape: readonly number[];
  readonly device: Device;

  /** @internal */
  constructor(handle: Handle, shape: readonly number[], device: Device) {
    super(handle);
    this.shape = shape;
    this.device = device;
  }
}

/** @internal The scales of a blockwise quantized tensor with what expands them: float32, or quantized themselves. */
export class BlockScales extends NativeObject {
  /** Number of blocks. */
  readonly shape: readonly number[];
  readonly device: Device;

  constructor(handle: Handle, shape: readonly number[], device: Device) {
    super(handle);
    this.shape = shape;
    this.device = device;
  }
}

/** The frozen weights of experts, as `expertsSwiglu` takes them. It holds the memory of the matrices it was made of. */
export class ExpertWeights extends NativeObject {
  /** [experts, width, hidden]. */
  readonly shape: readonly number[];
  readonly device: Device;

  /** @internal */
  constructor(handle: Handle, shape: readonly number[], device: Device) {
    super(handle);
    this.shape = shape;
    this.device = device;
  }
}
