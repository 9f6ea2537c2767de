// Tokens as a text that grows: characters come when they are complete, and what may be the beginning of a stop string comes
// when it turned out to be none.
import type { Tokenizer } from "../hub/index.js";

/** What the beginning of a character decodes to. */
const replacement = "\ufffd";
/** Tokens that are decoded together before earlier ones are let go, and how many stay for those that follow. */
const window = 48;
const context = 8;

/** The text of one sequence of tokens. */
export class TextStream {
  readonly #tokenizer: Tokenizer;
  readonly #stops: readonly string[];
  readonly #markers: ReadonlyMap<number, string> | undefined;
  #ids: number[] = [];
  /** What of the text of #ids is complete. */
  #known = "";
  /** Complete, and perhaps the beginning of a stop string. */
  #held = "";
  #isStopped = false;

  /** `markers`: special tokens that the text has; others are left out of it. */
  constructor(tokenizer: Tokenizer, stopStrings: readonly string[], markers?: ReadonlyMap<number, string>) {
    this.#tokenizer = tokenizer;
    this.#markers = markers;
    this.#stops = stopStrings;
  }

  /** Whether a stop string came: the text has ended before it. */
  get isStopped(): boolean {
    return this.#isStopped;
  }

  /** What of the text is certain with one more token, and was not before. */
  async push(id: number): Promise<string> {
    // A model may have more tokens than its tokenizer: they stand for no text.
    if (id >= this.#tokenizer.vocabSize) return "";
    const marker = this.#markers?.get(id);
    if (marker !== undefined) return this.#mark(marker);
    this.#ids.push(id);
    const text = await this.#decode();
    const complete = text.endsWith(replacement) ? text.slice(0, -1) : text;
    if (!text.startsWith(this.#known)) {
      // Bytes that end within a character can change how those before them decode; what follows settles it.
      if (complete.length < text.length) return "";
      this.#known = text.slice(0, this.#known.length);
    }
    const piece = complete.length > this.#known.length ? this.#advance(complete) : "";
    if (complete.length === text.length && this.#ids.length >= window) {
      this.#ids = this.#ids.slice(-context);
      this.#known = await this.#decode();
    }
    return piece;
  }

  /** What is left when no more tokens come. */
  async end(): Promise<string> {
    if (this.#isStopped) return "";
    const rest = await this.#complete();
    const held = this.#isStopped ? "" : this.#held;
    this.#held = "";
    return rest + held;
  }

  /** What there is of a text that no token goes on with. */
  async #complete(): Promise<string> {
    const text = await this.#decode();
    return text.startsWith(this.#known) ? this.#advance(text) : "";
  }

  async #mark(marker: string): Promise<string> {
    const before = await this.#complete();
    this.#ids = [];
    this.#known = "";
    if (this.#isStopped) return before;
    const after = this.#advance(marker);
    this.#known = "";
    return before + after;
  }

  #decode(): Promise<string> {
    return this.#tokenizer.decode(this.#ids, { skipSpecialTokens: true });
  }

  #advance(complete: string): string {
    const pending = this.#held + complete.slice(this.#known.length);
    this.#known = complete;
    const found = this.#stops.map((stop) => pending.indexOf(stop)).filter((at) => at >= 0);
    if (found.length > 0) {
      this.#isStopped = true;
      this.#held = "";
      return pending.slice(0, Math.min(...found));
    }
    const keep = Math.max(0, ...this.#stops.map((stop) => beginning(pending, stop)));
    this.#held = pending.slice(pending.length - keep);
    return pending.slice(0, pending.length - keep);
  }
}

/** How many of the last characters of a text are the first of `stop`. */
function beginning(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--) {
    if (text.endsWith(stop.slice(0, length))) return length;
  }
  return 0;
}
