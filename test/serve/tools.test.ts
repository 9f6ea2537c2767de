// Calls of functions by the official client: a random model calls what it is told to with arguments that another library
// finds valid, streamed and not, in the ways of four families of models.
import { Ajv } from "ajv";
import type OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { TinyServer } from "../helpers/tiny-server.js";
import { biasOfBytes, tinyServer, withMarker } from "../helpers/tiny-server.js";

type Call = { id: string; name: string; arguments: string };
type Asked = Omit<OpenAI.ChatCompletionCreateParamsNonStreaming, "model" | "messages">;

const weather = {
  type: "object",
  properties: { city: { type: "string", maxLength: 6 }, unit: { enum: ["C", "F"] }, days: { type: "integer" } },
  required: ["city", "unit"],
  additionalProperties: false,
};
const time = { type: "object", properties: { zone: { enum: ["UTC", "CET"] } }, required: ["zone"] };
const parameters: Record<string, object> = { get_weather: weather, get_time: time };
const tools = Object.entries(parameters).map(([name, schema]) => ({
  type: "function" as const,
  function: { name, description: `Tells: ${name}`, parameters: schema as Record<string, unknown>, strict: true },
}));
const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: "user", content: "Hi" }];
const drawn = { model: "tiny", temperature: 2, max_tokens: 400, logit_bias: biasOfBytes } as const;
const validators = Object.fromEntries(Object.entries(parameters).map(([name, one]) => [name, new Ajv().compile(one)]));

function expectValid({ name, arguments: given }: Call): void {
  expect(validators[name]!(JSON.parse(given)), `${name} ${given}`).toBe(true);
}

/** What is asked in whole, and again in pieces, which must be the same. */
async function ask({ client }: TinyServer, asked: Asked) {
  const whole = await client.chat.completions.create({ ...drawn, messages, ...asked });
  const choices = whole.choices.map(({ message, finish_reason }) => ({
    content: message.content,
    finish: finish_reason,
    calls: (message.tool_calls ?? []).map((call) => {
      if (call.type !== "function") throw new Error(call.type);
      return { id: call.id, ...call.function };
    }),
  }));
  const streamed = choices.map(() => ({ content: "", finish: "", calls: [] as Call[] }));
  const stream = await client.chat.completions.create({ ...drawn, messages, ...asked, stream: true });
  for await (const { choices: pieces } of stream) {
    for (const { index, delta, finish_reason } of pieces) {
      const one = streamed[index]!;
      one.content += delta.content ?? "";
      if (finish_reason) one.finish = finish_reason;
      for (const { index: at, id, type, function: own } of delta.tool_calls ?? []) {
        if (id !== undefined) {
          // The id and the name come once, with the beginning.
          expect(at).toBe(one.calls.length);
          expect(type).toBe("function");
          one.calls.push({ id, name: own!.name!, arguments: own!.arguments! });
        } else {
          expect(own!.name).toBeUndefined();
          one.calls[at]!.arguments += own!.arguments!;
        }
      }
    }
  }
  const withoutIds = (list: readonly Call[]) => list.map(({ name, arguments: given }) => ({ name, given }));
  for (const [i, { content, finish, calls }] of choices.entries()) {
    expect(streamed[i]).toMatchObject({ content: content ?? "", finish });
    expect(withoutIds(streamed[i]!.calls)).toEqual(withoutIds(calls));
  }
  return choices;
}

describe.each([
  { family: "hermes", marker: "<tool_call>", isSpecial: false, id: /^call_[\da-f]{24}$/, parallel: true },
  { family: "llama3", marker: "<|python_tag|>", isSpecial: true, id: /^call_[\da-f]{24}$/, parallel: false },
  { family: "mistral", marker: "[TOOL_CALLS]", isSpecial: true, id: /^[A-Za-z\d]{9}$/, parallel: true },
  { family: "qwen3-coder", marker: "<tool_call>", isSpecial: false, id: /^call_[\da-f]{24}$/, parallel: true },
  { family: "mistral's marks", marker: "[TOOL_CALLS]", isSpecial: true, id: /^[A-Za-z\d]{9}$/, parallel: true },
])("calls of $family", ({ family, marker, isSpecial, id, parallel }) => {
  let tiny: TinyServer;
  const toMarker = (bias: number) => ({ logit_bias: { ...biasOfBytes, 257: bias } });

  beforeAll(async () => {
    const more: Record<string, string> = { "mistral's marks": "f[ARGS]", "qwen3-coder": "<function=" };
    const call = marker + (more[family] ?? "");
    tiny = await tinyServer({}, withMarker(marker, isSpecial, call));
  });
  afterAll(() => tiny.close());

  it("are made where they must be", async () => {
    const choices = await ask(tiny, { tools, tool_choice: "required", n: 3, seed: 1, parallel_tool_calls: false });
    for (const { content, finish, calls } of choices) {
      expect([content, finish, calls.length]).toEqual([null, "tool_calls", 1]);
      expectValid(calls[0]!);
      expect(calls[0]!.id).toMatch(id);
    }
    expect(new Set(choices.map(({ calls }) => calls[0]!.id)).size).toBe(3);
  });

  it("may be several", async () => {
    const bias = { logit_bias: { ...biasOfBytes, 257: 12, [",".charCodeAt(0)]: 8, ["\n".charCodeAt(0)]: 8 } };
    const many = await ask(tiny, { tools, tool_choice: "required", n: 4, seed: 2, ...bias });
    for (const { calls } of many) for (const call of calls.slice(0, -1)) expectValid(call);
    const most = Math.max(...many.map(({ calls }) => calls.length));
    if (parallel) expect(most).toBeGreaterThan(1);
    else expect(most).toBe(1);
  });

  it("are those of the function that is named", async () => {
    for (const name of ["get_weather", "get_time"]) {
      const [one] = await ask(tiny, { tools, tool_choice: { type: "function", function: { name } }, seed: 3 });
      expect(one).toMatchObject({ content: null, finish: "tool_calls", calls: [{ name }] });
      expectValid(one!.calls[0]!);
    }
  });

  it("are held to their form from the marker on where the model chooses", async () => {
    const asked = { tools, seed: 4, n: 4, parallel_tool_calls: false };
    // About one of ten tokens is the marker: text, and then a call.
    const choices = await ask(tiny, { ...asked, ...toMarker(7) });
    for (const { finish, calls } of choices) {
      expect([finish, calls.length]).toEqual(["tool_calls", 1]);
      expectValid(calls[0]!);
    }
    expect(choices.some(({ content }) => content !== null)).toBe(true);
    for (const { content } of choices) expect(content ?? "").not.toContain(marker);
    const without = await ask(tiny, { ...asked, ...toMarker(-100), max_tokens: 20 });
    for (const { calls } of without) expect(calls).toEqual([]);
  });
});

describe("a conversation with tools", () => {
  let tiny: TinyServer;
  beforeAll(async () => {
    tiny = await tinyServer({}, withMarker("<tool_call>", false));
  });
  afterAll(() => tiny.close());

  it("is what the template makes of it", async () => {
    const conversation: OpenAI.ChatCompletionMessageParam[] = [
      ...messages,
      {
        role: "assistant",
        content: null,
        tool_calls: [{ id: "call_1", type: "function", function: { name: "get_time", arguments: '{"zone": "UTC"}' } }],
      },
      { role: "tool", tool_call_id: "call_1", content: "noon" },
    ];
    const asked = { ...drawn, max_tokens: 1, messages: conversation };
    const promptOf = async (more: object): Promise<number> => {
      const { usage } = await tiny.client.chat.completions.create({ ...asked, ...more });
      return usage!.prompt_tokens;
    };
    const { tokenizer } = tiny.model;
    const known = [
      { role: "user", content: "Hi" },
      { role: "assistant", content: "", tool_calls: [{ function: { name: "get_time", arguments: { zone: "UTC" } } }] },
      { role: "tool", content: "noon" },
    ];
    const shown = tools.map(({ type, function: { strict: _, ...own } }) => ({ type, function: own }));
    const encode = async (list: object[] | null): Promise<number> => {
      const text = await tokenizer!.applyChatTemplate(known, { addGenerationPrompt: true, tools: list });
      return (await tokenizer!.encode(text, { addSpecialTokens: false })).length;
    };
    expect(await promptOf({ tools })).toBe(await encode(shown));
    // What may not be called is not shown.
    expect(await promptOf({ tools, tool_choice: "none" })).toBe(await encode(null));
    expect(await encode(shown)).toBeGreaterThan(await encode(null));
  });

  it("tells log-probabilities of calls, streamed and not", async () => {
    const asked = {
      ...drawn,
      messages,
      tools,
      tool_choice: "required",
      seed: 8,
      logprobs: true,
      top_logprobs: 1,
    } as const;
    const whole = await tiny.client.chat.completions.create({ ...asked, parallel_tool_calls: false });
    const content = whole.choices[0]!.logprobs!.content!;
    expect(content).toHaveLength(whole.usage!.completion_tokens);
    const text = content.map(({ token }) => token).join("");
    const [call] = whole.choices[0]!.message.tool_calls!;
    if (call!.type !== "function") throw new Error(call!.type);
    expect(text).toContain(`{"name": "${call!.function.name}", "arguments": ${call!.function.arguments}}`);
    const streamed: unknown[] = [];
    const stream = await tiny.client.chat.completions.create({ ...asked, parallel_tool_calls: false, stream: true });
    for await (const { choices } of stream) streamed.push(...(choices[0]?.logprobs?.content ?? []));
    expect(streamed).toEqual(content);
  });

  it.each<[fields: object, param: string, message: string]>([
    [{ tools: [{ type: "web_search" }] }, "tools[0].type", "tools[0].type web_search is not supported"],
    [{ tools: [{}] }, "tools[0].type", "tools[0].type must be function, got undefined"],
    [{ tools: [{ type: "function" }] }, "tools[0].function", "must be an object with name and parameters"],
    [
      { tools: [{ type: "function", function: { name: "a b" } }] },
      "tools[0].function.name",
      'tools[0].function.name must be 1 to 64 letters, digits, _ and -, got "a b"',
    ],
    [
      { tools: [{ type: "function", function: { name: "a", parameters: { type: "array" } } }] },
      "tools[0].function.parameters.type",
      'must be object, got "array"',
    ],
    [
      { tools: [{ type: "function", function: { name: "a", strict: true, parameters: { not: {} } } }] },
      "tools[0].function.parameters",
      "parameters must have no keyword that a grammar cannot keep where it is strict, got not",
    ],
    [{ tools: [tools[0], tools[0]] }, "tools", "tools must be functions of different names"],
    [{ tool_choice: "required" }, "tool_choice", "tool_choice must be none or auto where there are no tools"],
    [
      { tools, tool_choice: "some" },
      "tool_choice",
      'tool_choice must be none, auto, required or a function, got "some"',
    ],
    [
      { tools, tool_choice: { type: "function", function: { name: "other" } } },
      "tool_choice",
      'tool_choice must be one of the tools: get_weather, get_time, got "other"',
    ],
    [{ tools, parallel_tool_calls: 1 }, "parallel_tool_calls", "parallel_tool_calls must be true or false, got 1"],
    [
      { tools, response_format: { type: "json_object" } },
      "response_format",
      'response_format must be text where tools may be called (tool_choice is not none), got "json_object"',
    ],
    [{ functions: [] }, "functions", "functions is not supported"],
    [
      {
        messages: [
          { role: "assistant", tool_calls: [{ id: "a", type: "function", function: { name: "b", arguments: "c" } }] },
        ],
      },
      "messages[0].tool_calls[0].function.arguments",
      "must be a text that is a JSON object",
    ],
    [{ messages: [{ role: "tool", content: "a" }] }, "messages[0].tool_call_id", "must be the id of a call"],
  ])("%o is refused", async (fields, param, message) => {
    const body = { ...drawn, messages, ...fields } as never;
    const error = await tiny.client.chat.completions.create(body).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ status: 400, param, message: expect.stringContaining(message) });
  });
});
