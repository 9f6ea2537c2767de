// Every field of every route, by the official client, streamed and not: the text is that of the library with the option that
// does the same. docs/server.md says what is asked here, and the sources read nothing else.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { TextOptions } from "../../src/generation/index.js";
import type { TinyServer } from "../helpers/tiny-server.js";
import { tinyServer } from "../helpers/tiny-server.js";
import type { Field, RouteName } from "./field-table.js";
import { accepted, fieldsText, refused } from "./field-table.js";

let tiny: TinyServer;
beforeAll(async () => {
  tiny = await tinyServer();
});
afterAll(() => tiny.close());

const tokens = { chat: "max_completion_tokens", completions: "max_tokens", responses: "max_output_tokens" } as const;
const promptOf = {
  chat: { messages: [{ role: "user", content: "Hi" }] },
  completions: { prompt: "Hi" },
  responses: { input: "Hi" },
};
const drawn = { model: "tiny", temperature: 0.9, seed: 7 };
const drawnHere: TextOptions = { doSample: true, temperature: 0.9, seed: 7, topK: 0, maxNewTokens: 24 };

type Asking = {
  chat: OpenAI.ChatCompletionCreateParamsNonStreaming;
  completions: OpenAI.CompletionCreateParamsNonStreaming;
};
type Text = Exclude<RouteName, "embeddings">;

/** The text, whole or out of its pieces. */
async function ask(route: Text, body: object, stream: boolean): Promise<string> {
  const { client } = tiny;
  const asked = { ...drawn, ...promptOf[route], ...body, stream } as never;
  let text = "";
  if (route === "chat") {
    const made = await client.chat.completions.create(asked as Asking["chat"]);
    if (!stream) return made.choices[0]!.message.content!;
    for await (const { choices } of made as unknown as AsyncIterable<OpenAI.ChatCompletionChunk>) {
      text += choices[0]?.delta.content ?? "";
    }
  } else if (route === "completions") {
    const made = await client.completions.create(asked as Asking["completions"]);
    if (!stream) return made.choices[0]!.text;
    for await (const { choices } of made as unknown as AsyncIterable<OpenAI.Completion>) text += choices[0]?.text ?? "";
  } else {
    const made = (await client.responses.create(asked)) as OpenAI.Responses.Response;
    if (!stream) return made.output_text;
    for await (const event of made as unknown as AsyncIterable<OpenAI.Responses.ResponseStreamEvent>) {
      if (event.type === "response.output_text.delta") text += event.delta;
    }
  }
  return text;
}

async function here(route: Text, options: TextOptions): Promise<string> {
  // Greedy texts have no temperature.
  const { temperature, seed, topK, ...rest } = { ...drawnHere, ...options };
  const own = rest.doSample ? { ...rest, temperature, seed, topK } : rest;
  const prompt = route === "completions" ? "Hi" : [{ role: "user", content: "Hi" }];
  const [one] = await tiny.model.complete(prompt as string, own as TextOptions);
  return one!.text!;
}

const cases = accepted
  .filter(({ value }) => value !== undefined)
  .flatMap((field) =>
    field.routes.filter((route) => route !== "embeddings").map((route) => [field.name, route as Text, field] as const),
  );

describe("a field", () => {
  it.each(cases)("%s of %s does what the library's option does", async (name, route, field: Field) => {
    const { value, beside = {}, here: own, besideHere = {} } = field;
    const limit = own?.maxNewTokens === undefined ? { [tokens[route]]: 24 } : {};
    const body = { ...limit, ...beside };
    if (name === "instructions") {
      // An empty message is one.
      const said = await ask(route, { ...body, instructions: "Be brief." }, false);
      expect(said).not.toBe(await ask(route, limit, false));
      return;
    }
    const want = await here(route, { ...besideHere, ...own });
    if (own) expect(want).not.toBe(await here(route, besideHere));
    for (const stream of name === "stream" || name === "stream_options" ? [name !== "stream"] : [false, true]) {
      expect(await ask(route, { ...body, [name]: value }, stream)).toBe(want);
    }
  });

  const one = {
    chat: "chat/completions",
    completions: "completions",
    responses: "responses",
    embeddings: "embeddings",
  };
  it.each(refused.flatMap(({ routes, ...field }) => routes.map((route) => [field.name, route, field] as const)))(
    "%s of %s is refused by its name",
    async (name, route, { value, param = name }) => {
      const own = route === "embeddings" ? { input: "Hi" } : promptOf[route];
      for (const stream of route === "embeddings" ? [false] : [false, true]) {
        const body = JSON.stringify({
          ...drawn,
          ...(route === "embeddings" && { temperature: undefined, seed: undefined }),
          ...own,
          [name]: value,
          ...(stream && { stream }),
        });
        const response = await fetch(`${tiny.url}/${one[route]}`, { method: "POST", body });
        expect(response.status).toBe(400);
        expect(await response.json()).toMatchObject({ error: { type: "invalid_request_error", param } });
      }
    },
  );
});

describe("greedy texts", () => {
  const words = { temperature: 0, top_p: 0.5, top_k: 5, min_p: 0.1, seed: 3 };
  const ofModel = { topK: 20, topP: 0.8, temperature: 0.7, doSample: true, numReturnSequences: 3, minNewTokens: 200 };

  it.each(Object.keys(promptOf) as Text[])("of %s are greedy whatever is said of draws", async (route) => {
    const limit = { [tokens[route]]: 24 };
    const want = await here(route, { doSample: false });
    const own = tiny.model.generationConfig;
    try {
      for (const said of [{}, { numBeams: 4 }, ofModel]) {
        tiny.model.generationConfig = { ...own, ...said };
        for (const stream of [false, true]) expect(await ask(route, { ...limit, ...words }, stream)).toBe(want);
        for (const [name, value] of Object.entries(words)) {
          expect(await ask(route, { ...limit, temperature: 0, [name]: value }, false)).toBe(want);
        }
        // Of no probability at all, the likeliest is left.
        expect(await ask(route, { ...limit, temperature: 1.5, top_p: 0 }, false)).toBe(want);
      }
    } finally {
      tiny.model.generationConfig = own;
    }
  });
});

it("dimensions of embeddings are the first ones, of length 1", async () => {
  const asked = { model: "tiny", input: "Hi", encoding_format: "float", user: "u" } as const;
  const [whole, part] = await Promise.all(
    [{}, { dimensions: 4 }].map(
      async (more) => (await tiny.client.embeddings.create({ ...asked, ...more })).data[0]!.embedding,
    ),
  );
  const first = whole!.slice(0, 4);
  const length = Math.hypot(...first);
  expect(part).toHaveLength(4);
  for (const [i, value] of part!.entries()) expect(value).toBeCloseTo(first[i]! / length, 6);
  await expect(tiny.client.embeddings.create({ ...asked, dimensions: 33 })).rejects.toThrow(
    "dimensions must be a whole number from 1 to 32, got 33",
  );
});

describe("the table", () => {
  it("is that of docs/server.md", () => {
    const page = readFileSync(fileURLToPath(new URL("../../docs/server.md", import.meta.url)), "utf8");
    const [, table] = page.split(/<!-- fields -->\n\n|\n\n<!-- end of fields -->/);
    // The formatter pads the columns.
    expect(table!.replace(/ +/g, " ").replace(/-{3,}/g, "---")).toBe(fieldsText());
  });

  it("has all fields that the sources read", () => {
    const files = [
      "chat",
      "completions",
      "responses",
      "embeddings",
      "text-request",
      "response-format",
      "messages",
      "tools/read-tools",
    ];
    const names = files.flatMap((file) => {
      const path = fileURLToPath(new URL(`../../src/serve/${file}.ts`, import.meta.url));
      const source = readFileSync(path, "utf8");
      const calls = source.matchAll(
        /\bfields\??\.(?:text|flag|number|whole|one|object|nested|list|raw|has|refuse|ignore)\(([^)]*)/g,
      );
      return [...calls].flatMap(([, given]) => [...given!.matchAll(/"([a-z_]+)"/g)].map(([, name]) => name!));
    });
    const known = new Set([...accepted, ...refused].map(({ name }) => name));
    const values = new Set(["none", "auto", "disabled", "text", "float", "base64"]);
    expect([...new Set(names)].filter((name) => !known.has(name) && !values.has(name))).toEqual([]);
    expect(names.length).toBeGreaterThan(40);
  });
});
