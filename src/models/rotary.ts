// Rotary position embedding tables: the cosine and sine of every position's angles, computed once per model.
import { tensor } from "../tensor/create.js";
import type { Device } from "../tensor/device.js";
import { keep } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

/**
 * Angles `position / theta^(2i / headDim)` for i < headDim / 2, as float32 tables.
 *
 * Not a module: the tables follow from the configuration and are in no state dict.
 */
export class RotaryTables {
  readonly cos: Tensor; // [maxLength, headDim / 2] float32
  readonly sin: Tensor; // [maxLength, headDim / 2] float32

  constructor(headDim: number, maxLength: number, theta: number, device?: Device) {
    const half = headDim / 2;
    const cos = new Float32Array(maxLength * half);
    const sin = new Float32Array(maxLength * half);
    // Frequencies and angles are rounded to float32, as models were trained with them.
    const frequencies = Float32Array.from({ length: half }, (_, i) => 1 / Math.fround(theta ** ((2 * i) / headDim)));
    for (let position = 0; position < maxLength; position++) {
      for (let i = 0; i < half; i++) {
        const angle = Math.fround(position * (frequencies[i] as number));
        cos[position * half + i] = Math.cos(angle);
        sin[position * half + i] = Math.sin(angle);
      }
    }
    this.cos = keep(tensor(cos, { shape: [maxLength, half], device }));
    this.sin = keep(tensor(sin, { shape: [maxLength, half], device }));
  }

  dispose(): void {
    this.cos.dispose();
    this.sin.dispose();
  }
}
