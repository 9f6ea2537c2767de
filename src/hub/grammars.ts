// Grammars over the tokens of a tokenizer: which tokens may follow, so that a text becomes JSON of a schema, or anything else
// that a grammar says. They are compiled and followed in threads of their own: one is compiled where no text is followed, so
// that none waits for it, and its texts are followed there. One that takes too long ends its thread, and the texts that were
// in it go on in another.
import type { MessagePort } from "node:worker_threads";
import { MessageChannel } from "node:worker_threads";
import { describe } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { Ended, GrammarThread } from "./grammar-thread.js";
import { checkSchema } from "./json-schema.js";

/**
 * What a text must be. `json_object`: a JSON object; `json_schema`: JSON that the schema describes, where `strict` (the
 * default) allows no properties but those it names, and refuses keywords that a grammar cannot keep (such as uniqueItems);
 * `grammar`: a text of the rule `root` of a grammar in GBNF's form; `text`: anything.
 */
export type ResponseFormat =
  | { readonly type: "text" }
  | { readonly type: "json_object" }
  | { readonly type: "json_schema"; readonly schema: object; readonly strict?: boolean }
  | { readonly type: "grammar"; readonly grammar: string };

/** A format, or, inside the library, text with tags in it (XGrammar's structural tags). */
export type GrammarSource =
  | Exclude<ResponseFormat, { type: "text" }>
  | { readonly type: "structural_tag"; readonly format: object };

/** @internal Milliseconds that a grammar may take. */
export const compileLimit = { ms: 10_000 };
const mostGrammar = 65_536;
/** Reasons why a grammar is none that are remembered. */
const mostKnown = 1000;
/** Each holds the vocabulary. When texts are followed in all of them, those of one wait for what is compiled. */
const mostThreads = 4;
/** Threads that may end under a text, or a grammar that is compiled. */
const mostTries = 4;

/** A text that follows a grammar. */
export class GrammarText implements Disposable {
  readonly #grammars: Grammars;
  readonly #key: string;
  readonly #ends: readonly number[];
  readonly #id: number;
  readonly #tokens: number[] = [];
  #thread: GrammarThread | null = null;
  #allowed: Int32Array | null = null;
  #isOver = false;

  /** @internal */
  constructor(grammars: Grammars, key: string, ends: readonly number[], id: number) {
    this.#grammars = grammars;
    this.#key = key;
    this.#ends = ends;
    this.#id = id;
  }

  /** Bit i % 32 of word i / 32 says whether token i of the tokenizer may follow; null: all may. */
  get allowed(): Int32Array | null {
    return this.#allowed;
  }

  /** Whether nothing may follow. */
  get isOver(): boolean {
    return this.#isOver;
  }

  /** @internal */
  open(): Promise<void> {
    return this.#ask(-1);
  }

  /** The token that follows, one of those allowed. */
  accept(token: number): Promise<void> {
    this.#tokens.push(token);
    return this.#ask(token);
  }

  dispose(): void {
    this.#thread?.call("close", { id: this.#id }).catch(() => {});
    if (this.#thread) this.#thread.texts--;
    this.#thread = null;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  async #ask(token: number): Promise<void> {
    for (let tries = 1; ; tries++) {
      const isNew = !this.#thread || this.#thread.isEnded;
      if (isNew) {
        this.#thread = this.#grammars.threadOf(this.#key);
        this.#thread.texts++;
      }
      const thread = this.#thread as GrammarThread;
      const [id, key, ends, tokens] = [this.#id, this.#key, this.#ends, this.#tokens];
      try {
        const answer = await (isNew
          ? thread.call("open", { id, key, ends, tokens })
          : thread.call("accept", { id, token }));
        this.#allowed = answer.allowed ?? null;
        this.#isOver = answer.isOver ?? false;
        return;
      } catch (error) {
        if (!(error instanceof Ended) || tries === mostTries) throw error;
      }
    }
  }
}

/** The grammars of a tokenizer. Disposed with it. */
export class Grammars implements Disposable {
  /** Sends the vocabulary to a thread. */
  readonly #send: (port: MessagePort) => void;
  readonly #threads: GrammarThread[] = [];
  readonly #refused = new Map<string, string>();
  /** Ends when the grammar before has been compiled. */
  #turn: Promise<unknown> = Promise.resolve();
  #last = 0;
  #disposed = false;

  /** @internal */
  constructor(send: (port: MessagePort) => void) {
    this.#send = send;
  }

  /**
   * Compiles a grammar, unless it is known. Rejects with ERR_BNB_OPTION, which names `name`, where it cannot be or takes more
   * than 10 s.
   */
  async compile(op: string, name: string, source: GrammarSource): Promise<void> {
    const key = keyOf(op, name, source);
    if (this.#threads.some((thread) => thread.has(key))) return;
    const turn = this.#turn.then(() => this.#compileSomewhere(key));
    this.#turn = turn.catch(() => {});
    try {
      await turn;
    } catch (error) {
      if (error instanceof BnbError || error instanceof Ended) throw error;
      const { message } = error as Error;
      this.#refused.set(key, message);
      if (this.#refused.size > mostKnown) this.#refused.delete(this.#refused.keys().next().value as string);
      throw new BnbError("ERR_BNB_OPTION", `${op}: ${name} must be one that can be compiled, got: ${message}`);
    }
  }

  /** A text that follows a grammar and ends with one of `ends`; with none of them it ends where the grammar does. Dispose it. */
  async open(op: string, name: string, source: GrammarSource, ends: readonly number[]): Promise<GrammarText> {
    await this.compile(op, name, source);
    const text = new GrammarText(this, keyOf(op, name, source), ends, ++this.#last);
    await text.open();
    return text;
  }

  /** @internal Where a grammar is followed: it has been compiled there, or will be. */
  threadOf(key: string): GrammarThread {
    const known = this.#threads.filter((thread) => thread.has(key));
    const thread = known.find(({ isCompiling }) => !isCompiling) ?? known[0] ?? this.#leastUsed();
    thread.use(key);
    return thread;
  }

  dispose(): void {
    this.#disposed = true;
    for (const thread of [...this.#threads]) thread.end();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** One that nobody waits for, if there can be one. */
  #leastUsed(): GrammarThread {
    if (this.#disposed) throw new BnbError("ERR_BNB_DISPOSED", "Tokenizer: it was disposed");
    const [least] = [...this.#threads].sort((a, b) => load(a) - load(b));
    if (least && (load(least) === 0 || this.#threads.length === mostThreads)) return least;
    const { port1, port2 } = new MessageChannel();
    this.#send(port1);
    const thread = new GrammarThread(port2, () => this.#threads.splice(this.#threads.indexOf(thread), 1));
    this.#threads.push(thread);
    return thread;
  }

  async #compileSomewhere(key: string): Promise<void> {
    for (let tries = 1; ; tries++) {
      try {
        return await this.#compileNow(key);
      } catch (error) {
        if (!(error instanceof Ended) || tries === mostTries) throw error;
      }
    }
  }

  async #compileNow(key: string): Promise<void> {
    if (this.#threads.some((thread) => thread.has(key))) return;
    const refused = this.#refused.get(key);
    if (refused !== undefined) throw new Error(refused);
    const thread = this.#leastUsed();
    thread.isCompiling = true;
    let timer: NodeJS.Timeout | undefined;
    try {
      // Its first call waits for the vocabulary.
      await thread.call("ready", {});
      const { ms } = compileLimit;
      // It may compute for ever; texts that are followed there go on in another.
      timer = setTimeout(() => thread.end(new Error(`it takes more than ${ms} ms`)), ms);
      await thread.call("compile", { key });
      thread.use(key);
    } finally {
      clearTimeout(timer);
      thread.isCompiling = false;
    }
  }
}

/** Who waits for a thread. */
const load = ({ texts, isCompiling }: GrammarThread): number => texts + (isCompiling ? 1 : 0);

/** What the thread is told of a grammar, and knows it by. */
function keyOf(op: string, name: string, source: GrammarSource): string {
  switch (source.type) {
    case "json_object":
      return JSON.stringify({ type: "json_schema", schema: { type: "object" }, strict: false });
    case "json_schema": {
      const { type, schema, strict = true } = source;
      checkSchema(op, `${name}.schema`, schema, strict);
      return JSON.stringify({ type, schema, strict });
    }
    case "grammar": {
      const { type, grammar } = source;
      if (typeof grammar === "string" && grammar.length <= mostGrammar) return JSON.stringify({ type, grammar });
      const rule = `a text of at most ${mostGrammar} characters`;
      throw new BnbError("ERR_BNB_OPTION", `${op}: ${name}.grammar must be ${rule}, got ${describe(grammar)}`);
    }
    case "structural_tag":
      return JSON.stringify(source);
    default: {
      const { type } = source as { type?: unknown };
      const rule = "text, json_object, json_schema or grammar";
      throw new BnbError("ERR_BNB_OPTION", `${op}: ${name}.type must be ${rule}, got ${describe(type)}`);
    }
  }
}
