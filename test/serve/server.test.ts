// The server by the official client: texts, streams, log-probabilities and embeddings are those of the library, what is wrong
// is told as OpenAI's API does, and who leaves is forgotten.
import { mkdtempSync, rmSync } from "node:fs";
import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { GenerationConfig } from "../../src/hub/index.js";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import { createServer } from "../../src/serve/index.js";
import { memory } from "../../src/tensor/scope.js";
import { bnb } from "../helpers/bnb.js";

const root = mkdtempSync(join(tmpdir(), "bnb-serve-"));
const folder = join(root, "model");
let model: CausalLM;
let server: Server;
let client: OpenAI;
let url = "";

async function listen(options: Partial<Parameters<typeof createServer>[0]> = {}): Promise<[Server, string]> {
  const made = createServer({ model, name: "tiny", ...options }).listen(0, "127.0.0.1");
  await new Promise((resolve) => made.once("listening", resolve));
  const at = `http://127.0.0.1:${(made.address() as AddressInfo).port}`;
  // Its first steps take memory, too.
  while ((await fetch(`${at}/health`)).status !== 200) await new Promise((resolve) => setTimeout(resolve, 5));
  return [made, at];
}
const closed = (one: Server): Promise<unknown> => {
  one.closeAllConnections();
  return new Promise((resolve) => one.close(resolve));
};

beforeAll(async () => {
  const sizes = ["--hidden-size", "32", "--intermediate-size", "64", "--layers", "1", "--dtype", "float32"];
  expect(await bnb("make-model", folder, ...sizes, "--device", "cpu")).toMatchObject({ code: 0 });
  model = await AutoModelForCausalLM.fromPretrained(folder);
  [server, url] = await listen();
  client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
});
afterAll(async () => {
  await closed(server);
  model.dispose();
  rmSync(root, { recursive: true });
});

const messages = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "Hi" },
] as const;
const drawn = { temperature: 0.9, seed: 7, max_tokens: 12, model: "tiny" } as const;
const drawnHere: GenerationConfig = { doSample: true, temperature: 0.9, seed: 7, maxNewTokens: 12, topK: 0 };

async function here(prompt: string | object[], options: GenerationConfig): Promise<string> {
  const [one] = await model.complete(prompt as string, options);
  return one!.text!;
}

describe("chat completions", () => {
  it("are what the library makes of the messages, whole and in pieces", async () => {
    const want = await here([...messages], drawnHere);
    const whole = await client.chat.completions.create({ ...drawn, messages: [...messages] });
    expect(whole.choices).toEqual([
      {
        index: 0,
        message: { role: "assistant", content: want, refusal: null },
        logprobs: null,
        finish_reason: expect.stringMatching(/^(stop|length)$/),
      },
    ]);
    const { prompt_tokens, completion_tokens, total_tokens } = whole.usage!;
    expect(completion_tokens).toBeLessThanOrEqual(12);
    expect(total_tokens).toBe(prompt_tokens + completion_tokens);
    const stream = await client.chat.completions.create({
      ...drawn,
      messages: [...messages],
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks: OpenAI.ChatCompletionChunk[] = [];
    for await (const chunk of stream) chunks.push(chunk);
    expect(chunks[0]!.choices[0]!.delta).toEqual({ role: "assistant", content: "" });
    expect(chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("")).toBe(want);
    expect(chunks.at(-2)!.choices[0]!).toMatchObject({ delta: {}, finish_reason: whole.choices[0]!.finish_reason });
    // By now the pages of the prompt that are full are known.
    const cached = prompt_tokens - (prompt_tokens % 16);
    const usage = { ...whole.usage, prompt_tokens_details: { cached_tokens: cached } };
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage });
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
  });

  it("take contents in parts, and developer for system", async () => {
    const parts = [
      { role: "developer", content: "Be brief." },
      {
        role: "user",
        content: [
          { type: "text", text: "H" },
          { type: "text", text: "i" },
        ],
      },
    ] as OpenAI.ChatCompletionMessageParam[];
    const { choices } = await client.chat.completions.create({ ...drawn, messages: parts });
    expect(choices[0]!.message.content).toBe(await here([...messages], drawnHere));
  });

  it("may be several, each with a seed of its own, and greedy at temperature 0", async () => {
    const { choices } = await client.chat.completions.create({ ...drawn, messages: [...messages], n: 3 });
    const want = await Promise.all([7, 8, 9].map((seed) => here([...messages], { ...drawnHere, seed })));
    expect(choices.map(({ message }) => message.content)).toEqual(want);
    const greedy = { ...drawn, temperature: 0, messages: [...messages] };
    const one = await client.chat.completions.create(greedy);
    expect(one.choices[0]!.message.content).toBe(await here([...messages], { maxNewTokens: 12 }));
  });

  it("tell log-probabilities, streamed and not", async () => {
    const options = { ...drawn, messages: [...messages], logprobs: true, top_logprobs: 2 };
    const whole = await client.chat.completions.create(options);
    const [want] = await model.complete([...messages] as never, { ...drawnHere, logprobs: 2 });
    const content = whole.choices[0]!.logprobs!.content!;
    expect(content.map(({ logprob }) => logprob)).toEqual(want!.logprobs!.map(({ logprob }) => logprob));
    for (const [i, { token, bytes, top_logprobs }] of content.entries()) {
      // Each byte is a token, the end of a text is another.
      const id = want!.tokens[i]!;
      expect(bytes).toEqual(id < 256 ? [id] : [...Buffer.from(token)]);
      expect(token).toBe(Buffer.from(bytes!).toString());
      expect(top_logprobs.map(({ logprob }) => logprob)).toEqual(
        want!.logprobs![i]!.best.map(({ logprob }) => logprob),
      );
    }
    const streamed: unknown[] = [];
    for await (const { choices } of await client.chat.completions.create({ ...options, stream: true })) {
      streamed.push(...(choices[0]?.logprobs?.content ?? []));
    }
    expect(streamed).toEqual(content);
  });

  it("end at stop strings, and at the tokens of the request", async () => {
    const want = await here([...messages], drawnHere);
    const stop = [...want][3]!;
    const one = await client.chat.completions.create({ ...drawn, messages: [...messages], stop });
    expect(one.choices[0]).toMatchObject({
      message: { content: want.slice(0, want.indexOf(stop)) },
      finish_reason: "stop",
    });
    const [made] = await model.complete([...messages] as never, drawnHere);
    const { tokens } = made!;
    const more = { stop_token_ids: [tokens[2]] } as object;
    const short = await client.chat.completions.create({ ...drawn, messages: [...messages], ...more });
    expect(short.usage!.completion_tokens).toBe([...tokens].indexOf(tokens[2]!) + 1);
  });

  it.each<[fields: object, param: string, message: string]>([
    [{ messages: [] }, "messages", "messages must be a list of at least one message, got []"],
    [
      { messages: [{ role: "bot", content: "a" }] },
      "messages[0].role",
      'messages[0].role must be one of system, developer, user, assistant, tool, got "bot"',
    ],
    [
      { messages: [{ role: "user", content: [{ type: "image_url" }] }] },
      "messages[0].content[0].type image_url",
      "messages[0].content[0].type image_url is not supported",
    ],
    [{ temperature: 3 }, "temperature", "temperature must be a number from 0 to 2, got 3"],
    [{ top_p: "1" }, "top_p", 'top_p must be a number from 0 to 1, got "1"'],
    [{ n: 0 }, "n", "n must be a whole number from 1 to 128, got 0"],
    [{ stop: ["a", "b", "c", "d", "e"] }, "stop", "stop must be a text, or up to 4 texts"],
    [{ logit_bias: { "99999999": 1 } }, "logit_bias", "logit_bias must be numbers from -100 to 100 by token ids below"],
    [{ top_logprobs: 2 }, "logprobs", "logprobs must be true where top_logprobs is given, got false"],
    [
      { tools: [{ type: "function", function: { name: "a" } }] },
      "tools",
      "tools is not supported: the chat template of this model shows no calls that are known",
    ],
    [
      { response_format: { type: "xml" } },
      "response_format.type",
      "response_format.type must be one of text, json_object, json_schema",
    ],
    [{ max_token: 3 }, "max_token", "max_token is not supported"],
    [{ stream: 1 }, "stream", "stream must be true or false, got 1"],
    [{ model: 3 }, "model", "model must be a text, got 3"],
  ])("refuse %o", async (fields, param, message) => {
    const body = { model: "tiny", messages: [...messages], ...fields } as never;
    const error = await client.chat.completions.create(body).then(
      () => null,
      (reason: InstanceType<typeof OpenAI.APIError>) => reason,
    );
    expect(error).toMatchObject({ status: 400, param });
    expect(error!.message).toContain(message);
  });
});

describe("completions", () => {
  it("go on from a text, texts and token ids, whole and in pieces", async () => {
    const prompts = ["A bit", "A byte is"];
    const want = await Promise.all(prompts.map((prompt) => here(prompt, drawnHere)));
    const both = await client.completions.create({ ...drawn, prompt: prompts });
    expect(both.choices.map(({ text }) => text)).toEqual(want);
    const ids = [...(await model.tokenizer!.encode("A bit"))];
    for (const prompt of [ids, [ids]]) {
      const { choices } = await client.completions.create({ ...drawn, prompt });
      expect(choices[0]!.text).toBe(want[0]);
    }
    const texts = ["", ""];
    for await (const { choices } of await client.completions.create({ ...drawn, prompt: prompts, stream: true })) {
      for (const { index, text } of choices) texts[index] += text;
    }
    expect(texts).toEqual(want);
    const echoed = await client.completions.create({ ...drawn, prompt: "A bit", echo: true });
    expect(echoed.choices[0]!.text).toBe(`A bit${want[0]}`);
  });

  it("tell log-probabilities by place", async () => {
    const { choices } = await client.completions.create({ ...drawn, prompt: "A bit", logprobs: 1 });
    const [want] = await model.complete("A bit", { ...drawnHere, logprobs: 1 });
    const { tokens, token_logprobs, text_offset } = choices[0]!.logprobs!;
    expect(token_logprobs).toEqual(want!.logprobs!.map(({ logprob }) => logprob));
    expect(tokens).toHaveLength(want!.tokens.length);
    expect(text_offset![0]).toBe(0);
    expect(Math.max(...text_offset!)).toBeLessThanOrEqual(choices[0]!.text.length);
  });

  it("tell of tokens without a text of their own, the likelier of two that look alike, and always the one that came", async () => {
    const halves = Object.fromEntries(Array.from({ length: 64 }, (_, i) => [0xc0 + i, 50]));
    const options = { ...drawn, prompt: "A bit", logit_bias: halves };
    const [want] = await model.complete("A bit", { ...drawnHere, logitBias: halves, logprobs: 5 });
    for (const logprobs of [0, 5]) {
      const { choices } = await client.completions.create({ ...options, logprobs });
      const { top_logprobs, token_logprobs } = choices[0]!.logprobs!;
      for (const [i, told] of want!.logprobs!.entries()) {
        const best = logprobs === 0 ? told.logprob : told.best[0]!.logprob;
        expect([told.id >= 0xc0, top_logprobs![i], token_logprobs![i]]).toEqual([
          true,
          { "\ufffd": best },
          told.logprob,
        ]);
      }
    }
    const plain = await client.completions.create({ ...drawn, prompt: "A bit", logprobs: 0 });
    const { tokens, top_logprobs, token_logprobs } = plain.choices[0]!.logprobs!;
    expect(top_logprobs).toEqual(tokens!.map((token, i) => ({ [token]: token_logprobs![i] })));
  });

  it("refuse what is wrong", async () => {
    const wrong = [
      [{ prompt: [] }, "prompt must be a text, texts, token ids, or lists of token ids, got []"],
      [{ prompt: [[1], "a", 2] }, "prompt must be a text, texts, token ids"],
      [{ prompt: [1, 1e9] }, "prompt: a token id must lie in 0.."],
      [{ prompt: "a", suffix: "b" }, "suffix is not supported"],
      [{ prompt: "a", best_of: 2 }, "best_of is not supported"],
      [{ prompt: "x".repeat(5000) }, "prompt must have at most "],
    ] as const;
    for (const [fields, message] of wrong) {
      const body = { model: "tiny", ...fields } as never;
      await expect(client.completions.create(body)).rejects.toThrow(message);
    }
  });
});

describe("embeddings", () => {
  it("are the library's, as numbers and in base64, which the client asks for", async () => {
    using vectors = await model.embed(["a bit", "a byte"], { normalize: true });
    const want = await vectors.floats();
    for (const encoding_format of [undefined, "float", "base64"] as const) {
      const { data, usage } = await client.embeddings.create({
        model: "tiny",
        input: ["a bit", "a byte"],
        ...(encoding_format && { encoding_format }),
      });
      const got = data.flatMap(({ embedding }) =>
        typeof embedding === "string"
          ? [...new Float32Array(new Uint8Array(Buffer.from(embedding, "base64")).buffer)]
          : embedding,
      );
      expect(got.map(Math.fround)).toEqual([...want]);
      expect(usage.prompt_tokens).toBe(usage.total_tokens);
    }
  });
});

describe("the server", () => {
  it("lists its model, and says that it is there", async () => {
    const list = await client.models.list();
    expect(list.data).toMatchObject([{ id: "tiny", object: "model" }]);
    expect(await client.models.retrieve("tiny")).toMatchObject({ id: "tiny" });
    await expect(client.models.retrieve("other")).rejects.toThrow(
      '404 the model "other" does not exist; there is tiny',
    );
    const wrong = client.completions.create({ model: "other", prompt: "a" });
    await expect(wrong).rejects.toMatchObject({ status: 404, code: "model_not_found", param: "model" });
    expect(await (await fetch(`${url}/health`)).json()).toEqual({ status: "ready" });
  });

  it.each([
    ["GET", "/v1/chat/completions", undefined, 405, "/v1/chat/completions takes POST, got GET"],
    ["POST", "/v1/models", "{}", 405, "/v1/models takes GET, got POST"],
    ["GET", "/v2", undefined, 404, "there is no /v2"],
    ["POST", "/v1/completions", "{", 400, "the body must be JSON: "],
    ["POST", "/v1/completions", "[]", 400, "the body must be a JSON object, got []"],
    ["POST", "/v1/completions", "{}", 400, "model must be the name of a model, got undefined"],
    [
      "POST",
      "/v1/completions",
      `"${"x".repeat(3 << 20)}"`,
      413,
      "the body must have at most 2097152 bytes, and has more",
    ],
  ])("answers %s %s with an error", async (method, path, body, status, message) => {
    const response = await fetch(url + path, { method, ...(body !== undefined && { body }) });
    expect(response.status).toBe(status);
    const { error } = (await response.json()) as { error: { message: string; type: string } };
    expect(error.message).toContain(message);
    expect(error.type).toBe("invalid_request_error");
  });

  it("serves those who have a key", async () => {
    const [guarded, at] = await listen({ apiKeys: ["first", "second"] });
    for (const [apiKey, ok] of [
      ["first", true],
      ["second", true],
      ["third", false],
      ["firs", false],
    ] as const) {
      const own = new OpenAI({ baseURL: `${at}/v1`, apiKey, maxRetries: 0 });
      const asked = own.completions.create({ model: "tiny", prompt: "a", max_tokens: 1 });
      if (ok) expect((await asked).choices).toHaveLength(1);
      else await expect(asked).rejects.toMatchObject({ status: 401, code: "invalid_api_key" });
    }
    expect((await fetch(`${at}/health`)).status).toBe(200);
    await closed(guarded);
  });

  it("computes many at once, each as alone, and forgets those who leave", async () => {
    const [own, at] = await listen({ kvTokens: 512 });
    const many = new OpenAI({ baseURL: `${at}/v1`, apiKey: "none", maxRetries: 0 });
    const prompts = Array.from({ length: 12 }, (_, i) => `Text ${i}`);
    const control = new AbortController();
    const long = { model: "tiny", prompt: "a", max_tokens: 400, ignore_eos: true, temperature: 0 } as never;
    const leaving = (async () => {
      let pieces = 0;
      const options = { ...(long as object), stream: true } as never;
      const stream = (await many.completions.create(options, {
        signal: control.signal,
      })) as unknown as AsyncIterable<unknown>;
      for await (const _ of stream) if (++pieces === 3) control.abort();
    })();
    const got = await Promise.all(
      prompts.map(async (prompt) => (await many.completions.create({ ...drawn, prompt })).choices[0]!.text),
    );
    await leaving.catch(() => {});
    expect(got).toEqual(await Promise.all(prompts.map((prompt) => here(prompt, drawnHere))));
    // Whoever closes the connection before anything came is forgotten, too.
    const { port } = own.address() as AddressInfo;
    const body = JSON.stringify(long);
    const socket = connect(port, "127.0.0.1");
    socket.write(`POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
    socket.destroy();
    const before = await many.completions.create({ ...drawn, prompt: "Text 0" });
    expect(before.choices[0]!.text).toBe(got[0]);
    await closed(own);
  });

  it("leaves nothing", async () => {
    const before = memory();
    const [own, at] = await listen();
    const one = new OpenAI({ baseURL: `${at}/v1`, apiKey: "none", maxRetries: 0 });
    await one.completions.create({ ...drawn, prompt: "a" });
    await closed(own);
    expect(memory().tensors).toBe(before.tensors);
    expect(memory().liveBytes).toBe(before.liveBytes);
  });

  it("says what it must be made of", () => {
    expect(() => createServer({} as never)).toThrow(
      "createServeHandler: model must be a language model, got undefined",
    );
    expect(() => createServer({ model: 3 } as never)).toThrow(
      "createServeHandler: model must be a language model, got 3",
    );
    expect(() => createServer({ model, maxSequences: 0 })).toThrow("createServeHandler: maxSequences must be");
  });
});
