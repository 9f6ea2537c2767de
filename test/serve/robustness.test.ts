// What a server must bear: bodies that make no sense, clients who leave at any time, a device that fails. Nothing of it is a
// 5xx that need not be one, nothing hangs, and nothing is left behind.
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { connect } from "node:net";
import { join } from "node:path";
import type OpenAI from "openai";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { CausalLM } from "../../src/models/index.js";
import { EventStream } from "../../src/serve/http.js";
import { BnbError } from "../../src/tensor/errors.js";
import { memory } from "../../src/tensor/scope.js";
import { mutatedBody } from "../helpers/mutated-body.js";
import { uniforms } from "../helpers/random.js";
import type { TinyModel } from "../helpers/served.js";
import { expectIdle, serve, serveProcess, tinyModel, until } from "../helpers/served.js";

let tiny: TinyModel;
let model: CausalLM;
beforeAll(async () => {
  tiny = await tinyModel();
  ({ model } = tiny);
});
afterAll(() => tiny[Symbol.dispose]());
afterEach(() => {
  Reflect.deleteProperty(model, "step");
  Reflect.deleteProperty(model, "hiddenStates");
});

const greedy = { model: "tiny", temperature: 0, ignore_eos: true } as const;
const chat = { ...greedy, messages: [{ role: "user", content: "Hi there" }] };

/** Bodies to try: a few hundred unless BNB_BODIES says how many. */
const bodies = Number(process.env["BNB_BODIES"] ?? 400);

describe("bodies that make no sense", () => {
  const valid: [path: string, body: Record<string, unknown>][] = [
    [
      "/v1/chat/completions",
      {
        ...chat,
        max_completion_tokens: 2,
        n: 2,
        stop: ["x", "yy"],
        logit_bias: { 5: 1 },
        logprobs: true,
        top_logprobs: 2,
        seed: 3,
        frequency_penalty: 0.5,
        response_format: { type: "text" },
        chat_template_kwargs: { a: 1 },
      },
    ],
    [
      "/v1/chat/completions",
      {
        ...greedy,
        messages: [
          { role: "system", content: "Be brief" },
          { role: "user", content: [{ type: "text", text: "Hi" }] },
          { role: "assistant", content: "Yes" },
        ],
        max_tokens: 2,
        stream: true,
        stream_options: { include_usage: true },
      },
    ],
    [
      "/v1/completions",
      {
        ...greedy,
        prompt: ["a", "b"],
        max_tokens: 2,
        logprobs: 1,
        echo: false,
        top_k: 3,
        min_p: 0.1,
        stop_token_ids: [1],
      },
    ],
    ["/v1/completions", { ...greedy, prompt: [[1, 2], [3]], max_tokens: 2, stream: true }],
    ["/v1/embeddings", { model: "tiny", input: ["a", "b"], encoding_format: "base64" }],
    ["/v1/load_lora_adapter", { lora_name: "x", lora_path: "/nowhere" }],
    ["/v1/unload_lora_adapter", { lora_name: "x" }],
  ];

  it(
    `are answered by what is wrong, never by a failure of the server (${bodies})`,
    async () => {
      await using own = await serve(model, { maxTokens: 3, kvTokens: 512, maxSeconds: 60, adminKeys: ["none"] });
      await own.handler.ready;
      const random = uniforms(20261128);
      const seen = new Map<number, number>();
      for (let i = 0; i < bodies; i++) {
        const [path, body] = valid[i % valid.length]!;
        const sent = mutatedBody(body, random);
        const response = await fetch(`${own.url}${path}`, {
          method: "POST",
          headers: { authorization: "Bearer none" },
          body: sent,
          signal: AbortSignal.timeout(60_000),
        });
        const text = await response.text();
        const { status } = response;
        seen.set(status, (seen.get(status) ?? 0) + 1);
        const shown = `${path} ${sent.toString("utf8").slice(0, 500)} -> ${status} ${text.slice(0, 500)}`;
        expect(status === 200 || (status >= 400 && status < 500), shown).toBe(true);
        // Of a stream, too: an error in it is one of the server.
        expect(text.startsWith("data:") && text.includes('"error"'), shown).toBe(false);
        if (status === 200) continue;
        const { error } = JSON.parse(text) as { error: { message: string; type: string } };
        expect(error.message, shown).not.toBe("");
        expect(error.type, shown).toBe("invalid_request_error");
      }
      expect(seen.get(400)).toBeGreaterThan(bodies / 4);
      await expectIdle(own);
      const after = await own.client.completions.create({ ...greedy, prompt: "a", max_tokens: 2 } as never);
      expect((after as OpenAI.Completion).usage!.completion_tokens).toBe(2);
    },
    bodies > 1000 ? 1_800_000 : undefined,
  );
});

describe("a client who leaves", () => {
  interface Stage {
    /** How much of the request he sends; 1: all. */
    sent: number;
    /** He leaves when so many events have come; null: once his request is seen, before anything comes. */
    events: number | null;
  }
  const stages: [string, Stage][] = [
    ["behind the head of his request", { sent: 0, events: null }],
    ["amid his body", { sent: 0.5, events: null }],
    ["before the first byte", { sent: 1, events: null }],
    ["behind the first event", { sent: 1, events: 1 }],
    ["amid the answer", { sent: 1, events: 4 }],
    ["at its end", { sent: 1, events: 9 }],
  ];
  const requests: [string, string, object][] = [
    ["a streamed chat", "/v1/chat/completions", { ...chat, max_tokens: 8, stream: true }],
    ["streamed texts", "/v1/completions", { ...greedy, prompt: ["a", "bc"], n: 3, max_tokens: 8, stream: true }],
    ["texts as a whole", "/v1/completions", { ...greedy, prompt: ["a", "bc"], n: 3, max_tokens: 8 }],
    ["embeddings", "/v1/embeddings", { model: "tiny", input: ["a", "bc"] }],
  ];

  it.each(requests)("of %s leaves nothing, whenever it is", async (_, path, asked) => {
    await using own = await serve(model, { kvTokens: 512 });
    await own.handler.ready;
    const body = JSON.stringify(asked);
    const head = `POST ${path} HTTP/1.1\r\nhost: a\r\ncontent-length: ${body.length}\r\n\r\n`;
    const leaveAt = async ({ sent, events }: Stage): Promise<void> => {
      const lines = own.lines.length;
      const socket = connect(Number(new URL(own.url).port), "127.0.0.1");
      socket.on("error", () => {});
      const gone = new Promise((resolve) => socket.once("close", resolve));
      let got = "";
      socket.on("data", (piece) => {
        got += String(piece);
        const count = got.split("\n\n").length - 1;
        // A whole answer has no events; it has its length.
        const isEnough = count >= (events ?? Infinity) || got.includes("[DONE]") || got.includes("content-length");
        if (isEnough) socket.destroy();
      });
      const size = own.handler.size;
      socket.write(head + body.slice(0, body.length * sent));
      await until(() => own.handler.size > size || own.lines.length > lines);
      if (events === null) socket.destroy();
      await gone;
      await until(() => own.lines.length > lines);
    };
    // What is allocated at first use is there.
    await leaveAt({ sent: 1, events: 99 });
    await expectIdle(own);
    const before = memory();
    for (const [, stage] of stages) await leaveAt(stage);
    await expectIdle(own);
    expect(memory().tensors).toBe(before.tensors);
    expect(memory().liveBytes).toBe(before.liveBytes);
    // All at once, too.
    await Promise.all(stages.map(([, stage]) => leaveAt(stage)));
    await expectIdle(own);
    expect(memory().tensors).toBe(before.tensors);
    const { choices } = await own.client.completions.create({ ...greedy, prompt: "a", max_tokens: 3 } as never);
    expect(choices).toHaveLength(1);
  });
});

describe("a client who reads slowly", () => {
  it("is waited for, and nothing is left of each wait", async () => {
    const listeners: number[][] = [];
    const pieces = 24;
    const server = createServer((_, response) => {
      void (async () => {
        const events = new EventStream(response);
        for (let i = 0; i < pieces; i++) {
          await events.send({ text: String(i).padStart(1 << 20, ".") });
          listeners.push(["close", "drain", "error"].map((name) => response.listenerCount(name)));
        }
        events.end();
      })();
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const response = await fetch(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    const { length } = await response.text();
    expect(length).toBeGreaterThan(pieces << 20);
    expect(listeners).toHaveLength(pieces);
    expect(listeners).toEqual(listeners.map(() => listeners[0]));
    server.close();
  });

  it("and leaves is not waited for", async () => {
    let isOver = false;
    const server = createServer((_, response) => {
      const events = new EventStream(response);
      void (async () => {
        for (let i = 0; i < 64; i++) await events.send({ text: ".".repeat(1 << 20) });
        isOver = true;
      })();
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const socket = connect((server.address() as AddressInfo).port, "127.0.0.1");
    socket.write("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    await once(socket, "readable");
    socket.destroy();
    await until(() => isOver);
    server.close();
  });
});

describe("embeddings", () => {
  it("end when they have taken as long as a request may", async () => {
    await using own = await serve(model, { maxSeconds: 0.05 });
    const { hiddenStates } = model;
    let computed = 0;
    model.hiddenStates = function (...args) {
      computed++;
      return hiddenStates.apply(this, args);
    };
    const before = memory().tensors;
    const input = Array.from({ length: 300 }, () => Array.from({ length: 1000 }, (_, i) => i % 200));
    const asked = own.client.embeddings.create({ model: "tiny", input });
    await expect(asked).rejects.toThrow("408 the request took more than 0.05 s");
    await until(() => own.handler.size === 0);
    const atEnd = computed;
    expect(atEnd).toBeLessThan(300);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(computed).toBe(atEnd);
    expect(memory().tensors).toBe(before);
  });
});

describe("a fault of the device", () => {
  const fault = () => new BnbError("ERR_BNB_CUDA", "generate: the device has gone");

  it("is the answer to all who wait, streamed and not, and the last one", async () => {
    await using own = await serve(model, { maxSequences: 2, kvTokens: 256 });
    await own.handler.ready;
    const { step } = model;
    let steps = 0;
    model.step = function (...args) {
      if (++steps > 6) throw fault();
      return step.apply(this, args);
    };
    const long = { ...greedy, prompt: "a", max_tokens: 60 } as never;
    const whole = () =>
      own.client.completions.create(long).then(
        () => "served",
        (error: Error) => error.message,
      );
    const streamed = async () => {
      try {
        const events = (await own.client.completions.create({
          ...(long as object),
          stream: true,
        } as never)) as unknown as AsyncIterable<unknown>;
        for await (const _ of events);
        return "served";
      } catch (error) {
        return (error as Error).message;
      }
    };
    const asked = [streamed(), whole(), streamed(), whole(), whole()];
    expect((await own.handler.failed).message).toBe("generate: the device has gone");
    const answers = await Promise.all(asked);
    expect(answers.every((answer) => /the device has gone|the server is failed/.test(answer))).toBe(true);
    expect(answers.filter((answer) => /the device has gone/.test(answer)).length).toBeGreaterThanOrEqual(4);
    expect(own.handler.state).toBe("failed");
    expect((await fetch(`${own.url}/health`)).status).toBe(503);
    expect(await whole()).toMatch(/503 the server is failed/);
    await expectIdle(own);
  });

  it("ends bnb serve with a code, so that whoever watches it starts another", async () => {
    // The tenth step of this process fails as a step on a GPU that has gone does.
    const preload = join(tiny.folder, "fault.cjs");
    const dist = join(process.cwd(), "dist");
    writeFileSync(
      preload,
      `const { LlamaForCausalLM, BnbError } = require(${JSON.stringify(join(dist, "index.js"))});
       const { step } = LlamaForCausalLM.prototype;
       let steps = 0;
       LlamaForCausalLM.prototype.step = function (...args) {
         if (++steps > 9) throw new BnbError("ERR_BNB_CUDA", "generate: the device has gone");
         return step.apply(this, args);
       };`,
    );
    const { client, ended, log } = await serveProcess(tiny.folder, ["--require", preload]);
    const asked = client.completions.create({ ...greedy, prompt: "a", max_tokens: 60 } as never);
    await expect(asked).rejects.toThrow("500 generate: the device has gone");
    expect(await ended).toEqual([1, null]);
    expect(log()).toContain("bnb serve: generate: the device has gone");
  });
});
