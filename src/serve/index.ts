// bitsandbytes-node/serve: an OpenAI-compatible server for one model, as a handler or a server of its own.
export { createServeHandler, createServer, type ServeHandler, type ServeOptions } from "./server.js";
