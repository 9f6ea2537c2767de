// The inputs of a step on the device: one tensor of whole numbers and one of fractions, of which the plan and the
// parameters of sampling are parts. So a step costs two uploads however many sequences it has, and a recorded one two
// copies into the tensors that it was recorded with.
import type { StepPlan } from "../models/step-plan.js";
import type { SamplingRows } from "../ops/index.js";
import { copyInto, reshape, slice } from "../ops/index.js";
import { tensor } from "../tensor/create.js";
import type { Device } from "../tensor/device.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { RowRules } from "./row-rules.js";
import type { RowDraw } from "./sampling.js";

/** One sequence's part of a step. */
export interface SequenceRows {
  readonly ids: readonly number[];
  readonly slots: readonly number[];
  /** Tokens before and with these. */
  readonly length: number;
  /** All tokens known, those of later steps included. */
  readonly total: number;
  readonly pages: readonly number[];
  /** How many of the last rows are drawn from. */
  readonly wanted: number;
  readonly draw: RowDraw;
  /** Of each of those rows. */
  readonly rules: readonly (RowRules | null)[];
  /** The number of its adapter; -1: none. Sequences are in the order of these, those without behind all others. */
  readonly adapter: number;
}

/** Sizes that a step is padded to. */
export interface StepSizes {
  tokens: number;
  sequences: number;
  /** Rows that are drawn from. */
  rows: number;
  /** Pages of a sequence. */
  width: number;
  /** Adapters that rows may have; null: no row has one. */
  adapters: number | null;
}

/** What a step needs, of its own size; `adapters`: those that rows may have. */
export function sizesOf(parts: readonly SequenceRows[], adapters: number | null = null): StepSizes {
  return {
    adapters,
    tokens: parts.reduce((sum, { ids }) => sum + ids.length, 0),
    sequences: parts.length,
    rows: parts.reduce((sum, { wanted }) => sum + wanted, 0),
    width: parts.reduce((most, { pages }) => Math.max(most, pages.length), 1),
  };
}

const fractions = 7;

/** Where each part of the whole numbers begins. */
function offsetsOf({ tokens, sequences, rows, width, adapters }: StepSizes) {
  const sizes = {
    ids: tokens,
    positions: tokens,
    slots: tokens,
    starts: sequences + 1,
    lengths: sequences,
    pages: sequences * width,
    logitRows: rows,
    topK: rows,
    seed: 2 * rows,
    step: rows,
    counts: rows,
    segment: adapters === null ? 0 : adapters + 1,
  };
  let end = 0;
  const at = Object.fromEntries(
    Object.entries(sizes).map(([name, size]) => {
      const begin = end;
      end += size;
      return [name, [begin, end]];
    }),
  ) as Record<keyof typeof sizes, [number, number]>;
  return { at, total: end };
}

/** Sequences as numbers; rows beyond theirs write nothing, see nothing and are drawn from greedily. */
function pack(parts: readonly SequenceRows[], sizes: StepSizes): { whole: Int32Array; fraction: Float32Array } {
  const { at, total } = offsetsOf(sizes);
  const whole = new Int32Array(total);
  const fraction = new Float32Array(fractions * sizes.rows);
  const part = (name: keyof typeof at) => whole.subarray(...at[name]);
  const [ids, positions, slots, starts] = (["ids", "positions", "slots", "starts"] as const).map(part) as Int32Array[];
  slots?.fill(-1);
  part("counts").fill(-1);
  const segment = part("segment");
  // topP, typicalP and repetition of the rows that are nobody's.
  fraction.fill(1, sizes.rows, 4 * sizes.rows);
  let token = 0;
  let row = 0;
  parts.forEach((sequence, s) => {
    const { length, wanted, draw } = sequence;
    const count = sequence.ids.length;
    for (let i = 0; i < count; i++) {
      (ids as Int32Array)[token + i] = sequence.ids[i] as number;
      (positions as Int32Array)[token + i] = length - count + i;
      (slots as Int32Array)[token + i] = sequence.slots[i] as number;
    }
    (starts as Int32Array)[s] = token;
    // All adapters up to its own have begun, and all before its own have ended.
    segment.fill(token + count, sequence.adapter < 0 ? segment.length : sequence.adapter + 1);
    part("lengths")[s] = length;
    part("pages").set(sequence.pages, s * sizes.width);
    for (let i = count - wanted; i < count; i++, row++) {
      part("logitRows")[row] = token + i;
      const { options, slot } = draw;
      const { seed = 0, topK = 0, temperature = 0, topP = 1, minP = 0, typicalP = 1 } = options;
      const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = options;
      part("topK")[row] = Math.min(topK, 2 ** 31 - 1);
      part("seed")[2 * row] = seed % 2 ** 32;
      part("seed")[2 * row + 1] = Math.floor(seed / 2 ** 32);
      // Draws are numbered by the position that their token takes.
      part("step")[row] = length - count + i + 1;
      part("counts")[row] = slot;
      const values = [temperature, topP, typicalP, repetitionPenalty, minP, presencePenalty, frequencyPenalty];
      values.forEach((value, f) => {
        fraction[f * sizes.rows + row] = value;
      });
    }
    token += count;
  });
  starts?.fill(token, parts.length);
  return { whole, fraction };
}

/** The plan and the sampling of a step, as tensors of fixed sizes. */
export class StepInputs implements Disposable {
  readonly plan: StepPlan;
  readonly sampling: SamplingRows;
  /** Where the rows of each adapter begin, [adapters + 1]; null where no row has one. */
  readonly segment: Tensor | null;
  readonly #sizes: StepSizes;
  readonly #device: Device;
  readonly #whole: Tensor;
  readonly #fraction: Tensor;
  readonly #parts: Tensor[] = [];

  /**
   * `counts`: the table of what was seen, for rows that have a row in it. `changes`: whether `write` follows, so that
   * nothing may depend on the values.
   */
  constructor(
    parts: readonly SequenceRows[],
    sizes: StepSizes,
    counts: Tensor | null,
    device: Device,
    changes: boolean = false,
  ) {
    this.#sizes = sizes;
    this.#device = device;
    const { whole, fraction } = pack(parts, sizes);
    this.#whole = keep(tensor(whole, { device }));
    this.#fraction = keep(tensor(fraction, { device }));
    const { at } = offsetsOf(sizes);
    const { rows, sequences, tokens, width } = sizes;
    const of = (from: Tensor, begin: number, end: number, shape?: number[]) => {
      const part = tidy(() => {
        const flat = slice(from, 0, begin, end);
        return shape ? reshape(flat, shape) : flat;
      });
      this.#parts.push(keep(part));
      return part;
    };
    const int = (name: keyof typeof at, shape?: number[]) => of(this.#whole, ...at[name], shape);
    const float = (index: number) => of(this.#fraction, index * rows, (index + 1) * rows);
    this.plan = {
      ids: int("ids"),
      positions: int("positions"),
      slots: int("slots"),
      starts: int("starts"),
      lengths: int("lengths"),
      pages: int("pages", [sequences, width]),
      logitRows: rows === tokens ? null : int("logitRows"),
      longest: changes ? null : Math.max(0, ...parts.map(({ total }) => total)),
    };
    this.segment = sizes.adapters === null ? null : int("segment");
    this.sampling = {
      temperature: float(0),
      topP: float(1),
      typicalP: float(2),
      repetition: float(3),
      minP: float(4),
      presence: float(5),
      frequency: float(6),
      topK: int("topK"),
      seed: int("seed", [rows, 2]),
      step: int("step"),
      ...(counts && { counts, slots: int("counts") }),
      ...this.#rulesOf(parts),
    };
  }

  /** The rules of all rows, for a step that is computed once. */
  #rulesOf(parts: readonly SequenceRows[]): Pick<SamplingRows, "bias" | "mask"> {
    const rules = parts.flatMap((part) => part.rules);
    const own = (data: Int32Array | Float32Array, shape?: number[]) => {
      const part = keep(tensor(data, { device: this.#device, ...(shape && { shape }) }));
      this.#parts.push(part);
      return part;
    };
    const entries = rules.map((rule) => [...(rule?.bias ?? [])]);
    const all = entries.flat();
    let end = 0;
    const offsets = Int32Array.of(0, ...entries.map(({ length }) => (end += length)));
    const ids = Int32Array.from(all, ([id]) => id);
    const values = Float32Array.from(all, ([, value]) => value);
    const words = rules.find((rule) => rule?.allowed)?.allowed?.length;
    const mask = words === undefined ? null : new Int32Array(rules.length * words).fill(-1);
    rules.forEach((rule, row) => {
      if (rule?.allowed) mask?.set(rule.allowed, row * (words as number));
    });
    return {
      ...(all.length > 0 && { bias: { offsets: own(offsets), ids: own(ids), values: own(values) } }),
      ...(mask && { mask: own(mask, [rules.length, words as number]) }),
    };
  }

  /** Overwrites them with another step of the same sizes. */
  write(parts: readonly SequenceRows[]): void {
    const { whole, fraction } = pack(parts, this.#sizes);
    tidy(() => {
      copyInto(this.#whole, tensor(whole, { device: this.#device }));
      copyInto(this.#fraction, tensor(fraction, { device: this.#device }));
    });
  }

  dispose(): void {
    for (const part of this.#parts) part.dispose();
    this.#whole.dispose();
    this.#fraction.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
