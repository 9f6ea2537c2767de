// /v1/responses by the official client: what chat completions make of the same conversation, whole and as events.
import { Ajv } from "ajv";
import type OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { TinyServer } from "../helpers/tiny-server.js";
import { biasOfBytes, tinyServer, withMarker } from "../helpers/tiny-server.js";

type Body = OpenAI.Responses.ResponseCreateParamsNonStreaming;

let tiny: TinyServer;
beforeAll(async () => {
  tiny = await tinyServer({}, withMarker("<tool_call>", false));
});
afterAll(() => tiny.close());

const drawn = { model: "tiny", temperature: 1.5, max_output_tokens: 300, logit_bias: biasOfBytes, seed: 3 };
const schema = {
  type: "object",
  properties: { zone: { enum: ["UTC", "CET"] } },
  required: ["zone"],
  additionalProperties: false,
};
const tool = { type: "function" as const, name: "get_time", description: "Tells it", parameters: schema, strict: true };

/** What is asked in whole, and again as events, which must come to the same. */
async function ask(body: object): Promise<OpenAI.Responses.Response> {
  const asked = { ...drawn, ...body } as unknown as Body;
  const whole = await tiny.client.responses.create(asked);
  const events: OpenAI.Responses.ResponseStreamEvent[] = [];
  for await (const event of await tiny.client.responses.create({ ...asked, stream: true })) events.push(event);
  expect(events.map(({ sequence_number }) => sequence_number)).toEqual(events.map((_, i) => i));
  expect(events.slice(0, 2).map(({ type }) => type)).toEqual(["response.created", "response.in_progress"]);
  const last = events.at(-1)! as OpenAI.Responses.ResponseCompletedEvent;
  expect(last.type).toBe(whole.status === "completed" ? "response.completed" : "response.incomplete");
  const withoutIds = (output: readonly object[]) => output.map((item) => ({ ...item, id: "", call_id: "" }));
  expect(withoutIds(last.response.output)).toEqual(withoutIds(whole.output));
  // The pieces are the whole.
  for (const [i, item] of last.response.output.entries()) {
    const pieces = events.flatMap((event) =>
      "delta" in event && "output_index" in event && event.output_index === i ? [event.delta as string] : [],
    );
    const done = events.find((event) => event.type === "response.output_item.done" && event.output_index === i);
    expect(done).toMatchObject({ item });
    if (item.type === "message") expect(item.content[0]).toMatchObject({ text: pieces.join("") });
    else if (item.type === "function_call") expect(item.arguments).toBe(pieces.join(""));
    else throw new Error(item.type);
  }
  return whole;
}

describe("a response", () => {
  it("is what chat completions make of the conversation", async () => {
    const messages = [
      { role: "system", content: "Be brief." },
      { role: "user", content: "Hi" },
    ] as const;
    const { max_output_tokens: _, ...chat } = drawn;
    const want = await tiny.client.chat.completions.create({ ...chat, max_tokens: 12, messages: [...messages] });
    for (const input of [
      "Hi",
      [{ role: "user", content: "Hi" }],
      [{ role: "user", content: [{ type: "input_text", text: "Hi" }] }],
    ]) {
      const one = await ask({ instructions: "Be brief.", input, max_output_tokens: 12 });
      expect(one.output_text).toBe(want.choices[0]!.message.content);
      expect(one.usage).toMatchObject({
        input_tokens: want.usage!.prompt_tokens,
        output_tokens: want.usage!.completion_tokens,
        total_tokens: want.usage!.total_tokens,
      });
      const isCut = want.choices[0]!.finish_reason === "length";
      expect(one.status).toBe(isCut ? "incomplete" : "completed");
      expect(one.incomplete_details).toEqual(isCut ? { reason: "max_output_tokens" } : null);
      expect(one).toMatchObject({ object: "response", store: false, instructions: "Be brief.", error: null });
    }
  });

  it("is JSON of a schema", async () => {
    const format = { type: "json_schema", name: "time", strict: true, schema };
    const one = await ask({ input: "When?", text: { format } });
    expect(new Ajv().validate(schema, JSON.parse(one.output_text))).toBe(true);
    const any = await ask({ input: "When?", text: { format: { type: "json_object" } }, seed: 4 });
    expect(typeof JSON.parse(any.output_text)).toBe("object");
  });

  it("calls functions, and goes on from what they gave", async () => {
    const more = { tools: [tool], tool_choice: { type: "function", name: "get_time" } };
    const called = await ask({ input: "When?", ...more });
    const [call] = called.output;
    if (call?.type !== "function_call") throw new Error(call?.type);
    expect(call).toMatchObject({ name: "get_time", status: "completed" });
    expect(new Ajv().validate(schema, JSON.parse(call.arguments))).toBe(true);
    const given = { type: "function_call_output", call_id: call.call_id, output: "noon" };
    const input = [{ role: "user", content: "When?" }, ...called.output, given];
    const next = await ask({ input, max_output_tokens: 8, tools: [tool], tool_choice: "none" });
    const { max_output_tokens: _, ...chat } = drawn;
    const { name, arguments: text } = call;
    const want = await tiny.client.chat.completions.create({
      ...chat,
      max_tokens: 8,
      messages: [
        { role: "user", content: "When?" },
        {
          role: "assistant",
          tool_calls: [{ id: call.call_id, type: "function", function: { name, arguments: text } }],
        },
        { role: "tool", tool_call_id: call.call_id, content: "noon" },
      ],
    });
    expect(next.output_text).toBe(want.choices[0]!.message.content);
  });

  it("tells log-probabilities where they are included", async () => {
    const include = ["message.output_text.logprobs"];
    // Characters of two bytes, some of which never come: tokens without a text of their own.
    for (const [seed, ids] of [[0xc3, 0xa9], [0xc3, 0xa9, 0x41], [0xc3]].entries()) {
      const bias = Object.fromEntries(ids.map((id) => [id, 60]));
      const pieces = { input: "Hi", max_output_tokens: 40, include, logit_bias: bias, seed };
      const { output, usage } = await ask(pieces);
      const [message] = output as [OpenAI.Responses.ResponseOutputMessage];
      const [part] = message.content as [OpenAI.Responses.ResponseOutputText];
      const bytes = part.logprobs!.flatMap((one) => one.bytes);
      expect(part.logprobs).toHaveLength(usage!.output_tokens);
      expect(Buffer.from(bytes).toString()).toBe(part.text);
    }
    const one = await ask({ input: "Hi", max_output_tokens: 6, include, top_logprobs: 2 });
    const [message] = one.output;
    if (message?.type !== "message" || message.content[0]?.type !== "output_text") throw new Error(message?.type);
    const told = message.content[0].logprobs!;
    expect(told.length).toBeGreaterThan(0);
    for (const { logprob, top_logprobs } of told) {
      expect(logprob).toBeLessThanOrEqual(0);
      expect(top_logprobs).toHaveLength(2);
    }
  });
});

it.each<[fields: object, param: string, message: string]>([
  [{ input: [] }, "input", "input must be a text, or a list of items, got []"],
  [{ input: [3] }, "input[0]", "input[0] must be an item, got 3"],
  [{ input: [{ role: "bot", content: "" }] }, "input[0].role", "must be one of system, developer, user, assistant"],
  [{ input: [{ type: "item_reference", id: "a" }] }, "input[0].type item_reference", "item_reference is not supported"],
  [
    { input: [{ role: "user", content: [{ type: "input_image" }] }] },
    "input[0].content[0].type input_image",
    "input_image is not supported",
  ],
  [{ input: [{ type: "function_call_output", output: "" }] }, "input[0].call_id", "must be the id of a call"],
  [{ previous_response_id: "resp_1" }, "previous_response_id", "is not supported: nothing is stored"],
  [{ conversation: "conv_1" }, "conversation", "is not supported: nothing is stored"],
  [{ background: true }, "background", "background is not supported"],
  [{ include: ["file_search_call.results"] }, "include", "include is not supported: file_search_call.results"],
  [{ top_logprobs: 1 }, "include", "include must be to have message.output_text.logprobs where top_logprobs is given"],
  [{ tools: [{ type: "web_search" }] }, "tools[0].type", "tools[0].type web_search is not supported"],
  [{ text: { format: { type: "yaml" } } }, "text.format.type", "must be one of text, json_object, json_schema"],
  [
    { text: { format: { type: "json_object" } }, tools: [tool] },
    "text.format",
    "text.format must be text where tools may be called",
  ],
  [{ response_format: { type: "text" } }, "response_format", "response_format is not supported"],
  [{ max_tokens: 3 }, "max_tokens", "max_tokens is not supported"],
  [{ truncation: "auto" }, "truncation", "truncation is not supported"],
])("%o is refused", async (fields, param, message) => {
  const body = { ...drawn, input: "Hi", ...fields } as never;
  const error = await tiny.client.responses.create(body).catch((reason: unknown) => reason);
  expect(error).toMatchObject({ status: 400, param, message: expect.stringContaining(message) });
});
