// The server: routes, who may come in, and what every answer has in common. It mounts in any framework that hands out Node's
// request and response.
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import { createServer as createHttpServer } from "node:http";
import { Engine } from "../generation/index.js";
import { pageSize } from "../models/step-plan.js";
import { AdapterSet } from "../peft/index.js";
import { describe } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions } from "../tensor/options.js";
import { Admins, adminPosts, sendModels, servedAs } from "./adapters.js";
import { Admission } from "./admission.js";
import { ApiError, asApiError, wrongField } from "./api-error.js";
import type { RequestLine } from "./call.js";
import { Call, timerMs } from "./call.js";
import { chatCompletions } from "./chat.js";
import { completions } from "./completions.js";
import { embeddings } from "./embeddings.js";
import { Fields } from "./fields.js";
import { readJson, sendJson } from "./http.js";
import { now } from "./ids.js";
import { Keys } from "./keys.js";
import { Metrics } from "./metrics.js";
import type { ServeOptions } from "./options.js";
import { serveOptions } from "./options.js";
import { sendPage } from "./page.js";
import { responses } from "./responses.js";
import type { Served } from "./served.js";
import { warmUp } from "./warm-up.js";

/** What /health tells. Only one that is ready gets the status 200. */
export type ServeState = "loading" | "ready" | "draining" | "failed";

/** Answers requests of Node's http module. `dispose()` frees the keys and values, and ends what runs. */
export interface ServeHandler extends Disposable {
  (request: IncomingMessage, response: ServerResponse): void;
  readonly state: ServeState;
  /** Requests that are being answered. */
  readonly size: number;
  /** Tokens whose keys and values have room. */
  readonly kvTokens: number;
  /** Resolves after the first steps, which are slower than those that follow; rejects where they fail. */
  readonly ready: Promise<void>;
  /** Resolves with the error after which nothing can be computed any more: end the process then. */
  readonly failed: Promise<Error>;
  /** Refuses what comes from now on, with 503, and resolves when all that runs has ended, at the latest after so many seconds. */
  drain(seconds: number): Promise<void>;
  dispose(): void;
}

type Route = (fields: Fields, served: Served, call: Call) => Promise<void>;
const posts: Readonly<Record<string, Route>> = {
  "/v1/chat/completions": chatCompletions,
  "/v1/completions": completions,
  "/v1/embeddings": embeddings,
  "/v1/responses": responses,
};

/** After an error of this code nothing can be computed any more. */
const fatal = "ERR_BNB_CUDA";

/** All that requests share. */
class House {
  readonly served: Served;
  readonly metrics: Metrics;
  readonly failed: Promise<Error>;
  state: ServeState = "loading";
  readonly #admission: Admission;
  readonly #keys: Keys;
  readonly #admins: Admins;
  readonly #ownAdapters: AdapterSet | null;
  readonly #calls = new Set<Call>();
  readonly #maxBody: number;
  readonly #maxSeconds: number;
  readonly #log: ServeOptions["log"];
  #fail: (error: Error) => void = () => {};
  #onEmpty: (() => void) | null = null;

  constructor(options: ServeOptions) {
    const { model, name = "model", apiKeys = [], adminKeys = [], maxSequences = 64 } = options;
    const longest = model.config.maxPositionEmbeddings;
    const kvTokens = options.kvTokens ?? Math.min(8 * longest, 65_536);
    const tokenizer = model.tokenizerFor("createServeHandler");
    this.#ownAdapters = options.adapters ? null : new AdapterSet(model);
    const adapters = options.adapters ?? (this.#ownAdapters as AdapterSet);
    if (adapters.has(name)) {
      const rule = "createServeHandler: name must be that of no adapter";
      throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${name}`);
    }
    const sizes = { kvTokens, maxSequences, maxLength: Math.min(longest, kvTokens) };
    const engine = new Engine(model, { ...sizes, adapters, deterministic: options.deterministic ?? false });
    const { maxTokens = longest, sharePrefixes = false, toolFormat } = options;
    const own = { name, base: name, adapters, adapter: undefined, created: now() };
    this.served = { ...own, model, engine, tokenizer, maxTokens, sharePrefixes, toolFormat };
    this.metrics = new Metrics(engine);
    const { maxWaiting = 256, keyConcurrency = Infinity } = options;
    this.#admission = new Admission({ running: maxSequences, waiting: maxWaiting, perKey: keyConcurrency });
    this.#keys = new Keys(apiKeys);
    this.#admins = new Admins(adminKeys);
    this.#maxBody = options.maxBody ?? 2 << 20;
    this.#maxSeconds = options.maxSeconds ?? 600;
    this.#log = options.log;
    this.failed = new Promise((resolve) => {
      this.#fail = resolve;
    });
  }

  get size(): number {
    return this.#calls.size;
  }

  async answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const call = new Call(request, response, this.metrics, this.#maxSeconds);
    this.#calls.add(call);
    try {
      await this.#route(call);
    } catch (error) {
      this.#refuse(call, error);
    }
    await call.closed;
    this.#calls.delete(call);
    const line = call.end();
    if (call.isLogged) this.#tell(line);
    if (this.#calls.size === 0) this.#onEmpty?.();
  }

  /** A log that fails is no reason to serve nobody any more. */
  #tell(line: RequestLine): void {
    const warn = (error: unknown): void => {
      const why = error instanceof Error ? error.message : describe(error);
      process.emitWarning(`log: ${why}`, { type: "BnbWarning", code: "BNB_SERVE_LOG" });
    };
    try {
      Promise.resolve(this.#log?.(line)).catch(warn);
    } catch (error) {
      warn(error);
    }
  }

  async drain(seconds: number): Promise<void> {
    if (this.state !== "failed") this.state = "draining";
    if (this.#calls.size === 0) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, timerMs(seconds));
      this.#onEmpty = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  dispose(): void {
    this.served.engine.dispose();
    this.#ownAdapters?.dispose();
    this.metrics[Symbol.dispose]();
  }

  /** Tells what went wrong. */
  #refuse(call: Call, error: unknown): void {
    const { response, signal } = call;
    // It was aborted because it took too long, or because nobody is there to be told.
    const told = asApiError(signal.aborted && signal.reason instanceof ApiError ? signal.reason : error);
    if (!call.hasLeft) call.error = told.status === 500 ? told.message : (told.code ?? told.param ?? told.type);
    if (error instanceof BnbError && error.code === fatal) {
      this.state = "failed";
      this.#fail(error);
    }
    if (response.destroyed) return;
    if (response.headersSent) response.end(`data: ${JSON.stringify(told)}\n\n`);
    else sendJson(response, told.status, told, told.headers);
  }

  async #route(call: Call): Promise<void> {
    const { request, response } = call;
    const path = pathOf(request);
    call.path = path;
    if (path === "/health") {
      sendJson(response, this.state === "ready" ? 200 : 503, { status: this.state });
      return;
    }
    if (path === "/" && request.method === "GET") {
      sendPage(response);
      return;
    }
    if (path === "/metrics") {
      const text = await this.metrics.text();
      response.writeHead(200, { "content-type": this.metrics.contentType }).end(text);
      return;
    }
    call.isLogged = true;
    const admin = Object.hasOwn(adminPosts, path) ? adminPosts[path] : undefined;
    call.key = admin ? this.#admins.check(request) : this.#keys.check(request);
    const post = admin ?? (Object.hasOwn(posts, path) ? posts[path] : undefined);
    const isModels = path === "/v1/models" || path.startsWith("/v1/models/");
    if (!post && !isModels) throw new ApiError(404, "invalid_request_error", `there is no ${path}`, null, "not_found");
    const method = post ? "POST" : "GET";
    if (request.method !== method) {
      throw new ApiError(405, "invalid_request_error", `${path} takes ${method}, got ${request.method}`);
    }
    if (!post) {
      sendModels(path, this.served, response);
      return;
    }
    if (this.state === "draining" || this.state === "failed") throw unavailable(this.state);
    if (admin) {
      const fields = new Fields(await readJson(request, this.#maxBody, call.signal));
      sendJson(response, 200, await admin(fields, this.served));
      return;
    }
    call.place = this.#admission.enter(call.key);
    const fields = new Fields(await readJson(request, this.#maxBody, call.signal));
    const model = fields.text("model");
    if (model === undefined) throw wrongField("model", "the name of a model", model);
    const served = servedAs(this.served, model);
    call.model = model;
    await (post as Route)(fields, served, call);
  }
}

/**
 * The API of a model, as OpenAI's: POST /v1/chat/completions, /v1/completions, /v1/responses and /v1/embeddings, GET
 * /v1/models, /health and /metrics; at / a page to chat with it. All requests are computed together by one engine.
 *
 * @example
 * const handler = createServeHandler({ model, name: "smollm2" });
 * http.createServer((request, response) => handler(request, response)).listen(8000);
 */
export function createServeHandler(options: ServeOptions): ServeHandler {
  checkOptions("createServeHandler", options, serveOptions);
  const house = new House(options);
  const handler = (request: IncomingMessage, response: ServerResponse): void => {
    void house.answer(request, response);
  };
  const ready = warmUp(house.served).then(
    () => {
      if (house.state === "loading") house.state = "ready";
    },
    (error: unknown) => {
      house.state = "failed";
      throw error;
    },
  );
  // Who does not wait for it learns it from /health.
  ready.catch(() => {});
  const dispose = (): void => house.dispose();
  const drain = (seconds: number): Promise<void> => house.drain(seconds);
  const kvTokens = house.served.engine.stats.pages * pageSize;
  const more = { kvTokens, ready, failed: house.failed, drain, dispose, [Symbol.dispose]: dispose };
  Object.defineProperties(handler, { state: { get: () => house.state }, size: { get: () => house.size } });
  return Object.assign(handler, more) as unknown as ServeHandler;
}

/**
 * A server of that API, which is to be told where to listen. Closing it disposes the handler.
 *
 * @example
 * const server = createServer({ model }).listen(8000, "127.0.0.1");
 */
export function createServer(options: ServeOptions): Server {
  const handler = createServeHandler(options);
  const server = createHttpServer((request, response) => handler(request, response));
  return server.on("close", () => handler.dispose());
}

/** @internal What is answered while a model is loaded. */
export function answerLoading(request: IncomingMessage, response: ServerResponse): void {
  if (pathOf(request) === "/health") {
    sendJson(response, 503, { status: "loading" });
    return;
  }
  const told = unavailable("loading");
  sendJson(response, told.status, told, told.headers);
}

function unavailable(state: ServeState): ApiError {
  const headers = { "retry-after": "5", connection: "close" };
  return new ApiError(503, "server_error", `the server is ${state}`, null, "unavailable", headers);
}

/** Whatever stands where the address should: a path that nothing has. */
function pathOf({ url = "/" }: IncomingMessage): string {
  const path = url.split(/[?#]/, 1)[0] as string;
  return path.replace(/(.)\/$/, "$1");
}
