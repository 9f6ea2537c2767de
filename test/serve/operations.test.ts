// A server in operation: how many come in, what is refused at once, who has waited too long, what is told of it all, and how it
// ends.
import { once } from "node:events";
import type { AddressInfo, Socket } from "node:net";
import { connect } from "node:net";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { CausalLM } from "../../src/models/index.js";
import { Admission } from "../../src/serve/admission.js";
import { createServeHandler } from "../../src/serve/index.js";
import type { Running, TinyModel } from "../helpers/served.js";
import { serve, serveProcess, tinyModel, until } from "../helpers/served.js";

let tiny: TinyModel;
let model: CausalLM;
beforeAll(async () => {
  tiny = await tinyModel();
  ({ model } = tiny);
});
afterAll(() => tiny[Symbol.dispose]());

const short = { model: "tiny", prompt: "A bit", max_tokens: 4, temperature: 0, ignore_eos: true } as const;
const long = { ...short, max_tokens: 900 } as const;
type Stream = AsyncIterable<OpenAI.Completion> & { controller: AbortController };
const stream = (client: OpenAI, body: object = long): Promise<Stream> =>
  client.completions.create({ ...body, stream: true } as never) as unknown as Promise<Stream>;
const failure = (asked: Promise<unknown>) =>
  asked.then(
    () => null,
    (error: InstanceType<typeof OpenAI.APIError>) => error,
  );

/** A request that has a place for as long as its body does not come. */
async function hold({ url, handler }: Running, key = "none"): Promise<Socket> {
  const before = handler.size;
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  const head = `POST /v1/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer ${key}\r\n`;
  socket.write(`${head}content-length: 100\r\n\r\n`);
  await until(() => handler.size > before);
  return socket;
}
/** Its client leaves, and the server knows. */
async function leave({ handler }: Running, socket: Socket): Promise<void> {
  const before = handler.size;
  socket.destroy();
  await until(() => handler.size < before);
}

describe("who comes in", () => {
  it("are as many as have room, others are told when to come again", async () => {
    await using own = await serve(model, { maxSequences: 1, maxWaiting: 1 });
    const sockets = [await hold(own), await hold(own)];
    const error = await failure(own.client.completions.create(short));
    expect(error).toMatchObject({ status: 429, code: "rate_limit_exceeded" });
    expect(error!.message).toBe("429 2 texts are computed or wait, and 2 have room");
    expect(Number(error!.headers!.get("retry-after"))).toBeGreaterThanOrEqual(1);
    await leave(own, sockets[0]!);
    expect((await own.client.completions.create(short)).choices).toHaveLength(1);
    await leave(own, sockets[1]!);
    expect(own.lines.map(({ status }) => status)).toEqual([429, 499, 200, 499]);
    const many = await failure(own.client.completions.create({ ...short, n: 3 }));
    expect(many).toMatchObject({ status: 400, message: "400 a request must ask for at most 2 texts, got 3" });
  });

  it("are so many requests of a key", async () => {
    await using own = await serve(model, { apiKeys: ["a", "b"], keyConcurrency: 1 }, "a");
    const other = new OpenAI({ baseURL: `${own.url}/v1`, apiKey: "b", maxRetries: 0 });
    const socket = await hold(own, "a");
    const error = await failure(own.client.completions.create(short));
    expect(error).toMatchObject({ status: 429, message: "429 a key may have 1 requests at once, and has them" });
    expect((await other.completions.create(short)).choices).toHaveLength(1);
    await leave(own, socket);
    expect((await own.client.completions.create(short)).choices).toHaveLength(1);
  });

  it.each([
    ["completions", "prompt"],
    ["embeddings", "input"],
  ])("are told before a text is encoded: %s", async (path, field) => {
    await using own = await serve(model, { maxSequences: 2, maxWaiting: 3 });
    const encode = vi.spyOn(model.tokenizer!, "encode");
    const body = JSON.stringify({ model: "tiny", [field]: Array.from({ length: 6 }, () => "x") });
    const response = await fetch(`${own.url}/v1/${path}`, { method: "POST", body });
    const { error } = (await response.json()) as { error: { message: string } };
    expect([response.status, error.message]).toEqual([400, "a request must ask for at most 5 texts, got 6"]);
    expect(encode).not.toHaveBeenCalled();
    encode.mockRestore();
  });

  it("have a key that is not empty", () => {
    for (const option of ["apiKeys", "adminKeys"]) {
      for (const key of ["", " "]) {
        expect(() => createServeHandler({ model, [option]: ["good", key] })).toThrow(
          `createServeHandler: ${option} must be an array, each a key that is not empty, got`,
        );
      }
    }
  });

  it("count by their texts, and leave nothing", () => {
    const admission = new Admission({ running: 2, waiting: 2, perKey: 2 });
    const [a, b] = [admission.enter("k"), admission.enter("k")];
    expect(() => admission.enter("k")).toThrow("a key may have 2 requests at once");
    a.grow(3);
    expect(() => b.grow(2)).toThrow("4 texts are computed or wait, and 4 have room");
    expect(() => admission.enter("other")).toThrow("4 texts are computed or wait");
    a.leave();
    b.grow(4);
    b.leave();
    for (let i = 0; i < 4; i++) admission.enter(`key ${i}`);
    expect(() => admission.enter("k")).toThrow("4 texts are computed or wait");
  });
});

describe("what is refused at once", () => {
  it("is longer than the pool, streamed and not", async () => {
    await using own = await serve(model, { kvTokens: 64 });
    const message = "400 prompt and answer must have between 1 and 65 tokens together, got 5 and 61";
    const want = { status: 400, code: "context_length_exceeded", param: "prompt", message };
    const big = { ...short, max_tokens: 61 };
    expect(await failure(own.client.completions.create(big))).toMatchObject(want);
    expect(await failure(stream(own.client, big))).toMatchObject(want);
    const messages = [{ role: "user" as const, content: "x".repeat(70) }];
    const chat = await failure(own.client.chat.completions.create({ model: "tiny", messages }));
    expect(chat).toMatchObject({ status: 400, code: "context_length_exceeded" });
    const most = await own.client.completions.create({ ...short, max_tokens: 60 });
    expect(most.usage!.completion_tokens).toBe(60);
  });

  it("is longer than the model reaches: a text, token ids, and texts to be embedded", async () => {
    await using own = await serve(model);
    const [text, ids] = ["x".repeat(1025), Array.from({ length: 1025 }, () => 5)];
    const want = (param: string) => {
      const message = `400 ${param} must have at most 1024 tokens, got 1025`;
      return { status: 400, code: "context_length_exceeded", param, message };
    };
    for (const one of [text, ids]) {
      const asked = own.client.completions.create({ ...short, prompt: one });
      expect(await failure(asked)).toMatchObject(want("prompt"));
      expect(await failure(own.client.embeddings.create({ model: "tiny", input: one }))).toMatchObject(want("input"));
    }
    const wrong = await failure(own.client.completions.create({ ...short, prompt: [1, 1e6] }));
    expect(wrong).toMatchObject({ status: 400, code: null, param: "prompt" });
  });

  it("asks for more tokens than the server's limit", async () => {
    await using own = await serve(model, { maxTokens: 8 });
    const error = await failure(own.client.completions.create({ ...short, max_tokens: 9 }));
    const message = "400 max_tokens must be at most 8, which is this server's limit, got 9";
    expect(error).toMatchObject({ status: 400, param: "max_tokens", message });
    const messages = [{ role: "user" as const, content: "Hi" }];
    const open = { model: "tiny", messages, temperature: 0, ignore_eos: true };
    const { usage } = await own.client.chat.completions.create(open as OpenAI.ChatCompletionCreateParamsNonStreaming);
    expect(usage!.completion_tokens).toBe(8);
  });

  it("takes longer than the server's limit", async () => {
    await using own = await serve(model, { maxSeconds: 0.05 });
    const much = { ...long, n: 8 };
    const want = "the request took more than 0.05 s";
    expect(await failure(own.client.completions.create(much))).toMatchObject({ status: 408, message: `408 ${want}` });
    const pieces = (async () => {
      for await (const _ of await stream(own.client, much));
    })();
    await expect(pieces).rejects.toThrow(want);
    expect(own.lines).toMatchObject([
      { status: 408, error: "request_timeout", finish: Array(8).fill("abort") },
      { error: "request_timeout", finish: Array(8).fill("abort") },
    ]);
  });
});

it("what may take longer than a timer can count ends when it is done", async () => {
  for (const maxSeconds of [2_147_484, 1e300]) {
    await using own = await serve(model, { maxSeconds });
    expect((await own.client.completions.create(short)).usage!.completion_tokens).toBe(4);
    const running = await stream(own.client, { ...long, max_tokens: 100 });
    let isDrained = false;
    const drained = own.handler.drain(maxSeconds).then(() => {
      isDrained = true;
    });
    let pieces = 0;
    for await (const _ of running) if (pieces++ < 50) expect(isDrained).toBe(false);
    expect(pieces).toBeGreaterThan(50);
    await drained;
  }
});

describe("a body that does not come", () => {
  it("holds its place no longer than a request may take", async () => {
    await using own = await serve(model, { maxSeconds: 0.2, maxSequences: 1, maxWaiting: 0 });
    const { port } = own.server.address() as AddressInfo;
    const socket = connect(port, "127.0.0.1");
    let answer = "";
    socket.on("data", (piece) => {
      answer += String(piece);
    });
    socket.write("POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{");
    await once(socket, "close");
    expect(answer).toMatch(/^HTTP\/1\.1 408 [\s\S]*"the request took more than 0\.2 s"/);
    // There is room again: what a slow machine does not compute in time is no 429.
    const body = JSON.stringify({ model: "tiny", prompt: "a", max_tokens: 1 });
    const after = await fetch(`${own.url}/v1/completions`, { method: "POST", body });
    expect([200, 408]).toContain(after.status);
  });
});

describe("what is told", () => {
  it("is loading, ready and draining", async () => {
    await using own = await serve(model);
    const health = async (): Promise<unknown> => {
      const response = await fetch(`${own.url}/health`);
      return [response.status, await response.json()];
    };
    const { handler } = own;
    await handler.ready;
    expect(handler.state).toBe("ready");
    expect(await health()).toEqual([200, { status: "ready" }]);
    const running = await stream(own.client, { ...long, max_tokens: 200 });
    const drained = handler.drain(60);
    expect(await health()).toEqual([503, { status: "draining" }]);
    const error = await failure(own.client.completions.create(short));
    expect(error).toMatchObject({ status: 503, code: "unavailable", message: "503 the server is draining" });
    let pieces = 0;
    for await (const { choices } of running) pieces += choices[0]!.text.length;
    expect(pieces).toBeGreaterThan(0);
    await drained;
    const line = own.lines.find(({ status }) => status === 200);
    expect(line).toMatchObject({ tokens: 200, finish: ["length"] });
  });

  it("is loading until the first steps are done", async () => {
    await using own = await serve(model);
    expect(own.handler.state).toBe("loading");
    await own.handler.ready;
    expect(own.handler.state).toBe("ready");
  });

  it("is measured", async () => {
    await using own = await serve(model);
    await own.handler.ready;
    const before = await own.metric("bnb:engine_step_seconds_count");
    const cached = await own.metric("bnb:prefix_cache_hits_total");
    const prompt = "x".repeat(40);
    for (let i = 0; i < 2; i++) await own.client.completions.create({ ...short, prompt, max_tokens: 5 });
    const names: [name: string, value: number][] = [
      ["bnb:prompt_tokens_total", 80],
      ["bnb:generation_tokens_total", 10],
      ['bnb:request_success_total{finished_reason="length"}', 2],
      ["bnb:time_to_first_token_seconds_count", 2],
      ["bnb:inter_token_latency_seconds_count", 8],
      ["bnb:e2e_request_latency_seconds_count", 2],
      ["bnb:num_requests_running", 0],
      ["bnb:num_requests_waiting", 0],
      ["bnb:kv_cache_usage_perc", 0],
      ["bnb:num_preemptions_total", 0],
      ["bnb:prefix_cache_hits_total", cached + 32],
    ];
    for (const [name, value] of names) expect([name, await own.metric(name)]).toEqual([name, value]);
    // A prompt goes in parts where steps take long.
    expect(await own.metric("bnb:engine_step_seconds_count")).toBeGreaterThanOrEqual(before + 10);
    expect(await own.metric("bnb:eventloop_lag_seconds")).toBeGreaterThanOrEqual(0);
    const [whole] = own.lines;
    expect(own.lines[1]).toMatchObject({ promptTokens: 40, cachedTokens: 32, tokens: 5, finish: ["length"] });
    expect(whole).toMatchObject({ cachedTokens: 0 });
  });

  it("is one line a request, without its text", async () => {
    await using own = await serve(model, { apiKeys: ["secret key"] }, "secret key");
    await own.client.completions.create({ ...short, prompt: "the prompt" });
    await failure(own.client.completions.create({ ...short, prompt: "the prompt", suffix: "the suffix" }));
    const leaving = await stream(own.client, { ...long, n: 8 });
    await leaving[Symbol.asyncIterator]().next();
    leaving.controller.abort();
    await until(() => own.lines.length === 3);
    await fetch(`${own.url}/health`);
    expect(own.lines).toEqual([
      {
        time: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/),
        id: expect.stringMatching(/^req-[0-9a-f]{24}$/),
        method: "POST",
        path: "/v1/completions",
        status: 200,
        ms: expect.any(Number),
        key: expect.stringMatching(/^[0-9a-f]{8}$/),
        model: "tiny",
        stream: false,
        promptTokens: 10,
        cachedTokens: 0,
        tokens: 4,
        firstTokenMs: expect.any(Number),
        finish: ["length"],
      },
      expect.objectContaining({ status: 400, error: "unsupported_parameter" }),
      expect.objectContaining({ status: 499, stream: true, finish: Array(8).fill("abort") }),
    ]);
    expect(JSON.stringify(own.lines)).not.toMatch(/the prompt|the suffix|secret/);
  });

  it("is told on: a log that fails is a warning, and the request is over", async () => {
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    const fails: [log: () => never, why: string][] = [
      [
        () => {
          throw new Error("disk full");
        },
        "disk full",
      ],
      [() => Promise.reject(new Error("disk full")) as never, "disk full"],
      [() => Promise.reject() as never, "undefined"],
    ];
    for (const [i, [log, why]] of fails.entries()) {
      await using own = await serve(model, { log });
      expect((await own.client.completions.create(short)).choices).toHaveLength(1);
      const drained = own.handler.drain(60);
      await drained;
      await until(() => warn.mock.calls.length > i);
      expect(warn).toHaveBeenLastCalledWith(`log: ${why}`, { type: "BnbWarning", code: "BNB_SERVE_LOG" });
    }
    warn.mockRestore();
  });

  it("shares what was computed among the requests of a key, unless told otherwise", async () => {
    for (const sharePrefixes of [false, true]) {
      await using own = await serve(model, { apiKeys: ["a", "b"], sharePrefixes }, "a");
      const other = new OpenAI({ baseURL: `${own.url}/v1`, apiKey: "b", maxRetries: 0 });
      const ask = async (client: OpenAI, more: object = {}) => {
        const { usage } = await client.completions.create({ ...short, prompt: "y".repeat(40), ...more });
        return usage!.prompt_tokens_details!.cached_tokens;
      };
      expect(await ask(own.client)).toBe(0);
      expect(await ask(own.client)).toBe(32);
      expect(await ask(own.client, { cache_salt: "s" })).toBe(0);
      expect(await ask(other)).toBe(sharePrefixes ? 32 : 0);
    }
  });
});

describe("bnb serve as a process", () => {
  it("lets what runs end on SIGTERM", async () => {
    const { child, client, ended, log } = await serveProcess(tiny.folder);
    const running = await stream(client, { ...long, max_tokens: 200 });
    let [tokens, finish] = [0, ""];
    for await (const { choices } of running) {
      if (tokens++ === 0) child.kill("SIGTERM");
      finish = choices[0]!.finish_reason ?? "";
    }
    expect(finish).toBe("length");
    expect(await ended).toEqual([0, null]);
    const line = JSON.parse(log()) as object;
    expect(line).toMatchObject({ path: "/v1/completions", status: 200, tokens: 200, finish: ["length"] });
  });

  it("ends at once on the second", async () => {
    const { child, client, ended } = await serveProcess(tiny.folder);
    const running = await stream(client, { ...long, n: 32 });
    const failed = (async () => {
      for await (const _ of running);
    })();
    failed.catch(() => {});
    child.kill("SIGTERM");
    const health = client.baseURL.replace("/v1", "/health");
    await until(async () => (await fetch(health)).status === 503);
    child.kill("SIGTERM");
    await expect(failed).rejects.toThrow();
    expect(await ended).toEqual([null, "SIGTERM"]);
  });
});
