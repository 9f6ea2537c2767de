// The rotary tables that a model body has at hand: made where they are used, as long as they are needed.
import type { Device } from "../../tensor/device.js";
import type { Pass, Rotary } from "../pass.js";
import type { RopeParameters } from "../rope-scaling.js";
import { RotaryTables } from "../rotary.js";

/** Tables of one kind of position. Not a module: they follow from the config and are in no state dict. */
export class RotaryCache {
  readonly #dim: number;
  readonly #rope: RopeParameters;
  readonly #maxPositions: number;
  #tables: { device: Device; made: RotaryTables } | null = null;

  /** For the first `dim` values of each head. */
  constructor(dim: number, rope: RopeParameters, maxPositions: number) {
    this.#dim = dim;
    this.#rope = rope;
    this.#maxPositions = maxPositions;
  }

  /** Those for the sequences of a pass, on its device. They are the cache's own: do not dispose them. */
  for(pass: Pass): Rotary {
    const { device } = pass.ids;
    const length = RotaryTables.lengthFor(this.#rope, this.#maxPositions, pass.longest);
    if (this.#tables?.device !== device || this.#tables.made.maxLength !== length) {
      this.dispose();
      this.#tables = { device, made: new RotaryTables(this.#dim, length, this.#rope, device) };
    }
    return this.#tables.made;
  }

  dispose(): void {
    this.#tables?.made.dispose();
    this.#tables = null;
  }
}
