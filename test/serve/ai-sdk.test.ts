// A second client: Vercel's AI SDK, by chat completions and by responses.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import type { LanguageModel } from "ai";
import { generateObject, generateText, streamText, tool } from "ai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import type { TinyServer } from "../helpers/tiny-server.js";
import { tinyServer, withMarker } from "../helpers/tiny-server.js";

let tiny: TinyServer;
const models: Record<string, LanguageModel> = {};
beforeAll(async () => {
  tiny = await tinyServer({}, withMarker("<tool_call>", false));
  const own = { name: "bnb", baseURL: tiny.url, apiKey: "none" };
  models["openai-compatible"] = createOpenAICompatible({ ...own, supportsStructuredOutputs: true, includeUsage: true })(
    "tiny",
  );
  models["openai"] = createOpenAI({ baseURL: tiny.url, apiKey: "none" }).responses("tiny");
});
afterAll(() => tiny.close());

const Person = z.object({ name: z.enum(["Ada", "Alan"]), born: z.number().int().min(0).max(2000) });
// Responses have no seed in this client: the likeliest text is the same each time.
const greedy = { temperature: 0, maxOutputTokens: 200, maxRetries: 0 };

describe.each(["openai-compatible", "openai"])("the AI SDK by @ai-sdk/%s", (name) => {
  it("streams texts", async () => {
    const short = { ...greedy, maxOutputTokens: 12 };
    const errors: unknown[] = [];
    const { textStream, usage } = streamText({
      ...short,
      model: models[name]!,
      prompt: "Hi",
      onError: ({ error }) => void errors.push(error),
    });
    let text = "";
    for await (const piece of textStream) text += piece;
    expect(errors).toEqual([]);
    const [want] = await tiny.model.complete([{ role: "user", content: "Hi" }] as never, { maxNewTokens: 12 });
    expect(text).toBe(want!.text);
    expect((await usage).outputTokens).toBe(want!.tokens.length);
    const whole = await generateText({ ...short, model: models[name]!, prompt: "Hi" });
    expect(whole.text).toBe(text);
  });

  it("has objects of a schema", async () => {
    const { object } = await generateObject({ ...greedy, model: models[name]!, schema: Person, prompt: "Who?" });
    expect(Person.parse(object)).toEqual(object);
  });

  it("calls tools, and sends what they gave", async () => {
    const given: unknown[] = [];
    const find = tool({
      description: "Finds a person",
      inputSchema: Person,
      execute: (input) => {
        given.push(input);
        return `Found ${input.name}`;
      },
    });
    const called = await generateText({
      ...greedy,
      model: models[name]!,
      prompt: "Who?",
      tools: { find },
      toolChoice: { type: "tool", toolName: "find" },
    });
    expect(called.finishReason).toBe("tool-calls");
    expect(called.toolCalls).toHaveLength(1);
    expect(given).toEqual([called.toolCalls[0]!.input]);
    expect(Person.parse(given[0])).toEqual(given[0]);
    const { messages } = called.response;
    const options = name === "openai" ? { providerOptions: { openai: { store: false } } } : {};
    const next = await generateText({
      ...greedy,
      ...options,
      maxOutputTokens: 5,
      model: models[name]!,
      messages: [{ role: "user", content: "Who?" }, ...messages],
    });
    // The prompt is the question, the call and what it gave.
    const told = [
      { role: "user", content: "Who?" },
      { role: "assistant", content: "", tool_calls: [{ function: { name: "find", arguments: given[0] } }] },
      { role: "tool", content: `Found ${(given[0] as { name: string }).name}` },
    ];
    const text = await tiny.model.tokenizer!.applyChatTemplate(told, { addGenerationPrompt: true });
    const prompt = await tiny.model.tokenizer!.encode(text, { addSpecialTokens: false });
    expect(next.usage.inputTokens).toBe(prompt.length);
    const streamed = streamText({
      ...greedy,
      model: models[name]!,
      prompt: "Who?",
      tools: { find },
      toolChoice: "required",
    });
    const calls = await streamed.toolCalls;
    // As many calls as have room; the last one may be cut off.
    const whole = (await streamed.finishReason) === "length" ? calls.slice(0, -1) : calls;
    expect(whole.length).toBeGreaterThan(0);
    for (const { input } of whole) expect(Person.parse(input)).toEqual(input);
  });
});
