// Calls of functions out of a text that grows: their names as soon as they are known, and their arguments piece by piece. A
// grammar has seen to their form, so what is no call here was cut off.

/** What calls look like. */
export interface CallShape {
  /** What begins a call, or several. */
  readonly triggers: readonly string[];
  /** A call up to its arguments; its first group is the name. */
  readonly head: RegExp;
  /** What stands behind arguments where another call follows at once. */
  readonly more: RegExp | null;
  /** What stands behind those of the last call. */
  readonly done: RegExp;
}

/** A piece of text, the beginning of call number `call`, or a piece of its arguments. */
export type Delta =
  | { readonly type: "text"; readonly text: string }
  | { readonly type: "call"; readonly call: number; readonly name: string }
  | { readonly type: "arguments"; readonly call: number; readonly text: string };

/** What became of arguments that came: a piece of JSON, and what could not be read yet. */
export interface PiecesOfJson {
  readonly json: string;
  readonly rest: string;
  /** Whether that was the last piece. */
  readonly isOver: boolean;
}

/** Reads the arguments of one call. */
export interface ArgumentsReader {
  read(text: string): PiecesOfJson;
}

export class CallParser {
  readonly #shape: CallShape;
  readonly #readerOf: (name: string) => ArgumentsReader;
  #state: "text" | "head" | "arguments" | "tail" = "text";
  /** What is not told yet. */
  #rest = "";
  #reader: ArgumentsReader | null = null;
  #calls = 0;

  /** `readerOf`: what reads the arguments of a function; JSON where it is not given. */
  constructor(shape: CallShape, readerOf: (name: string) => ArgumentsReader = () => new JsonReader()) {
    this.#shape = shape;
    this.#readerOf = readerOf;
  }

  /** Calls that have begun. */
  get calls(): number {
    return this.#calls;
  }

  push(text: string): Delta[] {
    this.#rest += text;
    const deltas: Delta[] = [];
    while (this.#advance(deltas));
    return deltas;
  }

  /** What is left when nothing more comes. */
  end(): Delta[] {
    const isText = this.#state === "text" || this.#state === "head";
    const text = this.#calls > 0 ? this.#rest.trimEnd() : this.#rest;
    this.#rest = "";
    return isText && text !== "" ? [{ type: "text", text }] : [];
  }

  /** Whether there is more to be done with what is there. */
  #advance(deltas: Delta[]): boolean {
    switch (this.#state) {
      case "text":
        return this.#text(deltas);
      case "head": {
        const found = this.#shape.head.exec(this.#rest);
        if (!found) return false;
        this.#rest = this.#rest.slice(found[0].length);
        const name = JSON.parse(`"${found[1]}"`) as string;
        deltas.push({ type: "call", call: this.#calls++, name });
        this.#reader = this.#readerOf(name);
        this.#state = "arguments";
        return true;
      }
      case "arguments": {
        const { json, rest, isOver } = (this.#reader as ArgumentsReader).read(this.#rest);
        if (json !== "") deltas.push({ type: "arguments", call: this.#calls - 1, text: json });
        this.#rest = rest;
        if (isOver) this.#state = "tail";
        return isOver;
      }
      case "tail": {
        const more = this.#shape.more?.exec(this.#rest);
        const done = this.#shape.done.exec(this.#rest);
        const found = more ?? done;
        if (!found) return false;
        this.#rest = this.#rest.slice(found[0].length);
        this.#state = more ? "head" : "text";
        return true;
      }
    }
  }

  #text(deltas: Delta[]): boolean {
    const rest = this.#rest;
    const found = this.#shape.triggers.map((trigger) => rest.indexOf(trigger)).filter((at) => at >= 0);
    const isFound = found.length > 0;
    const kept = isFound ? Math.min(...found) : rest.length - this.#heldBack(rest);
    const text = rest.slice(0, kept);
    // What separates calls is no text.
    const isBetween = this.#calls > 0 && text.trim() === "";
    if (text !== "" && !isBetween) deltas.push({ type: "text", text });
    if (isFound || !isBetween) this.#rest = rest.slice(kept);
    if (isFound) this.#state = "head";
    return isFound;
  }

  /** How many of the last characters may begin a trigger. */
  #heldBack(text: string): number {
    const lengths = this.#shape.triggers.map((trigger) => heldBack(text, trigger));
    return Math.max(0, ...lengths);
  }
}

/** How many of the last characters of a text may begin `part`. */
export function heldBack(text: string, part: string): number {
  let length = Math.min(part.length - 1, text.length);
  while (length > 0 && !text.endsWith(part.slice(0, length))) length--;
  return length;
}

/** A JSON object that comes in pieces. */
class JsonReader implements ArgumentsReader {
  #hasBegun = false;
  #depth = 0;
  #isString = false;
  #isEscaped = false;

  read(given: string): PiecesOfJson {
    // A space between may come after the head.
    const text = this.#hasBegun ? given : given.trimStart();
    const end = this.#find(text);
    return { json: text.slice(0, end ?? undefined), rest: end === null ? "" : text.slice(end), isOver: end !== null };
  }

  /** The index behind its last character, null while it goes on. */
  #find(text: string): number | null {
    if (text !== "") this.#hasBegun = true;
    for (let i = 0; i < text.length; i++) {
      const character = text[i] as string;
      if (this.#isString) {
        if (this.#isEscaped) this.#isEscaped = false;
        else if (character === "\\") this.#isEscaped = true;
        else if (character === '"') this.#isString = false;
      } else if (character === '"') this.#isString = true;
      else if (character === "{" || character === "[") this.#depth++;
      else if ((character === "}" || character === "]") && --this.#depth === 0) return i + 1;
    }
    return null;
  }
}
