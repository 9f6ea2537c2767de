// The server: routes to handlers, keys, and what every answer has in common. It mounts in any framework that hands out Node's
// request and response.
import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import { createServer as createHttpServer } from "node:http";
import { Engine } from "../generation/index.js";
import { CausalLM } from "../models/index.js";
import { anInstance, anInteger, arrayOf, aString } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { ApiError, asApiError, unknownModel, wrongField } from "./api-error.js";
import { chatCompletions } from "./chat.js";
import { completions } from "./completions.js";
import { embeddings } from "./embeddings.js";
import { Fields } from "./fields.js";
import { readJson, sendJson } from "./http.js";
import type { Served } from "./served.js";
import { now } from "./text-request.js";

export interface ServeOptions {
  /** A model with a tokenizer. It stays the caller's. */
  model: CausalLM;
  /** What clients call it. Default "model". */
  name?: string;
  /** Who has none of these is refused. Default: everybody is served. */
  apiKeys?: readonly string[];
  /** Tokens whose keys and values have room, of all requests together. Default: those of 8 of the longest texts, at most 65,536. */
  kvTokens?: number;
  /** Texts in one step. Default 64. */
  maxSequences?: number;
  /** Bytes of a request. Default 2 MiB. */
  maxBody?: number;
}
const serveOptions = optionTable<ServeOptions>({
  model: { ...anInstance(() => CausalLM, "a language model"), required: true },
  name: aString,
  apiKeys: arrayOf(aString),
  kvTokens: anInteger(1),
  maxSequences: anInteger(1, 1024),
  maxBody: anInteger(1),
});

/** Answers requests of Node's http module. `dispose()` frees the keys and values, and ends what runs. */
export interface ServeHandler extends Disposable {
  (request: IncomingMessage, response: ServerResponse): void;
  dispose(): void;
}

/**
 * The API of a model, as OpenAI's: POST /v1/chat/completions, /v1/completions and /v1/embeddings, GET /v1/models and /health.
 * All requests are computed together by one engine.
 *
 * @example
 * const handler = createServeHandler({ model, name: "smollm2" });
 * http.createServer((request, response) => handler(request, response)).listen(8000);
 */
export function createServeHandler(options: ServeOptions): ServeHandler {
  checkOptions("createServeHandler", options, serveOptions);
  const { model, name = "model", apiKeys = [], maxSequences = 64, maxBody = 2 << 20 } = options;
  const longest = model.config.maxPositionEmbeddings;
  const kvTokens = options.kvTokens ?? Math.min(8 * longest, 65_536);
  const tokenizer = model.tokenizerFor("createServeHandler");
  const engine = new Engine(model, { kvTokens, maxSequences, maxLength: Math.min(longest, kvTokens) });
  const served: Served = { name, model, engine, tokenizer, created: now() };
  const keys = apiKeys.map(digest);
  const handler = (request: IncomingMessage, response: ServerResponse): void => {
    void answer(served, keys, maxBody, request, response);
  };
  const dispose = (): void => engine.dispose();
  return Object.assign(handler, { dispose, [Symbol.dispose]: dispose });
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

type Route = (fields: Fields, served: Served, response: ServerResponse, signal: AbortSignal) => Promise<void>;
const posts: Readonly<Record<string, Route>> = {
  "/v1/chat/completions": chatCompletions,
  "/v1/completions": completions,
  "/v1/embeddings": embeddings,
};

async function answer(
  served: Served,
  keys: readonly Buffer[],
  maxBody: number,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const left = new AbortController();
  response.on("close", () => left.abort(new Error("the client is gone")));
  try {
    await route(served, keys, maxBody, request, response, left.signal);
  } catch (error) {
    // Nobody is there to be told.
    if (left.signal.aborted) return;
    const told = asApiError(error);
    if (response.headersSent) response.end(`data: ${JSON.stringify(told)}\n\n`);
    else sendJson(response, told.status, told);
  }
}

async function route(
  served: Served,
  keys: readonly Buffer[],
  maxBody: number,
  request: IncomingMessage,
  response: ServerResponse,
  signal: AbortSignal,
): Promise<void> {
  const path = new URL(request.url ?? "/", "http://localhost").pathname.replace(/(.)\/$/, "$1");
  if (path === "/health") {
    sendJson(response, 200, { status: "ok" });
    return;
  }
  checkKey(request, keys);
  const post = Object.hasOwn(posts, path) ? posts[path] : undefined;
  const isModels = path === "/v1/models" || path.startsWith("/v1/models/");
  if (!post && !isModels) throw new ApiError(404, "invalid_request_error", `there is no ${path}`, null, "not_found");
  const method = post ? "POST" : "GET";
  if (request.method !== method) {
    throw new ApiError(405, "invalid_request_error", `${path} takes ${method}, got ${request.method}`);
  }
  if (!post) {
    models(path, served, response);
    return;
  }
  const fields = new Fields(await readJson(request, maxBody));
  const model = fields.text("model");
  if (model === undefined) throw wrongField("model", "the name of a model", model);
  if (model !== served.name) throw unknownModel(model, [served.name]);
  await post(fields, served, response, signal);
}

function models(path: string, { name, created }: Served, response: ServerResponse): void {
  const own = { id: name, object: "model", created, owned_by: "bitsandbytes-node" };
  const asked = path.slice("/v1/models/".length);
  if (asked !== "" && asked !== encodeURIComponent(name) && asked !== name) throw unknownModel(asked, [name]);
  sendJson(response, 200, asked === "" ? { object: "list", data: [own] } : own);
}

const digest = (text: string): Buffer => createHash("sha256").update(text).digest();

/** In a time that does not tell how much of a key is right. */
function checkKey({ headers }: IncomingMessage, keys: readonly Buffer[]): void {
  if (keys.length === 0) return;
  const given = digest(headers.authorization?.replace(/^Bearer /i, "") ?? "");
  if (keys.map((key) => timingSafeEqual(key, given)).includes(true)) return;
  throw new ApiError(401, "invalid_request_error", "the API key is missing or wrong", null, "invalid_api_key");
}
