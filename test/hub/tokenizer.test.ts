// Tokenizers and chat templates against those of Python: the ids of texts, their way back, pairs and rendered
// conversations; templates in the manner of the known families; files that cannot be read; and texts of any size.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import type { ChatMessage } from "../../src/hub/tokenizer.js";
import { Tokenizer } from "../../src/hub/tokenizer.js";
import { uniforms } from "../helpers/random.js";
import { fixturePath } from "../helpers/safetensors.js";

const folder = fixturePath("models/tokenizer");
interface Cases {
  vocab_size: number;
  special_tokens: Record<string, string>;
  encode: { text: string; ids: number[]; ids_no_special: number[]; decoded: string; decoded_skip_special: string }[];
  pair: { text: string; pair: string; ids: number[] };
  chat: { messages: ChatMessage[]; add_generation_prompt: boolean; rendered: string; ids: number[] }[];
}
const cases = JSON.parse(readFileSync(join(folder, "cases.json"), "utf8")) as Cases;
const tokenizer = await Tokenizer.fromPretrained(folder);
const root = mkdtempSync(join(tmpdir(), "bnb-tokenizer-"));
afterAll(() => {
  tokenizer.dispose();
  rmSync(root, { recursive: true });
});

let count = 0;
/** A copy of the fixture with other files. */
function withFiles(files: Record<string, string | null>): string {
  const copy = join(root, String(count++));
  cpSync(folder, copy, { recursive: true });
  for (const [name, text] of Object.entries(files)) {
    if (text === null) rmSync(join(copy, name));
    else writeFileSync(join(copy, name), text);
  }
  return copy;
}

describe("the tokenizer of transformers", () => {
  it.each(cases.encode)("$text", async ({ text, ids, ids_no_special, decoded, decoded_skip_special }) => {
    expect([...(await tokenizer.encode(text))]).toEqual(ids);
    expect([...(await tokenizer.encode(text, { addSpecialTokens: false }))]).toEqual(ids_no_special);
    expect(await tokenizer.decode(ids)).toBe(decoded);
    expect(await tokenizer.decode(Int32Array.from(ids), { skipSpecialTokens: true })).toBe(decoded_skip_special);
  });

  it("joins a pair, and knows its tokens", async () => {
    const { text, pair, ids } = cases.pair;
    expect([...(await tokenizer.encode(text, { textPair: pair }))]).toEqual(ids);
    expect(tokenizer.vocabSize).toBe(cases.vocab_size);
    const { bosToken, eosToken, padToken, unkToken } = tokenizer;
    expect({ bos_token: bosToken, eos_token: eosToken, pad_token: padToken }).toEqual(cases.special_tokens);
    expect(unkToken).toBeNull();
    const id = (await tokenizer.tokenToId(eosToken!))!;
    expect(await tokenizer.idToToken(id)).toBe(eosToken);
    expect([await tokenizer.tokenToId("no such token"), await tokenizer.idToToken(100_000)]).toEqual([null, null]);
  });

  it.each(cases.chat)("renders conversation %#", async ({ messages, add_generation_prompt, rendered, ids }) => {
    const text = await tokenizer.applyChatTemplate(messages, { addGenerationPrompt: add_generation_prompt });
    expect(text).toBe(rendered);
    expect([...(await tokenizer.encode(text, { addSpecialTokens: false }))]).toEqual(ids);
  });
});

describe("templates", () => {
  const system = { role: "system", content: " Be brief. " };
  const user = { role: "user", content: "Hi" };
  const assistant = { role: "assistant", content: "Hello" };
  const tools = [{ type: "function", function: { name: "add", parameters: { type: "object" } } }];
  const render = (chatTemplate: string, messages: ChatMessage[], more: object = {}) =>
    tokenizer.applyChatTemplate(messages, { chatTemplate, addGenerationPrompt: true, ...more });

  it("with headers, trimmed contents and the first token (as Llama 3)", async () => {
    const template =
      "{{- bos_token }}{%- for message in messages %}" +
      "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}" +
      "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}";
    expect(await render(template, [system, user])).toBe(
      "<|endoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>" +
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    );
  });

  it("with tools as JSON, a namespace and a switch of its own (as Qwen 3)", async () => {
    const template =
      "{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}{{- '</tools>\\n' }}{%- endif %}" +
      "{%- set ns = namespace(last=-1) %}{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}" +
      "{%- if ns.last < 0 and message.role == 'user' and message.content is string %}{%- set ns.last = index %}{%- endif %}{%- endfor %}" +
      "{%- for message in messages %}{{- '<|im_start|>' ~ message.role ~ ('*' if loop.index0 == ns.last else '') ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}{%- endfor %}" +
      "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}";
    const more = { tools, variables: { enable_thinking: false } };
    expect(await render(template, [user, assistant, { ...user, content: "Bye" }], more)).toBe(
      '<tools>\n{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}</tools>\n' +
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user*\nBye<|im_end|>\n" +
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    );
  });

  it("that joins the system message with the first turn and checks the order (as Gemma and Mistral)", async () => {
    const template =
      "{%- if messages[0].role == 'system' %}{%- set first = messages[0].content | trim + '\\n\\n' %}{%- set rest = messages[1:] %}" +
      "{%- else %}{%- set first = '' %}{%- set rest = messages %}{%- endif %}{{- bos_token }}" +
      "{%- for message in rest %}{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}" +
      "{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}" +
      "{%- set role = 'model' if message.role == 'assistant' else message.role %}" +
      "{{- '<start_of_turn>' + role + '\\n' + (first if loop.first else '') + message.content | trim + '<end_of_turn>\\n' }}" +
      "{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}";
    expect(await render(template, [system, user, assistant, user])).toBe(
      "<|endoftext|><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n" +
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    );
    await expect(render(template, [user, user])).rejects.toThrow(
      "applyChatTemplate: the template must render, got: Conversation roles must alternate user/assistant",
    );
  });

  it("with blocks on lines of their own and a filter chain (as Phi and SmolLM)", async () => {
    const template =
      "{% for message in messages %}\n  {% if loop.first and message['role'] != 'system' %}{{ '<|system|>none<|end|>' }}{% endif %}" +
      "\n{{ '<|' + message['role'] + '|>' }}\n{{ message['content'] | replace('e', 'E') | upper if message.loud else message['content'] }}<|end|>\n{% endfor %}" +
      "{% if add_generation_prompt %}<|assistant|>\n{% endif %}";
    expect(await render(template, [{ ...user, content: "hey", loud: true }])).toBe(
      "<|system|>none<|end|><|user|>\nHEY<|end|>\n<|assistant|>\n",
    );
  });

  it("by name, the one for tools with tools, and that of chat_template.jinja before all", async () => {
    const config = JSON.parse(readFileSync(join(folder, "tokenizer_config.json"), "utf8"));
    const named = [
      { name: "default", template: "plain" },
      { name: "tool_use", template: "{{ tools | length }} tools" },
    ];
    const files = {
      "tokenizer_config.json": JSON.stringify({ ...config, chat_template: named, eos_token: { content: "<|pad|>" } }),
    };
    const own = await Tokenizer.fromPretrained(withFiles(files));
    expect(own.eosToken).toBe("<|pad|>");
    expect(await own.applyChatTemplate([user])).toBe("plain");
    expect(await own.applyChatTemplate([user], { tools })).toBe("1 tools");
    expect(await own.applyChatTemplate([user], { chatTemplate: "tool_use", tools })).toBe("1 tools");
    own.dispose();
    const file = await Tokenizer.fromPretrained(withFiles({ ...files, "chat_template.jinja": "file" }));
    expect(await file.applyChatTemplate([user])).toBe("file");
    file.dispose();
  });

  it("that are wrong or missing are refused", async () => {
    await expect(render("{% for %}", [user])).rejects.toMatchObject({ code: "ERR_BNB_ARGUMENT" });
    await expect(render("x", [{ ...user, content: () => 1 }])).rejects.toThrow("what a template reads must be data");
    const none = await Tokenizer.fromPretrained(withFiles({ "tokenizer_config.json": null }));
    await expect(none.applyChatTemplate([user])).rejects.toThrow(
      "applyChatTemplate: chatTemplate must be given, as the tokenizer has none of its own",
    );
    none.dispose();
  });
});

describe("a text of any size", () => {
  it("crosses in pieces between which the event loop turns, and comes back as it was", async () => {
    const words = cases.encode.map(({ text }) => text).join(" ");
    const text = words.repeat(Math.ceil(2.2e6 / words.length));
    let turns = 0;
    const turn = () => {
      turns++;
      timer = setImmediate(turn);
    };
    let timer = setImmediate(turn);
    const [ids, alone] = [await tokenizer.encode(text), await tokenizer.encode(words, { addSpecialTokens: false })];
    expect(turns).toBeGreaterThan(1);
    expect([...ids.subarray(0, alone.length - 1)]).toEqual([...alone.subarray(0, -1)]);
    turns = 0;
    const back = await tokenizer.decode(ids);
    clearImmediate(timer);
    expect(turns).toBeGreaterThan(1);
    expect(back === text).toBe(true);
  });

  it("keeps calls apart that run at once", async () => {
    const texts = Array.from({ length: 20 }, (_, i) => `${"word ".repeat(i)}${i}`);
    const ids = await Promise.all(texts.map((text) => tokenizer.encode(text)));
    expect(await Promise.all(ids.map((some) => tokenizer.decode(some)))).toEqual(texts);
  });
});

describe("what is refused", () => {
  it("calls with the wrong things", async () => {
    await expect(tokenizer.encode(5 as never)).rejects.toThrow("encode: text must be a string, got 5");
    await expect(tokenizer.decode("no" as never)).rejects.toThrow("decode: ids must be an array or TypedArray");
    await expect(tokenizer.decode([1, 512])).rejects.toThrow("decode: a token id must lie in 0..511, got 512 at 1");
    await expect(tokenizer.decode([-1])).rejects.toThrow("got -1 at 0");
    await expect(tokenizer.encode("a", { add_special_tokens: true } as never)).rejects.toThrow(
      "got add_special_tokens (did you mean addSpecialTokens?)",
    );
    await expect(tokenizer.applyChatTemplate("Hi" as never)).rejects.toThrow(
      "messages must be an array, each an object",
    );
  });

  it("after dispose, also what is still being computed", async () => {
    const own = await Tokenizer.fromPretrained(folder);
    const pending = own.encode("word ".repeat(1e6));
    own.dispose();
    await expect(pending).rejects.toMatchObject({ code: "ERR_BNB_DISPOSED" });
    await expect(own.encode("a")).rejects.toThrow("Tokenizer: it was disposed");
  });

  it("files that are missing or damaged", async () => {
    const open = (files: Record<string, string | null>) => Tokenizer.fromPretrained(withFiles(files));
    await expect(open({ "tokenizer.json": null })).rejects.toThrow(/must hold tokenizer\.json, which is not there/);
    await expect(open({ "tokenizer.json": "{" })).rejects.toThrow(/^tokenizer\.json: cannot be used: /);
    await expect(open({ "tokenizer_config.json": "[]" })).rejects.toThrow("tokenizer_config.json: must hold an object");
  });

  // Each is a thread of its own: BNB_TOKENIZERS=5000 tries more.
  const count = Number(process.env["BNB_TOKENIZERS"] ?? 15);
  it(`${count} damaged tokenizers give a tokenizer or an error of the library, and nothing else`, {
    timeout: 60_000 + 1000 * count,
  }, async () => {
    const text = readFileSync(join(folder, "tokenizer.json"), "utf8");
    const uniform = uniforms(9);
    for (let i = 0; i < count; i++) {
      const at = Math.floor(uniform() * text.length);
      const damaged =
        text.slice(0, at) + ["", "}", '"', "null,", "0"][i % 5]! + text.slice(at + Math.floor(uniform() * 50));
      try {
        const opened = await Tokenizer.fromPretrained(withFiles({ "tokenizer.json": damaged }));
        await opened.encode("Hello world").finally(() => opened.dispose());
      } catch (error) {
        expect(error).toMatchObject({ name: "BnbError" });
      }
    }
  });
});

it.each([
  ["of bytes", "ByteLevel", { Ġthe: [0x20, 0x74, 0x68, 0x65], Ã: [0xc3], "©": [0xa9], Ċ: [10], Ń: [0xad] }],
  [
    "of SentencePiece",
    "ByteFallback",
    { "▁the": [0x20, 0x74, 0x68, 0x65], "<0xC3>": [0xc3], é: [0xc3, 0xa9], "<0xC": [0x3c, 0x30, 0x78, 0x43] },
  ],
])("tells the bytes of tokens %s", async (_, decoder, tokens) => {
  const names = [...Object.keys(tokens), "<0xA9>"];
  const vocab = Object.fromEntries(names.map((token, id) => [token, id]));
  const end = { id: names.length, content: "<end>", special: true, normalized: false };
  const flags = { single_word: false, lstrip: false, rstrip: false };
  const json = {
    ...{ version: "1.0", added_tokens: [{ ...end, ...flags }], normalizer: null, pre_tokenizer: null },
    ...{ post_processor: null, decoder: { type: decoder }, model: { type: "BPE", vocab, merges: [], unk_token: null } },
  };
  const own = await Tokenizer.fromPretrained(withFiles({ "tokenizer.json": JSON.stringify(json) }));
  const ids = [...Object.keys(tokens).keys(), names.length];
  expect(await own.bytesOf(ids)).toEqual([...Object.values(tokens), [...Buffer.from("<end>")]]);
  own.dispose();
});
