// bitsandbytes-node/serve: an OpenAI-compatible server for one model, as a handler or a server of its own.
export type { RequestLine } from "./call.js";
export type { ServeOptions } from "./options.js";
export { createServeHandler, createServer, type ServeHandler, type ServeState } from "./server.js";
