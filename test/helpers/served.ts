// A small model and servers of it, for tests.
import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import type { Server } from "node:http";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import { expect } from "vitest";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import type { RequestLine, ServeHandler, ServeOptions } from "../../src/serve/index.js";
import { createServeHandler } from "../../src/serve/index.js";
import { bnb } from "./bnb.js";

export interface TinyModel extends Disposable {
  readonly folder: string;
  readonly model: CausalLM;
}

/** One layer, and tokens that are bytes. `change` may change its files before it is loaded. */
export async function tinyModel(positions = 1024, change: (folder: string) => void = () => {}): Promise<TinyModel> {
  const root = mkdtempSync(join(tmpdir(), "bnb-served-"));
  const folder = join(root, "model");
  const sizes = ["--hidden-size", "32", "--intermediate-size", "64", "--layers", "1", "--dtype", "float32"];
  const more = ["--positions", String(positions), "--device", "cpu"];
  const { code, stderr } = await bnb("make-model", folder, ...sizes, ...more);
  if (code !== 0) throw new Error(stderr);
  change(folder);
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

/** Waits until nothing is computed any more, and looks that nothing was left behind. */
export async function expectIdle(own: Running): Promise<void> {
  await until(() => own.handler.size === 0);
  for (const name of ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"]) {
    expect([name, await own.metric(`bnb:${name}`)]).toEqual([name, 0]);
  }
}

export interface ServeProcess {
  readonly child: ChildProcess;
  readonly client: OpenAI;
  /** Resolves with its exit code and signal. */
  readonly ended: Promise<unknown[]>;
  /** What it has written to its standard error. */
  log(): string;
}

/** `bnb serve` of a folder as a process of its own, once it says where it listens. `node`: options of Node itself. */
export async function serveProcess(folder: string, node: readonly string[] = []): Promise<ServeProcess> {
  const args = ["dist/cli/main.js", "serve", folder, "--port", "0", "--name", "tiny", "--device", "cpu"];
  const child = spawn(process.execPath, [...node, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  let [out, log] = ["", ""];
  child.stdout.on("data", (piece) => {
    out += piece;
  });
  child.stderr.on("data", (piece) => {
    log += piece;
  });
  const ended = new Promise<unknown[]>((resolve) => child.on("close", (...how) => resolve(how)));
  let baseURL: string | undefined;
  await until(() => {
    baseURL = /is served at (http:[^,\s]+)/.exec(out)?.[1];
    return baseURL !== undefined || child.exitCode !== null;
  });
  return { child, client: new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 }), ended, log: () => log };
}
