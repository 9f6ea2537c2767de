// Ctrl-C: it aborts what a command does, or does what the command says instead, such as ending an answer of a chat.

/** The interrupts of one run of a command. */
export class Interrupts {
  readonly #controller = new AbortController();
  #handler: (() => void) | null = null;

  /** Aborted by the first interrupt that no handler took. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** What an interrupt does from now on; null: it aborts. */
  handle(handler: (() => void) | null): void {
    this.#handler = handler;
  }

  /** An interrupt came. Gives false for a second one, after which a program should not wait any more. */
  fire(): boolean {
    if (this.#handler) {
      this.#handler();
      return true;
    }
    if (this.signal.aborted) return false;
    this.#controller.abort();
    return true;
  }
}
