// One request from its first byte to its last: who asks, when he leaves or has waited too long, and what is told of it
// afterwards. No text of it is.
import { setMaxListeners } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Place } from "./admission.js";
import { ApiError } from "./api-error.js";
import { newId } from "./ids.js";
import type { Metrics } from "./metrics.js";

/** What is told of a request when it is over. Times are in milliseconds. */
export interface RequestLine {
  /** When it came, as ISO 8601. */
  time: string;
  id: string;
  method: string;
  path: string;
  /** Of the answer; 499: the client left before it was complete. */
  status: number;
  ms: number;
  /** The first 8 hexadecimal digits of the SHA-256 of its key. */
  key?: string;
  model?: string;
  stream?: boolean;
  promptTokens?: number;
  /** Of those, how many had been computed for an earlier text. */
  cachedTokens?: number;
  tokens?: number;
  firstTokenMs?: number;
  /** Why its texts ended. */
  finish?: readonly string[];
  /** What went wrong: a code, or what the server's own error says. */
  error?: string;
}

/** A timer takes no more than 2^31 - 1 milliseconds: a longer one would end at once. */
export const timerMs = (seconds: number): number => Math.min(seconds * 1000, 2 ** 31 - 1);

export class Call {
  readonly id = newId("req");
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** Aborted when the client leaves, or has waited too long. */
  readonly signal: AbortSignal;
  /** Resolves when the last byte is out, or nobody takes it. */
  readonly closed: Promise<void>;
  /** The digest of its key; "" for a server without keys. */
  key = "";
  path = "";
  /** Whether its line is written: not for those that only ask how it goes. */
  isLogged = false;
  model: string | undefined;
  isStream = false;
  place: Place | null = null;
  error: string | undefined;
  #prompt = 0;
  #cached = 0;
  #tokens = 0;
  #first = Number.NaN;
  #hasLeft = false;
  readonly #finish: string[] = [];
  readonly #last = new Map<number, number>();
  readonly #began = performance.now();
  readonly #time = new Date();
  readonly #metrics: Metrics;

  /** `seconds`: how long it may take. */
  constructor(request: IncomingMessage, response: ServerResponse, metrics: Metrics, seconds: number) {
    this.request = request;
    this.response = response;
    this.#metrics = metrics;
    response.setHeader("x-request-id", this.id);
    const control = new AbortController();
    // Node takes more than ten listeners for a mistake; each text of a request is one.
    setMaxListeners(0, control.signal);
    this.signal = control.signal;
    const timer = setTimeout(() => {
      const message = `the request took more than ${seconds} s`;
      // What is still to come of the request is not waited for.
      const headers = { connection: "close" };
      control.abort(new ApiError(408, "timeout_error", message, null, "request_timeout", headers));
      // Who does not read would hold it up for ever.
      if (response.writableNeedDrain) response.destroy();
    }, timerMs(seconds));
    this.closed = new Promise((resolve) => {
      response.once("close", () => {
        clearTimeout(timer);
        this.#hasLeft = !response.writableFinished;
        control.abort(new Error("the client is gone"));
        resolve();
      });
    });
  }

  /** Whether nobody takes the answer. */
  get hasLeft(): boolean {
    return this.#hasLeft;
  }

  /** A prompt was computed, so much of it from what was there. */
  countPrompt(tokens: number, cached: number): void {
    this.#prompt += tokens;
    this.#cached += cached;
    this.#metrics.promptTokens.inc(tokens);
  }

  get cachedTokens(): number {
    return this.#cached;
  }

  /** A token of text `index` came. */
  countToken(index: number): void {
    const now = performance.now();
    const last = this.#last.get(index);
    if (Number.isNaN(this.#first)) this.#first = now - this.#began;
    if (last === undefined) this.#metrics.firstToken.observe((now - this.#began) / 1000);
    else this.#metrics.betweenTokens.observe((now - last) / 1000);
    this.#last.set(index, now);
    this.#tokens++;
    this.#metrics.madeTokens.inc();
  }

  countEnd(reason: string): void {
    this.#finish.push(reason);
    this.#metrics.ended.inc({ finished_reason: reason });
  }

  /** It is over: gives its place to others. */
  end(): RequestLine {
    this.place?.leave();
    const ms = performance.now() - this.#began;
    const status = this.#hasLeft ? 499 : this.response.statusCode;
    if (this.#tokens > 0) this.#metrics.whole.observe(ms / 1000);
    return {
      time: this.#time.toISOString(),
      id: this.id,
      method: this.request.method ?? "",
      path: this.path,
      status,
      ms: Math.round(ms * 10) / 10,
      ...(this.key !== "" && { key: this.key.slice(0, 8) }),
      ...(this.model !== undefined && { model: this.model, stream: this.isStream }),
      ...(this.#prompt > 0 && { promptTokens: this.#prompt, cachedTokens: this.#cached, tokens: this.#tokens }),
      ...(this.#tokens > 0 && { firstTokenMs: Math.round(this.#first * 10) / 10 }),
      ...(this.#finish.length > 0 && { finish: this.#finish }),
      ...(this.error !== undefined && { error: this.error }),
    };
  }
}
