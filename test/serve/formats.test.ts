// response_format by the official client: a random model writes what the schema says, streamed and not, in both routes.
import { Ajv } from "ajv";
import type OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import type { TinyServer } from "../helpers/tiny-server.js";
import { biasOfBytes, tinyServer } from "../helpers/tiny-server.js";

let tiny: TinyServer;
let client: OpenAI;
beforeAll(async () => {
  tiny = await tinyServer();
  client = tiny.client;
});
afterAll(() => tiny.close());

const schema = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 8 },
    age: { type: "integer", minimum: 0, maximum: 120 },
    tags: { type: "array", items: { enum: ["new", "old"] }, maxItems: 2 },
  },
  required: ["name", "age", "tags"],
  additionalProperties: false,
};
const format = { type: "json_schema", json_schema: { name: "person", strict: true, schema } } as const;
const drawn = { model: "tiny", temperature: 2, max_tokens: 300, logit_bias: biasOfBytes } as const;
const messages = [{ role: "user", content: "Who?" }] as const;

it("log-probabilities tell of what the format allows", async () => {
  const { choices } = await tiny.client.chat.completions.create({
    ...{ model: "tiny", messages: [{ role: "user", content: "Hi" }], max_tokens: 12, seed: 3 },
    ...{ logprobs: true, top_logprobs: 20, response_format: { type: "json_object" } },
  });
  const content = choices[0]!.logprobs!.content!;
  expect(content[0]!.top_logprobs.map(({ token }) => token)).toEqual(["{"]);
  for (const { logprob, top_logprobs } of content) {
    expect(top_logprobs.length).toBeGreaterThan(0);
    for (const one of [logprob, ...top_logprobs.map((other) => other.logprob)]) expect(one).toBeLessThanOrEqual(0);
    expect(top_logprobs.every((other) => typeof other.logprob === "number")).toBe(true);
  }
});

describe("a schema", () => {
  it("is kept in chats, streamed and not, several at once", async () => {
    const validate = new Ajv().compile(schema);
    const asked = { ...drawn, messages: [...messages], seed: 3, n: 3, response_format: format };
    const whole = await client.chat.completions.create(asked);
    const texts = whole.choices.map(({ message }) => message.content!);
    for (const text of texts) expect(validate(JSON.parse(text)), text).toBe(true);
    expect(new Set(texts).size).toBe(3);
    expect(whole.choices.map(({ finish_reason }) => finish_reason)).toEqual(["stop", "stop", "stop"]);
    const streamed = ["", "", ""];
    for await (const { choices } of await client.chat.completions.create({ ...asked, stream: true })) {
      for (const { index, delta } of choices) streamed[index] += delta.content ?? "";
    }
    expect(streamed).toEqual(texts);
  });

  it("is kept in completions", async () => {
    const more = { response_format: format } as object;
    const { choices } = await client.completions.create({ ...drawn, prompt: "Who?", seed: 4, ...more });
    expect(new Ajv().validate(schema, JSON.parse(choices[0]!.text))).toBe(true);
    let text = "";
    const stream = await client.completions.create({ ...drawn, prompt: "Who?", seed: 4, ...more, stream: true });
    for await (const chunk of stream) text += chunk.choices[0]?.text ?? "";
    expect(text).toBe(choices[0]!.text);
  });

  it("of zod is parsed by the client's helper, with log-probabilities beside", async () => {
    const Person = z.object({ name: z.enum(["Ada", "Alan"]), year: z.number().int().nullable() });
    const { choices } = await client.chat.completions.parse({
      ...drawn,
      messages: [...messages],
      seed: 5,
      logprobs: true,
      response_format: zodResponseFormat(Person, "person"),
    });
    expect(Person.parse(choices[0]!.message.parsed)).toEqual(choices[0]!.message.parsed);
    const told = choices[0]!.logprobs!.content!;
    expect(told.map(({ token }) => token).join("")).toContain(choices[0]!.message.content);
    for (const { logprob } of told) expect(logprob).toBeLessThanOrEqual(0);
  });
});

it("a JSON object is one, and text is any", async () => {
  const asked = { ...drawn, messages: [...messages], seed: 6 };
  const { choices } = await client.chat.completions.create({ ...asked, response_format: { type: "json_object" } });
  const value: unknown = JSON.parse(choices[0]!.message.content!);
  expect(value !== null && typeof value === "object" && !Array.isArray(value)).toBe(true);
  const [plain, text] = await Promise.all(
    [{}, { response_format: { type: "text" } as const }].map((more) =>
      client.chat.completions.create({ ...asked, max_tokens: 20, ...more }),
    ),
  );
  expect(text!.choices[0]!.message.content).toBe(plain!.choices[0]!.message.content);
});

it.each<[format: object, param: string, message: string]>([
  [{}, "response_format.type", "response_format.type must be one of text, json_object, json_schema, got undefined"],
  [{ type: "json_schema" }, "response_format.json_schema", "must be an object with name and schema, got undefined"],
  [{ type: "json_schema", json_schema: {} }, "response_format.json_schema.name", "must be a text, got undefined"],
  [
    { type: "json_schema", json_schema: { name: "a", shema: {} } },
    "response_format.json_schema.shema",
    "response_format.json_schema.shema is not supported",
  ],
  [
    { type: "json_schema", json_schema: { name: "a", strict: true } },
    "response_format.json_schema.schema",
    "must be an object, got undefined",
  ],
  [
    { type: "json_schema", json_schema: { name: "a", schema: { type: "nope" } } },
    "response_format",
    'response_format: json_schema must be one that can be compiled, got: Unsupported type "nope"',
  ],
  [
    { type: "json_schema", json_schema: { name: "a", strict: true, schema: { type: "array", uniqueItems: true } } },
    "response_format",
    "response_format: json_schema.schema must have no keyword that a grammar cannot keep where it is strict, got uniqueItems",
  ],
])("%o is refused", async (wrong, param, message) => {
  const body = { ...drawn, messages: [...messages], response_format: wrong } as never;
  const error = await client.chat.completions.create(body).catch((reason: unknown) => reason);
  expect(error).toMatchObject({ status: 400, param, message: expect.stringContaining(message) });
});
