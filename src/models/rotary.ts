// Rotary position embedding tables: the cosine and sine of every position's angles.
import { to } from "../ops/index.js";
import { tensor } from "../tensor/create.js";
import type { Device } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import { keep } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Rotary } from "./pass.js";
import type { RopeParameters } from "./rope-scaling.js";
import { plainRope, ropeFrequencies } from "./rope-scaling.js";

/**
 * Angles `position * frequency[i]` for i < headDim / 2, as float32 tables; frequencies follow from the rope's parameters,
 * or are `theta^(-2i / headDim)` for a number.
 *
 * Not a module: the tables follow from the configuration and are in no state dict.
 */
export class RotaryTables {
  readonly cos: Tensor; // [rows, headDim / 2] float32
  readonly sin: Tensor; // [rows, headDim / 2] float32
  /** Of the texts that they are for. */
  readonly maxLength: number;
  /** The first positions that are there. */
  readonly rows: number;
  readonly #copies = new Map<Device, Rotary>();

  constructor(headDim: number, maxLength: number, rope: number | RopeParameters, device?: Device, rows = maxLength) {
    this.maxLength = maxLength;
    this.rows = rows;
    const half = headDim / 2;
    const cos = new Float32Array(rows * half);
    const sin = new Float32Array(rows * half);
    const parameters = typeof rope === "number" ? plainRope(rope, maxLength) : rope;
    const { frequencies, scale } = ropeFrequencies(parameters, headDim, maxLength);
    for (let position = 0; position < rows; position++) {
      for (let i = 0; i < half; i++) {
        // Angles are rounded to float32, as models were trained with them.
        const angle = Math.fround(position * (frequencies[i] as number));
        cos[position * half + i] = Math.cos(angle) * scale;
        sin[position * half + i] = Math.sin(angle) * scale;
      }
    }
    this.cos = keep(tensor(cos, { shape: [rows, half], device }));
    this.sin = keep(tensor(sin, { shape: [rows, half], device }));
  }

  /**
   * How many positions the tables for texts of up to `longest` tokens have: where the rule looks at the length, they are
   * its own. Throws ERR_BNB_UNSUPPORTED where such a rule is not told the length.
   */
  static lengthFor(rope: RopeParameters, maxPositions: number, longest: number | null): number {
    const { type, originalMaxPositions } = rope;
    if (type !== "dynamic" && type !== "longrope") return maxPositions;
    if (longest === null) {
      throw new BnbError(
        "ERR_BNB_UNSUPPORTED",
        `rope: a step of ${type} positions must know its length to be recorded`,
      );
    }
    if (type === "dynamic") return Math.max(longest, originalMaxPositions);
    return longest <= originalMaxPositions ? originalMaxPositions : maxPositions;
  }

  /** The tables on a device; copies are theirs and go with them. */
  on(device: Device): Rotary {
    if (device === this.cos.device) return this;
    let copy = this.#copies.get(device);
    if (!copy) {
      copy = { cos: keep(to(this.cos, device)), sin: keep(to(this.sin, device)) };
      this.#copies.set(device, copy);
    }
    return copy;
  }

  dispose(): void {
    for (const { cos, sin } of this.#copies.values()) {
      cos.dispose();
      sin.dispose();
    }
    this.#copies.clear();
    this.cos.dispose();
    this.sin.dispose();
  }
}
