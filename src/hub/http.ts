// Requests to the hub: the token goes to the hub alone, failures that may pass are tried again, and the others say what to
// do.
import { setTimeout as wait } from "node:timers/promises";
import { BnbError } from "../tensor/errors.js";

/** How requests are made. */
export interface HubRequests {
  readonly endpoint: string;
  readonly token: string | null;
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds before the first retry; each further one waits twice as long. Default 500. */
  readonly retryDelay?: number;
  /** How often what fails is tried in a row. Default 5. */
  readonly attempts?: number;
}

const ATTEMPTS = 5;
const LONGEST_WAIT = 30_000;
const REDIRECTS = 5;
const STALLED = 60_000;

/** A failure that may pass: tried again, after `seconds` where the server says so. */
class Transient extends Error {
  readonly seconds: number | undefined;
  constructor(message: string, options?: ErrorOptions & { seconds?: number | undefined }) {
    super(message, options);
    this.seconds = options?.seconds;
  }
}

/** What came is not what was asked for. Unlike bytes of a connection that drops, those of such an attempt are no progress. */
export class WrongContent extends Error {}

/**
 * Runs `attempt` until it succeeds. What fails without being final is repeated, up to `attempts` times in a row without
 * progress, which `attempt` reports, and as often in all where wrong content comes. Throws ERR_BNB_FILE with the last reason, ERR_BNB_ABORTED when the signal is.
 */
export async function withRetries<T>(
  what: string,
  requests: HubRequests,
  attempt: (progress: () => void) => Promise<T>,
): Promise<T> {
  const { attempts = ATTEMPTS } = requests;
  let failures = 0;
  let wrong = 0;
  for (;;) {
    throwIfAborted(requests.signal);
    let progressed = false;
    try {
      return await attempt(() => {
        progressed = true;
      });
    } catch (cause) {
      throwIfAborted(requests.signal);
      if (cause instanceof BnbError) throw cause;
      failures = progressed ? 1 : failures + 1;
      if (cause instanceof WrongContent) wrong++;
      if (Math.max(failures, wrong) >= attempts) {
        const reason = reasonOf(cause);
        throw new BnbError("ERR_BNB_FILE", `${what}: failed ${attempts} times, at last with: ${reason}`, { cause });
      }
      const seconds = cause instanceof Transient ? cause.seconds : undefined;
      const delay = seconds === undefined ? (requests.retryDelay ?? 500) * 2 ** (failures - 1) : seconds * 1000;
      await wait(Math.min(delay, LONGEST_WAIT), undefined, requests.signal && { signal: requests.signal }).catch(() =>
        throwIfAborted(requests.signal),
      );
    }
  }
}

// What fetch throws says why only in its cause.
function reasonOf(error: unknown): string {
  const { message, cause } = error as Error;
  return cause instanceof Error && cause.message !== "" ? `${message} (${cause.message})` : message;
}

export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (!signal?.aborted) return;
  throw new BnbError("ERR_BNB_ABORTED", "fromPretrained: aborted by its signal", { cause: signal.reason });
}

/** The response of a URL, after redirects, with a status below 400 or among `accepted`. Throws for all others. */
export async function request(
  url: string,
  requests: HubRequests,
  options: { method?: string; headers?: Record<string, string>; accepted?: readonly number[]; follow?: boolean } = {},
): Promise<Response> {
  const home = new URL(requests.endpoint).origin;
  for (let at = new URL(url), hops = 0; ; hops++) {
    const headers: Record<string, string> = { "user-agent": "bitsandbytes-node", ...options.headers };
    // Files lie elsewhere, with signatures of their own: the token is for the hub.
    if (requests.token !== null && at.origin === home) headers["authorization"] = `Bearer ${requests.token}`;
    const response = await fetch(at, {
      method: options.method ?? "GET",
      headers: { "accept-encoding": "identity", ...headers },
      redirect: "manual",
      signal: requests.signal ?? null,
    });
    const { status } = response;
    const location = response.headers.get("location");
    const next = status >= 300 && status < 400 && location !== null ? new URL(location, at) : undefined;
    if (next && (options.follow !== false || next.origin === home)) {
      await response.body?.cancel();
      if (hops >= REDIRECTS) throw new BnbError("ERR_BNB_FILE", `${url}: redirected more than ${REDIRECTS} times`);
      if (!/^https?:$/.test(next.protocol)) {
        throw new BnbError("ERR_BNB_FILE", `${url}: redirected to ${next.protocol}, which is no web address`);
      }
      at = next;
      continue;
    }
    if (status < 400 || options.accepted?.includes(status)) return response;
    await response.body?.cancel();
    throw failureOf(response, url, requests);
  }
}

/** The pieces of a body; a connection that stands still is an error. */
export async function* bodyOf(response: Response): AsyncGenerator<Uint8Array> {
  const reader = response.body?.getReader();
  if (!reader) return;
  try {
    for (;;) {
      const stalled = new AbortController();
      const piece = await Promise.race([
        reader.read(),
        wait(STALLED, undefined, { signal: stalled.signal }).then(() => {
          throw new Transient(`no byte came for ${STALLED / 1000} seconds`);
        }),
      ]).finally(() => stalled.abort());
      if (piece.done) return;
      yield piece.value;
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

function failureOf(response: Response, url: string, { token }: HubRequests): Error {
  const { status } = response;
  const final = (what: string): BnbError => new BnbError("ERR_BNB_FILE", `${url}: ${what} (HTTP ${status})`);
  const login = token === null ? "set HF_TOKEN or give token" : "the token that was given is not accepted";
  if (status === 401) return final(`needs a login, or does not exist: ${login}`);
  if (status === 403) {
    return final(`access is refused: the model may be gated, so accept its licence on its page, and ${login}`);
  }
  if (status === 404) return final("does not exist, or is private");
  if (status !== 429 && status !== 408 && status < 500) return final(`the server refuses: ${response.statusText}`);
  const after = Number(response.headers.get("retry-after") ?? Number.NaN);
  const reason = `HTTP ${status} ${response.statusText}`;
  return new Transient(`${reason} from ${url}`, Number.isFinite(after) && after >= 0 ? { seconds: after } : {});
}
