// Regular expressions of files, matched in a time that grows with the text alone: all ways to match are followed at once
// (Thompson, 1968), so that no pattern can make a load hang. They know what such patterns are made of: characters, classes,
// groups, alternatives, quantifiers, ^, $, \b and, where a pattern begins, what must or must not follow; not what looks
// around elsewhere, or back.

/** What follows a place in a pattern. */
type State =
  | { readonly type: "match" }
  | { readonly type: "begin" | "end" | "edge" | "inside"; next: State }
  | { readonly type: "one"; readonly holds: (character: string) => boolean; next: State }
  | { readonly type: "either"; readonly ways: State[] };

/** States of a pattern: counted repetitions are written out. */
const MOST_STATES = 1024;

/** Whether a text matches. */
export type Matcher = (text: string) => boolean;

/**
 * Whether a text matches from its start, or as a `whole`; null for a pattern that is none, or has parts that are not known.
 */
export function linearPattern(pattern: string, { whole = false }: { whole?: boolean } = {}): Matcher | null {
  try {
    const { looks, start } = new Parser(pattern).parse(whole);
    return (text) => looks.every((look) => matches(look.start, text) === look.wanted) && matches(start, text);
  } catch (error) {
    if (error instanceof Unknown) return null;
    throw error;
  }
}

class Unknown extends Error {}

/** Makes the states of a part, given those that follow it. */
type Part = (next: State) => State;

class Parser {
  readonly #text: string;
  #at = 0;
  #states = 0;

  constructor(text: string) {
    this.#text = text;
  }

  /** `looks`: what must or must not follow the start. */
  parse(whole: boolean): { looks: { start: State; wanted: boolean }[]; start: State } {
    const looks: { start: State; wanted: boolean }[] = [];
    const isAnchored = this.#takes("^");
    for (let look = this.#match(/\(\?[=!]/y); look; look = this.#match(/\(\?[=!]/y)) {
      const start = this.#alternatives()({ type: "match" });
      if (!this.#takes(")")) throw new Unknown();
      looks.push({ start, wanted: look[0] === "(?=" });
    }
    // Alternatives have what stands before them in the first one alone.
    if (looks.length === 0 && isAnchored) this.#at = 0;
    const part = looks.length > 0 ? this.#sequence() : this.#alternatives();
    if (this.#at < this.#text.length) throw new Unknown();
    const match: State = { type: "match" };
    return { looks, start: part(whole ? { type: "end", next: match } : match) };
  }

  #alternatives(): Part {
    const parts = [this.#sequence()];
    while (this.#takes("|")) parts.push(this.#sequence());
    if (parts.length === 1) return parts[0] as Part;
    return (next) => this.#made({ type: "either", ways: parts.map((part) => part(next)) });
  }

  #sequence(): Part {
    const parts: Part[] = [];
    while (this.#at < this.#text.length && !/[|)]/.test(this.#text[this.#at] as string)) parts.push(this.#quantified());
    return (next) => parts.reduceRight((after, part) => part(after), next);
  }

  #quantified(): Part {
    const isAnchor = /^([\^$]|\\[bB])/.test(this.#text.slice(this.#at));
    const part = this.#atom();
    const [all, sign, from, comma, to] = this.#match(/(?:([*+?])|\{(\d+)(,?)(\d*)\})\??/y) ?? [];
    if (all === undefined) return part;
    if (isAnchor || (comma === "" && to !== "")) throw new Unknown();
    const least = sign === undefined ? Number(from) : sign === "+" ? 1 : 0;
    const bounded = comma === "" ? least : to === "" ? Infinity : Number(to);
    const most = sign === undefined ? bounded : sign === "?" ? 1 : Infinity;
    if (least > most || Math.max(least, most === Infinity ? 0 : most) > MOST_STATES) throw new Unknown();
    return (next) => {
      let after = next;
      if (most === Infinity) {
        const loop: State & { type: "either" } = { type: "either", ways: [next] };
        this.#made(loop);
        loop.ways.push(part(loop));
        after = loop;
      } else {
        for (let i = least; i < most; i++) after = this.#made({ type: "either", ways: [part(after), next] });
      }
      for (let i = 0; i < least; i++) {
        this.#count(); // what is repeated may be nothing
        after = part(after);
      }
      return after;
    };
  }

  #atom(): Part {
    if (this.#takes("(")) {
      if (this.#takes("?") && !this.#takes(":")) throw new Unknown();
      const part = this.#alternatives();
      if (!this.#takes(")")) throw new Unknown();
      return part;
    }
    if (this.#takes("^")) return (next) => this.#made({ type: "begin", next });
    if (this.#takes("$")) return (next) => this.#made({ type: "end", next });
    const [edge] = this.#match(/\\[bB]/y) ?? [];
    if (edge !== undefined) return (next) => this.#made({ type: edge === "\\b" ? "edge" : "inside", next });
    const [one] = this.#match(/\[(?:\\[^bBcuxkpP0-9]|[^\]\\])*\]|\\[dDwWsS]|\\[^A-Za-z0-9]|[^\\[*+?{}()|]/y) ?? [];
    if (one === undefined) throw new Unknown();
    const isSet = one.length > 1 || one === ".";
    let holds = (character: string): boolean => character === one;
    if (isSet) {
      const set = setOf(one);
      holds = (character) => set.test(character);
    }
    return (next) => this.#made({ type: "one", holds, next });
  }

  #made(state: State): State {
    this.#count();
    return state;
  }

  #count(): void {
    if (++this.#states > MOST_STATES) throw new Unknown();
  }

  #takes(character: string): boolean {
    if (this.#text[this.#at] !== character) return false;
    this.#at++;
    return true;
  }

  #match(sticky: RegExp): RegExpExecArray | null {
    sticky.lastIndex = this.#at;
    const found = sticky.exec(this.#text);
    if (found) this.#at = sticky.lastIndex;
    return found;
  }
}

/** A test of one character: a class, or an escape. */
function setOf(one: string): RegExp {
  try {
    return new RegExp(`^${one}$`);
  } catch {
    throw new Unknown();
  }
}

function matches(start: State, text: string): boolean {
  let states = reached([start], 0, text);
  for (let at = 0; at < text.length && !states.has(matched); at++) {
    const next: State[] = [];
    for (const state of states) if (state.type === "one" && state.holds(text[at] as string)) next.push(state.next);
    states = reached(next, at + 1, text);
  }
  return states.has(matched);
}

/** Stands for every match: what follows does not matter. */
const matched: State = { type: "match" };

/** The states that are reached from some without a character. */
function reached(from: readonly State[], at: number, text: string): Set<State> {
  const isWord = (i: number): boolean => /^\w/.test(text.charAt(i));
  const isEdge = isWord(at - 1) !== isWord(at);
  const found = new Set<State>();
  const open = [...from];
  for (let state = open.pop(); state; state = open.pop()) {
    if (state.type === "match") return new Set([matched]);
    if (found.has(state)) continue;
    found.add(state);
    if (state.type === "either") for (const way of state.ways) open.push(way);
    else if (state.type !== "one" && holdsAt(state.type, at, text, isEdge)) open.push(state.next);
  }
  return found;
}

function holdsAt(type: "begin" | "end" | "edge" | "inside", at: number, text: string, isEdge: boolean): boolean {
  if (type === "begin") return at === 0;
  if (type === "end") return at === text.length;
  return (type === "edge") === isEdge;
}
