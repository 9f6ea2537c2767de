// `bnb serve`: a model over HTTP, until Ctrl-C or SIGTERM.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import type { Server } from "node:http";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import type { CausalLM } from "../../models/index.js";
import { AdapterSet } from "../../peft/index.js";
import type { ServeHandler } from "../../serve/index.js";
import { createServeHandler } from "../../serve/index.js";
import { answerLoading } from "../../serve/server.js";
import { toolFormats } from "../../serve/tools/choose.js";
import { BnbError } from "../../tensor/errors.js";
import { choice, command, usageError, wholeNumber } from "../command.js";
import { activationsOption, headOption, loadModel, loadOptions, quantizeOptions } from "../load-model.js";
import { bytes, count } from "../terminal.js";

/** `bnb serve` as it is called. */
export const serve = command({
  words: ["model"],
  about: `Serves a model as OpenAI's API does: /v1/chat/completions, /v1/responses, /v1/completions, /v1/embeddings,
/v1/models. All requests are computed together. A browser finds a page to chat with it at /. GET /health says whether it
is ready, /metrics how it goes (Prometheus). Listens for this machine alone unless --host says otherwise. Ctrl-C and
SIGTERM let what runs end first; a second one ends at once.`,
  options: {
    host: { type: "string", value: "NAME", default: "127.0.0.1", help: "where to listen; 0.0.0.0 for everybody" },
    port: { type: "string", value: "N", default: "8000", help: "0 takes a free one" },
    name: { type: "string", value: "NAME", help: "what clients call the model (default: as it is called here)" },
    "api-key": { type: "string", value: "KEY", multiple: true, help: "who has none is refused; may be repeated" },
    "api-key-file": { type: "string", value: "FILE", help: "keys, one a line; the process list does not show these" },
    lora: {
      type: "string",
      value: "NAME=FOLDER",
      multiple: true,
      help: "an adapter over the model, which clients call NAME; may be repeated",
    },
    "admin-key": {
      type: "string",
      value: "KEY",
      multiple: true,
      help: "who has it may load and unload adapters; may be repeated",
    },
    "tool-format": {
      type: "string",
      value: "WAY",
      help: `how it writes calls: ${toolFormats.join(", ")} (default: as its template shows)`,
    },
    "kv-tokens": {
      type: "string",
      value: "N",
      help: "tokens whose keys and values have room, of all requests together",
    },
    "max-waiting": {
      type: "string",
      value: "N",
      default: "256",
      help: "texts that may wait; more are told to come later",
    },
    "max-tokens": { type: "string", value: "N", help: "tokens that a text may be asked for" },
    "max-seconds": { type: "string", value: "N", default: "600", help: "how long a request may take" },
    "key-concurrency": { type: "string", value: "N", help: "requests that one key may have at once" },
    "share-prefixes": { type: "boolean", help: "whoever has a key may be served what another's prompt began with" },
    deterministic: {
      type: "boolean",
      help: "a text is the same to the bit whatever else is computed, which is slow",
    },
    "drain-seconds": { type: "string", value: "N", default: "30", help: "how long what runs may take to end" },
    "no-log": { type: "boolean", help: "no line for each request" },
    ...quantizeOptions,
    ...headOption,
    ...activationsOption,
    ...loadOptions,
  },
  async run(call) {
    const { words, terminal, signal, stderr } = call;
    const { lora, ...values } = call.values;
    const [name] = words as [string];
    const port = wholeNumber("--port", values.port, 0);
    if (port > 65_535) throw usageError(`--port must be at most 65535, got ${port}`);
    const number = (key: "kv-tokens" | "max-tokens" | "key-concurrency"): number | undefined =>
      values[key] === undefined ? undefined : wholeNumber(`--${key}`, values[key]);
    const limits = {
      kvTokens: number("kv-tokens"),
      maxTokens: number("max-tokens"),
      keyConcurrency: number("key-concurrency"),
      maxWaiting: wholeNumber("--max-waiting", values["max-waiting"], 0),
      maxSeconds: wholeNumber("--max-seconds", values["max-seconds"]),
    };
    const apiKeys = [...given("--api-key", values["api-key"]), ...keysIn(values["api-key-file"])];
    const adminKeys = given("--admin-key", values["admin-key"]);
    const toolFormat =
      values["tool-format"] === undefined ? undefined : choice("--tool-format", values["tool-format"], toolFormats);
    const loras = (lora ?? []).map(adapterOf);
    const drainSeconds = wholeNumber("--drain-seconds", values["drain-seconds"], 0);
    const called = values.name ?? name;
    if (called.trim() === "") throw usageError("--name must not be empty: clients ask for the model by it");
    // It listens at once, so that /health tells that the model is being loaded.
    let handler: ServeHandler | null = null;
    const server = createServer((request, response) => (handler ?? answerLoading)(request, response));
    await listen(server, port, values.host, signal);
    let model: CausalLM | null = null;
    let adapters: AdapterSet | null = null;
    try {
      model = await loadModel(name, { values, terminal, signal });
      adapters = new AdapterSet(model);
      for (const { name, folder } of loras) await adapters.load(name, folder);
      handler = createServeHandler({
        model,
        name: called,
        adapters,
        apiKeys,
        toolFormat,
        adminKeys,
        deterministic: values.deterministic,
        sharePrefixes: values["share-prefixes"],
        ...limits,
        ...(!values["no-log"] && { log: (line) => stderr.write(`${JSON.stringify(line)}\n`) }),
      });
      await handler.ready;
      const page = urlOf(server);
      const url = `${page}/v1`;
      const room = `${bytes(model.memoryFootprint())}, room for ${count(handler.kvTokens)} tokens`;
      const chats = (model.tokenizer?.chatTemplates.size ?? 0) > 0 ? `, a chat page at ${page}` : "";
      terminal.line(`${called} (${room}) is served at ${url}${chats}`);
      const fault = await Promise.race([handler.failed, stopped(signal)]);
      // After a fault they all get an error.
      await handler.drain(fault ? 1 : drainSeconds);
      if (fault) throw fault;
      return { json: { url } };
    } finally {
      handler?.dispose();
      await close(server);
      adapters?.dispose();
      model?.dispose();
    }
  },
});

/** An empty key is most likely a variable that is not set. */
function given(option: string, keys: readonly string[] = []): readonly string[] {
  if (keys.some((key) => key.trim() === "")) throw usageError(`${option} must be a key that is not empty`);
  return keys;
}

/** The lines of a file of keys. One without any is an error, or everybody would be served. */
function keysIn(file: string | undefined): string[] {
  if (file === undefined) return [];
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new BnbError("ERR_BNB_FILE", `--api-key-file: ${(cause as Error).message}`, { cause });
  }
  const keys = text.split("\n").map((line) => line.trim());
  const found = keys.filter((key) => key !== "");
  if (found.length === 0) throw usageError(`--api-key-file: ${file} must hold a key a line, and has none`);
  return found;
}

/** What follows the first "=" is the folder, in which others may be. */
function adapterOf(text: string): { name: string; folder: string } {
  const at = text.indexOf("=");
  if (at > 0 && at < text.length - 1) return { name: text.slice(0, at), folder: text.slice(at + 1) };
  throw usageError(`--lora must be NAME=FOLDER, got ${text}`);
}

/** Resolves when the process is told to end: by Ctrl-C, or by SIGTERM, of which a second one does not wait. */
async function stopped(signal: AbortSignal): Promise<null> {
  const aborted = signal.aborted ? Promise.resolve() : once(signal, "abort");
  let onTerm: () => void = () => {};
  const terminated = new Promise<void>((resolve) => {
    onTerm = resolve;
  });
  process.once("SIGTERM", onTerm);
  await Promise.race([aborted, terminated]);
  process.off("SIGTERM", onTerm);
  return null;
}

async function listen(server: Server, port: number, host: string, signal: AbortSignal): Promise<void> {
  server.listen(port, host);
  try {
    await once(server, "listening", { signal });
  } catch (cause) {
    await close(server);
    throw new BnbError("ERR_BNB_FILE", `${host}:${port}: ${(cause as Error).message}`, { cause });
  }
}

async function close(server: Server): Promise<void> {
  const ended = once(server, "close");
  server.close();
  server.closeAllConnections();
  await ended;
}

function urlOf(server: Server): string {
  const at = server.address() as AddressInfo;
  return `http://${at.family === "IPv6" ? `[${at.address}]` : at.address}:${at.port}`;
}
