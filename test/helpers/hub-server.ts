// A hub of one model on this machine, which misbehaves as it is told: connections that drop, statuses, and lies.
import { createHash } from "node:crypto";
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

export interface Seen {
  method: string;
  url: string;
  range: string | undefined;
  authorization: string | undefined;
  host: string | undefined;
}

/** What happens in the place of the usual answer. */
export type Fault = (request: IncomingMessage, response: ServerResponse) => void;

export class HubServer {
  readonly id = "org/model";
  readonly commit = "0123456789abcdef0123456789abcdef01234567";
  readonly files = new Map<string, Buffer>();
  readonly seen: Seen[] = [];
  /** For the next requests whose method and path match, one each. */
  readonly faults: { match: RegExp; fault: Fault }[] = [];
  readonly #server: Server;

  private constructor() {
    this.#server = createServer((request, response) => this.#answer(request, response));
  }

  static async start(): Promise<HubServer> {
    const hub = new HubServer();
    await new Promise<void>((resolve) => hub.#server.listen(0, "127.0.0.1", resolve));
    return hub;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }
  get endpoint(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** The next `times` requests of the kind, such as /^GET .*model/, get this instead. */
  next(match: RegExp, fault: Fault, times = 1): void {
    for (let i = 0; i < times; i++) this.faults.push({ match, fault });
  }

  /** Paths that were asked for since the last call, with method and range. */
  takeSeen(): string[] {
    return this.seen.splice(0).map(({ method, url, range }) => `${method} ${url}${range ? ` ${range}` : ""}`);
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const { method = "", url = "" } = request;
    const { range, authorization, host } = request.headers;
    this.seen.push({ method, url, range, authorization, host });
    const at = this.faults.findIndex(({ match }) => match.test(`${method} ${url}`));
    if (at >= 0) {
      this.faults.splice(at, 1)[0]!.fault(request, response);
      return;
    }
    if (url.startsWith(`/api/models/${this.id}/revision/`)) {
      const siblings = [...this.files.keys()].map((rfilename) => ({ rfilename }));
      response.end(JSON.stringify({ sha: this.commit, siblings }));
      return;
    }
    const [, kind, name] = new RegExp(`^/(${this.id}/resolve/${this.commit}|cdn)/(.+)$`).exec(url) ?? [];
    const file = this.files.get(name ?? "");
    if (!file || !name) {
      response.writeHead(404).end();
      return;
    }
    const large = name.endsWith(".safetensors");
    if (large && kind !== "cdn") {
      // Another origin, as the hub's storage is; the same machine by another name.
      response.writeHead(302, {
        location: `http://localhost:${this.port}/cdn/${name}`,
        "x-linked-etag": `"${createHash("sha256").update(file).digest("hex")}"`,
        "x-linked-size": file.byteLength,
        etag: '"something else"',
      });
      response.end();
      return;
    }
    const begin = Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0);
    if (begin >= file.byteLength && begin > 0) {
      response.writeHead(416).end();
      return;
    }
    response.writeHead(begin > 0 ? 206 : 200, {
      etag: `"${createHash("sha1").update(`blob ${file.byteLength}\0`).update(file).digest("hex")}"`,
      "content-length": file.byteLength - begin,
      ...(begin > 0 && { "content-range": `bytes ${begin}-${file.byteLength - 1}/${file.byteLength}` }),
    });
    response.end(method === "HEAD" ? undefined : file.subarray(begin));
  }
}

/** Answers with a status and nothing else. */
export const status =
  (code: number, headers: Record<string, string> = {}): Fault =>
  (_, response) => {
    response.writeHead(code, headers).end();
  };

/** Sends the first bytes of a file and breaks the connection. */
export const dropAfter =
  (file: Buffer, bytes: number): Fault =>
  (request, response) => {
    const begin = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
    response.writeHead(begin > 0 ? 206 : 200, {
      "content-length": file.byteLength - begin,
      ...(begin > 0 && { "content-range": `bytes ${begin}-${file.byteLength - 1}/${file.byteLength}` }),
    });
    response.write(file.subarray(begin, begin + bytes), () => setTimeout(() => response.destroy(), 20));
  };
