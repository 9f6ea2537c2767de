// One thread in which grammars are compiled and followed, as those who ask it see it.
import { join } from "node:path";
import type { MessagePort } from "node:worker_threads";
import { Worker } from "node:worker_threads";

/** Compiled grammars that a thread keeps. */
const kept = 32;

interface Answer {
  readonly call: number;
  readonly isOver?: boolean;
  readonly allowed?: Int32Array | null;
  readonly error?: string;
  /** What the thread had in memory is gone. */
  readonly isLost?: boolean;
}
interface Waiting {
  readonly operation: string;
  resolve(answer: Answer): void;
  reject(error: unknown): void;
}

/** The thread ended while somebody waited for it. */
export class Ended extends Error {
  constructor() {
    super("the thread in which grammars are followed has ended");
  }
}

export class GrammarThread {
  /** Texts that are followed in it. */
  texts = 0;
  isCompiling = false;
  /** What has been compiled in it and is kept, the latest used last. */
  readonly #compiled = new Set<string>();
  readonly #worker: Worker;
  readonly #calls = new Map<number, Waiting>();
  readonly #onEnd: (thread: GrammarThread) => void;
  #last = 0;
  #isEnded = false;

  constructor(vocabulary: MessagePort, onEnd: (thread: GrammarThread) => void) {
    this.#onEnd = onEnd;
    const options = { workerData: { vocabulary, kept }, transferList: [vocabulary] };
    this.#worker = new Worker(join(__dirname, "grammar-worker.cjs"), options);
    this.#worker.on("message", (answer: Answer) => this.#settle(answer));
    this.#worker.on("error", (error) => this.end(error));
    this.#worker.unref();
  }

  call(operation: string, options: object): Promise<Answer> {
    return new Promise((resolve, reject) => {
      if (this.#isEnded) throw new Ended();
      const call = ++this.#last;
      this.#calls.set(call, { operation, resolve, reject });
      this.#worker.ref();
      this.#worker.postMessage({ call, operation, options });
    });
  }

  has(key: string): boolean {
    return this.#compiled.has(key);
  }

  /** A grammar is compiled, or used again. */
  use(key: string): void {
    this.#compiled.delete(key);
    this.#compiled.add(key);
    if (this.#compiled.size > kept) this.#compiled.delete(this.#compiled.keys().next().value as string);
  }

  get isEnded(): boolean {
    return this.#isEnded;
  }

  /** `reason`: why what is being compiled cannot be. Others who wait learn only that it ended, and may go elsewhere. */
  end(reason?: Error): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    for (const { operation, reject } of this.#calls.values()) {
      reject(operation === "compile" && reason ? reason : new Ended());
    }
    this.#calls.clear();
    void this.#worker.terminate();
    this.#onEnd(this);
  }

  #settle(answer: Answer): void {
    const waiting = this.#calls.get(answer.call);
    if (!waiting) return;
    this.#calls.delete(answer.call);
    if (this.#calls.size === 0) this.#worker.unref();
    if (answer.error === undefined) waiting.resolve(answer);
    else waiting.reject(new Error(answer.error));
    if (answer.isLost) this.end();
  }
}
