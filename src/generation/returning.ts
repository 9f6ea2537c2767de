// Texts that were answered by the last step, and ask again as soon as somebody has taken what came. A step that began without
// them would make them wait for it and for the next, so it waits for them first: a little, since a slow reader may take long.

/** Of the time that a step took. */
const share = 0.1;
const leastMs = 1;

export class Returning<T> {
  readonly #expected = new Set<T>();
  #timer: NodeJS.Timeout | null = null;
  #resume: (() => void) | null = null;

  /** All these were answered by a step that took so many seconds. */
  expect(texts: Iterable<T>, seconds: number): void {
    this.#end();
    for (const text of texts) this.#expected.add(text);
    if (this.#expected.size > 0) this.#timer = setTimeout(() => this.#end(), Math.max(leastMs, share * seconds * 1000));
  }

  /** It asks again, or never will. */
  arrived(text: T): void {
    if (this.#expected.delete(text) && this.#expected.size === 0) this.#end();
  }

  /** Resolves when all have arrived, or have had their time. */
  async all(): Promise<void> {
    if (this.#expected.size === 0) return;
    await new Promise<void>((resolve) => {
      this.#resume = resolve;
    });
  }

  #end(): void {
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
    this.#expected.clear();
    this.#resume?.();
    this.#resume = null;
  }
}
