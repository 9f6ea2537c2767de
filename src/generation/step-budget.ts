// How many tokens of prompts a step may have, so that those who wait for their next token do not wait longer than a step may
// take. What a token costs is learned from the steps as they run.
import { pageSize } from "../models/step-plan.js";

/** Tokens of the first step, before anything is known. */
const first = 64;
/** How much more or less the next step may have than the last. */
const mostChange = 4;

export class StepBudget {
  readonly #seconds: number;
  readonly #most: number;
  #tokens: number;

  /** `seconds` that a step should take at most; `most` tokens of prompts that it may ever have. */
  constructor(seconds: number, most: number) {
    this.#seconds = seconds;
    this.#most = most;
    this.#tokens = Number.isFinite(seconds) ? Math.min(first, most) : most;
  }

  /** Tokens of prompts in the next step: never fewer than a page, so that every prompt goes on. */
  get tokens(): number {
    return this.#tokens;
  }

  /** A step with so many tokens of prompts took so long, whatever else was in it. */
  record(tokens: number, seconds: number): void {
    if (tokens === 0) return;
    const change = Math.min(mostChange, Math.max(1 / mostChange, this.#seconds / seconds));
    const next = Math.floor((tokens * change) / pageSize) * pageSize;
    // A step that was not full says how much is too much, but not how much is not.
    const isFull = 2 * tokens > this.#tokens;
    if (next < this.#tokens ? change < 1 : isFull) {
      this.#tokens = Math.max(Math.min(pageSize, this.#most), Math.min(this.#most, next));
    }
  }
}
