// Bodies of requests, and answers: JSON, or a stream of events.
import type { IncomingMessage, ServerResponse } from "node:http";
import { ApiError } from "./api-error.js";

/** The JSON of a body of at most `most` bytes. Rejects with the signal's reason when that comes first. */
export async function readJson(request: IncomingMessage, most: number, signal: AbortSignal): Promise<unknown> {
  const body = textOf(request, most);
  const aborted = new Promise<never>((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason as Error), { once: true });
  });
  aborted.catch(() => {});
  // Of a body that is not waited for, the end is none.
  body.catch(() => {});
  const text = await Promise.race([body, aborted]);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ApiError(400, "invalid_request_error", `the body must be JSON: ${(error as Error).message}`);
  }
}

async function textOf(request: IncomingMessage, most: number): Promise<string> {
  const pieces: Buffer[] = [];
  let size = 0;
  for await (const piece of request) {
    size += (piece as Buffer).length;
    if (size > most) {
      throw new ApiError(413, "invalid_request_error", `the body must have at most ${most} bytes, and has more`);
    }
    pieces.push(piece as Buffer);
  }
  return Buffer.concat(pieces).toString("utf8");
}

export function sendJson(response: ServerResponse, status: number, body: object, headers: object = {}): void {
  const text = JSON.stringify(body);
  response.writeHead(status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
    ...headers,
  });
  response.end(text);
}

/** A stream of server-sent events. Who reads slowly is waited for. */
export class EventStream {
  readonly #response: ServerResponse;

  constructor(response: ServerResponse) {
    this.#response = response;
  }

  /** Whether the status has been sent: an error is an event from then on. */
  get isOpen(): boolean {
    return this.#response.headersSent;
  }

  async send(data: object | "[DONE]"): Promise<void> {
    const response = this.#response;
    if (!response.headersSent) {
      // The last is nginx's: it would hold the events back.
      const headers = { "cache-control": "no-cache", "x-accel-buffering": "no" };
      response.writeHead(200, { "content-type": "text/event-stream", ...headers });
    }
    const text = typeof data === "string" ? data : JSON.stringify(data);
    if (response.write(`data: ${text}\n\n`) || response.destroyed) return;
    await new Promise<void>((resolve) => {
      const goOn = (): void => {
        response.off("drain", goOn).off("close", goOn);
        resolve();
      };
      response.on("drain", goOn).on("close", goOn);
    });
  }

  end(): void {
    this.#response.end();
  }
}
