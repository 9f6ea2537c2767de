// A small model and servers of it, for tests.
import { mkdtempSync, rmSync } from "node:fs";
import type { Server } from "node:http";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import type { RequestLine, ServeHandler, ServeOptions } from "../../src/serve/index.js";
import { createServeHandler } from "../../src/serve/index.js";
import { bnb } from "./bnb.js";

export interface TinyModel extends Disposable {
  readonly folder: string;
  readonly model: CausalLM;
}

/** One layer, tokens that are bytes, and room for 1,024 of them. */
export async function tinyModel(): Promise<TinyModel> {
  const root = mkdtempSync(join(tmpdir(), "bnb-served-"));
  const folder = join(root, "model");
  const sizes = ["--hidden-size", "32", "--intermediate-size", "64", "--layers", "1", "--dtype", "float32"];
  const { code, stderr } = await bnb("make-model", folder, ...sizes, "--device", "cpu");
  if (code !== 0) throw new Error(stderr);
  const model = await AutoModelForCausalLM.fromPretrained(folder);
  const dispose = (): void => {
    model.dispose();
    rmSync(root, { recursive: true });
  };
  return { folder, model, [Symbol.dispose]: dispose };
}

export interface Running extends AsyncDisposable {
  readonly handler: ServeHandler;
  readonly server: Server;
  readonly url: string;
  readonly client: OpenAI;
  /** Lines of the requests that are over. */
  readonly lines: RequestLine[];
  /** The value of a metric, such as 'bnb:x{a="b"}'. */
  metric(name: string): Promise<number>;
}

/** A server of it on a port of its own. */
export async function serve(model: CausalLM, options: Partial<ServeOptions> = {}, apiKey = "none"): Promise<Running> {
  const lines: RequestLine[] = [];
  const handler = createServeHandler({ model, name: "tiny", log: (line) => lines.push(line), ...options });
  const server = createServer((request, response) => handler(request, response)).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
  const metric = async (name: string): Promise<number> => {
    const text = await (await fetch(`${url}/metrics`)).text();
    const line = text.split("\n").find((one) => one.startsWith(`${name} `));
    return Number(line?.slice(name.length));
  };
  const dispose = async (): Promise<void> => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    handler.dispose();
  };
  return { handler, server, url, client, lines, metric, [Symbol.asyncDispose]: dispose };
}

/** Looks until it is so. */
export async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 2));
}
