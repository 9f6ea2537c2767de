// Guesses of the next tokens from the text itself: what followed the last few tokens when they stood there before
// (Saxena, 2023). Verified together in one step, so that a text that repeats itself takes fewer steps.
import { BnbError } from "../tensor/errors.js";

const longest = 3; // tokens that must agree, else fewer
const mostDrafts = 8;
const pause = 32; // steps without guesses after they have not paid
const memory = 0.8; // of the running means

/** Guesses for one text, and the account of whether they pay. */
export class PromptLookup {
  /** By their last tokens, joined: where the token after them is. */
  readonly #after = new Map<string, number>();
  #known = 0;
  #resting = 0;
  #plainMs = 0;
  #guessedMs = 0;
  #guessedTokens = 0;

  /** At most `room` tokens that may follow `ids`. Only ever grows: `ids` begins with those of the last call. */
  propose(ids: readonly number[], room: number): number[] {
    for (let end = Math.max(1, this.#known); end < ids.length; end++) {
      for (let n = 1; n <= Math.min(longest, end); n++) this.#after.set(ids.slice(end - n, end).join(), end);
    }
    this.#known = ids.length;
    if (this.#resting > 0) {
      this.#resting--;
      return [];
    }
    for (let n = Math.min(longest, ids.length); n > 0; n--) {
      const at = this.#after.get(ids.slice(ids.length - n).join());
      if (at !== undefined) return ids.slice(at, at + Math.min(room, mostDrafts));
    }
    return [];
  }

  /** What a step of `guessed` guesses gave: tokens, the one that is always right included, in milliseconds. */
  report(guessed: number, tokens: number, ms: number): void {
    if (tokens < 1) throw new BnbError("ERR_BNB_ARGUMENT", `report: tokens must be at least 1, got ${tokens}`);
    const mean = (before: number, value: number) => (before === 0 ? value : memory * before + (1 - memory) * value);
    if (guessed === 0) {
      this.#plainMs = mean(this.#plainMs, ms);
      return;
    }
    this.#guessedMs = mean(this.#guessedMs, ms);
    this.#guessedTokens = mean(this.#guessedTokens, tokens);
    const paysNot = this.#plainMs > 0 && this.#guessedTokens * this.#plainMs < this.#guessedMs;
    // Without a step to compare with, guesses of which none comes true do not pay either.
    if (!paysNot && (this.#plainMs > 0 || this.#guessedTokens > 1.05)) return;
    this.#resting = pause;
    this.#guessedMs = 0;
    this.#guessedTokens = 0;
  }
}
