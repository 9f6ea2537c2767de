// How positions turn in a text, where that depends on its length. LongRoPE has two ways: a text that outgrows the first is
// computed again as a whole. Dynamic NTK has one for each length: tokens stay as they were computed first, and are computed
// in the same way when that was lost.

/** What a model does with the positions of a text that grows. */
export interface Turning {
  /** A number for the way in a text of `length` tokens: see `CausalLM.positionRule`. */
  rule(length: number): number;
  /** Whether tokens stay as they were computed first. */
  readonly keeps: boolean;
}

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

  /** Whether the first `computed` tokens must be computed again in a text of `length`. */
  isOutgrown(computed: number, length: number): boolean {
    return !this.#turning.keeps && computed > 0 && this.isOther(this.#lengths[computed - 1] as number, length);
  }

  isOther(a: number, b: number): boolean {
    return this.#turning.rule(a) !== this.#turning.rule(b);
  }

  /** The length by which a token turns in a text that has `length`. */
  lengthAt(token: number, length: number): number {
    return (this.#turning.keeps ? this.#lengths[token] : undefined) ?? length;
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
