// `bnb serve`: a model over HTTP, until Ctrl-C or SIGTERM.
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { createServer } from "../../serve/index.js";
import { BnbError } from "../../tensor/errors.js";
import { command, usageError, wholeNumber } from "../command.js";
import { headOption, loadModel, loadOptions, quantizeHead, quantizeOptions } from "../load-model.js";
import { bytes } from "../terminal.js";

/** `bnb serve` as it is called. */
export const serve = command({
  words: ["model"],
  about: `Serves a model as OpenAI's API does: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models. All requests
are computed together. Listens for this machine alone unless --host says otherwise; ends with Ctrl-C.`,
  options: {
    host: { type: "string", value: "NAME", default: "127.0.0.1", help: "where to listen; 0.0.0.0 for everybody" },
    port: { type: "string", value: "N", default: "8000", help: "0 takes a free one" },
    name: { type: "string", value: "NAME", help: "what clients call the model (default: as it is called here)" },
    "api-key": { type: "string", value: "KEY", multiple: true, help: "who has none is refused; may be repeated" },
    "kv-tokens": {
      type: "string",
      value: "N",
      help: "tokens whose keys and values have room, of all requests together",
    },
    ...quantizeOptions,
    ...headOption,
    ...loadOptions,
  },
  async run(call) {
    const { values, words, terminal, signal } = call;
    const [name] = words as [string];
    const port = wholeNumber("--port", values.port, 0);
    if (port > 65_535) throw usageError(`--port must be at most 65535, got ${port}`);
    const kvTokens = values["kv-tokens"] === undefined ? undefined : wholeNumber("--kv-tokens", values["kv-tokens"]);
    const model = await loadModel(name, call);
    try {
      quantizeHead(model, values.head);
      const server = createServer({
        model,
        name: values.name ?? name,
        apiKeys: values["api-key"],
        ...(kvTokens !== undefined && { kvTokens }),
      });
      server.listen(port, values.host);
      try {
        await once(server, "listening", { signal });
      } catch (cause) {
        server.close();
        await once(server, "close");
        throw new BnbError("ERR_BNB_FILE", `${values.host}:${port}: ${(cause as Error).message}`, { cause });
      }
      const at = server.address() as AddressInfo;
      const url = `http://${at.family === "IPv6" ? `[${at.address}]` : at.address}:${at.port}/v1`;
      terminal.line(`${values.name ?? name} (${bytes(model.memoryFootprint())}) is served at ${url}`);
      const ended = once(server, "close");
      const stop = (): void => {
        server.close();
        server.closeAllConnections();
      };
      if (signal.aborted) stop();
      else signal.addEventListener("abort", stop, { once: true });
      await ended;
      return { json: { url } };
    } finally {
      model.dispose();
    }
  },
});
