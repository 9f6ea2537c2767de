// How positions turn in a text, where that depends on its length: LongRoPE has two ways, dynamic NTK one for each length.
// Tokens stay as they were computed first, as in a cache of transformers, and when that was lost they are computed in the
// same way again.

/** A number for the way in a text of `length` tokens: see `CausalLM.positionRule`. */
export type Turning = (length: number) => number;

/** How the tokens of one text were computed. */
export class Turns {
  readonly #turning: Turning;
  /** How long the text was when each was computed. */
  readonly #lengths: number[];

  constructor(turning: Turning, lengths: readonly number[] = []) {
    this.#turning = turning;
    this.#lengths = [...lengths];
  }

  fork(): Turns {
    return new Turns(this.#turning, this.#lengths);
  }

  /** Forgets the tokens from `length` on. */
  truncate(length: number): void {
    this.#lengths.length = Math.min(this.#lengths.length, length);
  }

  isOther(a: number, b: number): boolean {
    return this.#turning(a) !== this.#turning(b);
  }

  /** The length by which a token turns in a text that has `length`. */
  lengthAt(token: number, length: number): number {
    return this.#lengths[token] ?? length;
  }

  /** How many tokens from `start` on turn alike. */
  alike(start: number, length: number): number {
    const first = this.lengthAt(start, length);
    let end = start + 1;
    while (end < length && !this.isOther(first, this.lengthAt(end, length))) end++;
    return end - start;
  }

  /** Tokens are computed in a text of `length`. */
  record(start: number, count: number, length: number): void {
    for (let i = start; i < start + count; i++) this.#lengths[i] = this.lengthAt(i, length);
  }
}
