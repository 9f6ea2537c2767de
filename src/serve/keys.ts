// API keys: known by their digests, compared in a time that does not tell how much of a key is right.
import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { ApiError } from "./api-error.js";

export class Keys {
  readonly #digests: readonly Buffer[];

  constructor(keys: readonly string[]) {
    this.#digests = keys.map(digest);
  }

  /** The digest of a request's key, "" where there are no keys. Throws 401 where it is none of them. */
  check({ headers }: IncomingMessage): string {
    if (this.#digests.length === 0) return "";
    const given = digest(headers.authorization?.replace(/^Bearer /i, "") ?? "");
    if (this.#digests.map((key) => timingSafeEqual(key, given)).includes(true)) return given.toString("hex");
    throw new ApiError(401, "invalid_request_error", "the API key is missing or wrong", null, "invalid_api_key");
  }
}

const digest = (text: string): Buffer => createHash("sha256").update(text).digest();
