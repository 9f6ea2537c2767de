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
    const rows = rowsFor(pass.longest, length);
    const known = this.#tables;
    if (known?.device === device && known.made.maxLength === length && known.made.rows >= rows) return known.made;
    this.dispose();
    const made = new RotaryTables(this.#dim, length, this.#rope, device, rows);
    this.#tables = { device, made };
    return made;
  }

  dispose(): void {
    this.#tables?.made.dispose();
    this.#tables = null;
  }
}

/**
 * Most texts are far shorter than models allow, and a table of 131,072 rows takes half a second: it doubles as texts become
 * longer. A step to be recorded does not know how long they will be, and gets all.
 */
function rowsFor(longest: number | null, most: number): number {
  return longest === null ? most : Math.min(most, Math.max(1024, 2 ** Math.ceil(Math.log2(longest))));
}
