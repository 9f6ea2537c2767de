// Who may come in: so many texts at once and so many in the queue, so many requests of one key. Others are told when to come
// again.
import { ApiError } from "./api-error.js";

export interface AdmissionLimits {
  /** Texts that are computed at once. */
  readonly running: number;
  /** Texts that may wait. */
  readonly waiting: number;
  /** Requests of one key. */
  readonly perKey: number;
}

/** A request that came in, and the texts that it stands for. */
export interface Place {
  /** Throws 429 where there is no room for so many texts in all, 400 where there never is. */
  grow(texts: number): void;
  leave(): void;
}

export class Admission {
  readonly #limits: AdmissionLimits;
  readonly #requests = new Map<string, number>();
  #texts = 0;
  /** How long a request takes, in seconds: a mean that forgets. */
  #seconds = 1;

  constructor(limits: AdmissionLimits) {
    this.#limits = limits;
  }

  /** Takes a request of a key in, as one text at first. Throws 429 where there is no room. */
  enter(key: string): Place {
    const own = this.#requests.get(key) ?? 0;
    const { perKey } = this.#limits;
    if (own >= perKey) throw this.#full(`a key may have ${perKey} requests at once, and has them`);
    let texts = 0;
    const began = performance.now();
    const grow = (wanted: number): void => {
      const most = this.#limits.running + this.#limits.waiting;
      if (wanted > most) {
        const message = `a request must ask for at most ${most} texts, got ${wanted}`;
        throw new ApiError(400, "invalid_request_error", message);
      }
      if (this.#texts - texts + wanted > most) {
        throw this.#full(`${this.#texts} texts are computed or wait, and ${most} have room`);
      }
      this.#texts += wanted - texts;
      texts = wanted;
    };
    grow(1);
    this.#requests.set(key, own + 1);
    const leave = (): void => {
      const left = (this.#requests.get(key) as number) - 1;
      if (left === 0) this.#requests.delete(key);
      else this.#requests.set(key, left);
      this.#texts -= texts;
      texts = 0;
      this.#seconds += 0.1 * ((performance.now() - began) / 1000 - this.#seconds);
    };
    return { grow, leave };
  }

  #full(message: string): ApiError {
    const rounds = Math.max(1, this.#texts / this.#limits.running);
    const seconds = Math.min(60, Math.max(1, Math.ceil(this.#seconds * rounds)));
    const headers = { "retry-after": String(seconds) };
    return new ApiError(429, "rate_limit_exceeded", message, null, "rate_limit_exceeded", headers);
  }
}
