// A text that an engine continues. Whoever holds it asks for the tokens that may follow, says which one does, and may
// fork it or take tokens back; the engine computes those who ask together.
import { BnbError } from "../tensor/errors.js";
import type { BlockSequence } from "./block-pool.js";
import type { RowRules, RulesOf } from "./row-rules.js";
import type { RowDraw } from "./sampling.js";
import type { Job } from "./scheduler.js";
import type { AdapterUse } from "./step-adapters.js";
import type { Turns } from "./turns.js";

/** What may follow one token. */
export interface Next {
  /** The token drawn. */
  readonly id: number;
  /** Its natural log-probability before temperature and cuts; NaN where none were asked for. */
  readonly logprob: number;
  /** The most likely tokens, as many as asked for, best first. */
  readonly bestIds: Int32Array;
  readonly bestLogprobs: Float32Array;
  /** Log-probabilities of all tokens; null where they were not asked for. */
  readonly all: Float32Array | null;
}

/** @internal What a branch tells its engine. */
export interface BranchOwner {
  readonly deterministic: boolean;
  /** Somebody waits for what follows it. */
  wake(branch: Branch): void;
  fork(branch: Branch): Branch;
  close(branch: Branch): void;
}

/** How much is told of each token. */
export interface Telling {
  /** Whether log-probabilities are wanted. */
  readonly logprobs: boolean;
  /** How many of the most likely tokens, 0 to 20. */
  readonly best: number;
  /** Whether the log-probabilities of all tokens are wanted, before penalties and rules. Default false. */
  readonly all?: boolean;
}

interface Waiting {
  readonly wanted: number;
  /** Of each wanted row. */
  readonly rules: readonly (RowRules | null)[];
  readonly resolve: (next: Next[]) => void;
  readonly reject: (reason: unknown) => void;
}

/** A text that an engine continues, token by token: `engine.open` makes it. Disposing it gives its pages back. */
export class Branch implements Job, Disposable {
  readonly order: number;
  readonly ids: number[];
  readonly sequence: BlockSequence;
  readonly draw: RowDraw;
  readonly telling: Telling;
  readonly rules: RulesOf | null;
  /** @internal */
  readonly adapter: AdapterUse | null;
  readonly prompt: number;
  /** @internal Null where positions turn alike in all texts. */
  readonly turns: Turns | null;
  readonly #maxLength: number;
  readonly #owner: BranchOwner;
  #waiting: Waiting | null = null;
  #closed = false;

  /** @internal */
  constructor(init: {
    order: number;
    ids: number[];
    sequence: BlockSequence;
    draw: RowDraw;
    telling: Telling;
    rules: RulesOf | null;
    adapter: AdapterUse | null;
    prompt: number;
    turns: Turns | null;
    maxLength: number;
    owner: BranchOwner;
  }) {
    this.order = init.order;
    this.ids = init.ids;
    this.sequence = init.sequence;
    this.draw = init.draw;
    this.telling = init.telling;
    this.rules = init.rules;
    this.adapter = init.adapter;
    this.prompt = init.prompt;
    this.turns = init.turns;
    this.#maxLength = init.maxLength;
    this.#owner = init.owner;
  }

  /** Tokens it may have at most, the one to be drawn last not counted. */
  get maxLength(): number {
    return this.#maxLength;
  }

  get wanted(): number {
    return this.#waiting?.wanted ?? 0;
  }

  /** @internal The rules of each row that is waited for. */
  get wantedRules(): readonly (RowRules | null)[] {
    return this.#waiting?.rules ?? [];
  }

  /** @internal */
  get alike(): number {
    return this.turns?.alike(this.sequence.length, this.ids.length) ?? Infinity;
  }

  /** Whether its engine is deterministic, and so answers for one token at a time. */
  get isSteady(): boolean {
    return this.#owner.deterministic;
  }

  /**
   * What may follow each of the last `rows` tokens. Several where the last ones are guesses: those that turn out wrong are
   * taken back with `truncate`.
   */
  next(rows = 1): Promise<Next[]> {
    return new Promise((resolve, reject) => {
      if (this.#closed) throw new BnbError("ERR_BNB_DISPOSED", "generate: the text was disposed");
      if (this.#waiting) throw new BnbError("ERR_BNB_ARGUMENT", "next: its last answer must have come before the next");
      if (rows > 1 && this.#owner.deterministic) {
        const rule = "a deterministic engine answers for one token at a time";
        throw new BnbError("ERR_BNB_UNSUPPORTED", `next: ${rule}, got ${rows}`);
      }
      // Tokens computed before but wanted again are computed again.
      const known = this.ids.length - rows;
      if (this.sequence.length > known) this.sequence.truncate(known);
      this.turns?.truncate(known);
      const rules = Array.from({ length: rows }, (_, i) => this.rules?.(this.#upTo(known + i + 1)) ?? null);
      this.#waiting = { wanted: rows, rules, resolve, reject };
      this.#owner.wake(this);
    });
  }

  /** Adds tokens. */
  push(...ids: readonly number[]): void {
    if (this.ids.length + ids.length > this.#maxLength) {
      const sizes = `${this.ids.length} and ${ids.length}`;
      throw new BnbError("ERR_BNB_ARGUMENT", `push: at most ${this.#maxLength} tokens have room, got ${sizes} more`);
    }
    this.ids.push(...ids);
  }

  /** Takes back all tokens but the first `length`. */
  truncate(length: number): void {
    this.ids.length = Math.min(length, this.ids.length);
    this.sequence.truncate(Math.min(length, this.sequence.length));
    this.turns?.truncate(length);
  }

  /** Another text with the same tokens, which shares what has been computed. Drawn from alike; not with penalties. */
  fork(): Branch {
    return this.#owner.fork(this);
  }

  #upTo(length: number): readonly number[] {
    return length === this.ids.length ? this.ids : this.ids.slice(0, length);
  }

  /** @internal */
  answer(next: Next[]): void {
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.resolve(next);
  }

  /** @internal */
  fail(reason: unknown): void {
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.reject(reason);
  }

  dispose(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.fail(new BnbError("ERR_BNB_DISPOSED", "generate: the text was disposed"));
    this.sequence.dispose();
    this.#owner.close(this);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
