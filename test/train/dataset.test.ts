// Training data: what of each form is learned, where samples are cut, and what a broken row says.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import type { ChatMessage } from "../../src/hub/index.js";
import { AutoTokenizer } from "../../src/hub/index.js";
import { resolveArguments } from "../../src/train/arguments.js";
import { epochBatches } from "../../src/train/batches.js";
import { DataOrder } from "../../src/train/data-order.js";
import type { Sample } from "../../src/train/index.js";
import { loadDataset, loadPreferences } from "../../src/train/index.js";
import { fixturePath } from "../helpers/safetensors.js";

const folder = mkdtempSync(join(tmpdir(), "bnb-data-"));
const tokenizer = await AutoTokenizer.fromPretrained(fixturePath("models/tokenizer"));
const eos = (await tokenizer.tokenToId(tokenizer.eosToken as string)) as number;
const options = { tokenizer, maxLength: 256 };
afterAll(() => {
  tokenizer.dispose();
  rmSync(folder, { recursive: true });
});

const file = (name: string, text: string | Uint8Array): string => {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
};
const learned = ({ labels }: Sample) => [...labels].filter((label) => label !== -100);
const only = async (row: object): Promise<Sample> => (await loadDataset([row], options)).samples[0] as Sample;
const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false }).then((ids) => [...ids]);

describe("Parquet", () => {
  // 5 rows in 3 groups, compressed by snappy: messages, a list of structures, and id.
  const chat = fixturePath("train/chat.parquet");

  it("gives the samples that the same rows as JSON give", async () => {
    const rows = [0, 1, 2, 3, 4].map((i) => ({
      messages: [
        { role: "user", content: `${i}?` },
        { role: "assistant", content: `Größe ${i}.` },
      ],
    }));
    const { samples } = await loadDataset(chat, options);
    expect(samples.length).toBe(5);
    expect(samples).toEqual((await loadDataset(rows, options)).samples);
  });

  it("that is none, or ends early, is named", async () => {
    const bytes = readFileSync(chat);
    const path = join(folder, "cut.parquet");
    for (const broken of [Buffer.alloc(0), Buffer.from("text"), bytes.subarray(0, 500), bytes.subarray(300)]) {
      writeFileSync(path, broken);
      await expect(loadDataset(path, options)).rejects.toThrow(/cut\.parquet: could not be read: ./);
    }
    await expect(loadPreferences(chat, options)).rejects.toThrow(
      "loadPreferences: chat.parquet, row 1: must have prompt, chosen and rejected, got messages, id",
    );
  });
});

describe("forms", () => {
  it("a text is learned with its end", async () => {
    const { ids, labels } = await only({ text: "Hello there" });
    expect([...ids]).toEqual([...(await encode("Hello there")), eos]);
    expect([...labels]).toEqual([...ids]);
  });

  it("of prompt and completion, the completion and its end; an eos in the prompt is none of them", async () => {
    const prompt = `One${tokenizer.eosToken} two:`;
    const sample = await only({ prompt, completion: " three" });
    expect([...sample.ids]).toEqual([...(await encode(prompt)), ...(await encode(" three")), eos]);
    expect(learned(sample)).toEqual([...(await encode(" three")), eos]);
    expect(sample.labels.subarray(0, (await encode(prompt)).length).every((label) => label === -100)).toBe(true);
  });

  const messages: ChatMessage[] = [
    { role: "system", content: "Be kind." },
    { role: "user", content: "Hi" },
    { role: "assistant", content: "Hello!" },
    { role: "user", content: "Hello!" },
    { role: "assistant", content: "Bye" },
  ];

  it("of a conversation, what the assistant says with the mark of its end, as the template writes it", async () => {
    const sample = await only({ messages });
    const whole = await tokenizer.applyChatTemplate(messages);
    expect(await tokenizer.decode(sample.ids)).toBe(whole);
    expect(await tokenizer.decode(learned(sample))).toBe("Hello!<|im_end|>Bye<|im_end|>");
    // What generation would see before the answer is what training sees.
    const before = await tokenizer.applyChatTemplate(messages.slice(0, 2), { addGenerationPrompt: true });
    const start = (await encode(before)).length;
    expect([...sample.ids.subarray(0, start)]).toEqual(await encode(before));
    expect(sample.labels[start - 1]).toBe(-100);
    expect(sample.labels[start]).toBe(sample.ids[start]);
  });

  it("a prompt of messages: the completion alone", async () => {
    const sample = await only({ prompt: messages.slice(0, 4), completion: messages.slice(4) });
    expect(await tokenizer.decode(learned(sample))).toBe("Bye<|im_end|>");
  });

  it("a template without a mark of the end: the end of the text is learned", async () => {
    const chatTemplate =
      "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    const { samples } = await loadDataset([{ messages }], { ...options, chatTemplate });
    expect(await tokenizer.decode(learned(samples[0] as Sample))).toBe(`Hello!\nBye\n${tokenizer.eosToken}`);
  });

  it("a template that shows earlier turns otherwise than the last", async () => {
    const chatTemplate =
      "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' and loop.last %}(thought){% endif %}" +
      "{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    const { samples } = await loadDataset([{ messages }], { ...options, chatTemplate });
    const text = await tokenizer.decode(learned(samples[0] as Sample));
    expect(text).toBe("Hello!<|im_end|>(thought)Bye<|im_end|>");
  });

  it("a template that drops the assistant is refused", async () => {
    const chatTemplate = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }};{% endfor %}";
    await expect(loadDataset([{ messages: messages.slice(1, 3) }], { ...options, chatTemplate })).rejects.toThrow(
      "row 1: the chat template must keep what the assistant says, got one that drops message 2",
    );
  });

  it.each(["d", "e", "end", "im", "<", "|>", "t", "think", "yes"])("an answer as short as %s", async (content) => {
    const thought =
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n" +
      "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    const row = {
      messages: ["q", content, "r", content].map((c, i) => ({ role: i % 2 ? "assistant" : "user", content: c })),
    };
    const own = await only(row);
    expect(await tokenizer.decode(learned(own))).toBe(`${content}<|im_end|>${content}<|im_end|>`);
    const { samples } = await loadDataset([row], { ...options, chatTemplate: thought });
    const text = await tokenizer.decode(learned(samples[0] as Sample));
    expect(text).toBe(`${content}<|im_end|><think>\n\n</think>\n\n${content}<|im_end|>`);
  });

  it("content in parts, and calls of tools with and without words", async () => {
    const chatTemplate =
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}" +
      "{% for p in m.content %}{{ p.text }};{% endfor %}{% endif %}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}" +
      "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    const calls = [{ name: "f", arguments: { a: 1 } }];
    const parts = ["One", "two"].map((text) => ({ type: "text", text }));
    const row = {
      messages: [
        { role: "user", content: "q" },
        { role: "assistant", content: parts },
        { role: "user", content: "r" },
        { role: "assistant", content: "", tool_calls: calls },
        { role: "tool", content: "3" },
        { role: "assistant", content: "Once more", tool_calls: calls },
      ],
    };
    const { samples } = await loadDataset([row], { ...options, chatTemplate });
    const call = '[{"name": "f", "arguments": {"a": 1}}]';
    expect(await tokenizer.decode(learned(samples[0] as Sample))).toBe(
      `One;two;<|im_end|>${call}<|im_end|>Once more${call}<|im_end|>`,
    );
    const dropping = chatTemplate.replace(
      "{% for p in m.content %}{{ p.text }};{% endfor %}",
      "{{ m.content[0].text }}",
    );
    await expect(loadDataset([row], { ...options, chatTemplate: dropping })).rejects.toThrow(
      "row 1: the chat template must keep what the assistant says, got one that drops message 2",
    );
  });

  // As Qwen 3 has them: the last turn begins with its thoughts, earlier ones do not; calls of tools stand behind the words.
  const thinking =
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}" +
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }};{% endfor %}{% endif %}" +
    "{% for c in m.tool_calls or [] %}{{ '\\n' if m.content }}<call>{{ c.name }}</call>{% endfor %}" +
    "<|im_end|>{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  const parts = (...texts: string[]) => texts.map((text) => ({ type: "text", text }));

  it.each([
    ["calls of tools alone", { content: "", tool_calls: [{ name: "f" }] }, "<call>f</call>"],
    ["words and a call", { content: "call", tool_calls: [{ name: "f" }] }, "call\n<call>f</call>"],
    ["several parts", { content: parts("One", "im", "One") }, "One;im;One;"],
    ["nothing", { content: "" }, ""],
  ])("an earlier turn of %s, shown otherwise than the last", async (_, turn, shown) => {
    const row = {
      messages: [
        { role: "user", content: "q" },
        { role: "assistant", ...turn },
        { role: "tool", content: "3" },
        { role: "assistant", content: "3." },
      ],
    };
    const { samples } = await loadDataset([row], { ...options, chatTemplate: thinking });
    const text = await tokenizer.decode(learned(samples[0] as Sample));
    expect(text).toBe(`${shown}<|im_end|><think>\n\n</think>\n\n3.<|im_end|>`);
  });

  it("an earlier turn that ends otherwise than the last is refused", async () => {
    const chatTemplate = thinking.replace(
      "<|im_end|>{{",
      "{{ '<|im_end|>' if loop.last or m.role == 'user' else '.' }}{{",
    );
    const row = {
      messages: ["q", "a", "r", "b"].map((content, i) => ({ role: i % 2 ? "assistant" : "user", content })),
    };
    await expect(loadDataset([row], { ...options, chatTemplate })).rejects.toThrow(
      "row 1: the chat template must end each turn alike, got one that changes message 2",
    );
  });

  it.each([
    ["a part that the one before it holds", { content: parts("The answer is 4.", "4") }, "The answer is 4.;4;"],
    ["calls of tools alone", { content: "", tool_calls: [{ name: "f" }] }, "<call>f</call>"],
    ["words and a call", { content: "f", tool_calls: [{ name: "f" }] }, "f\n<call>f</call>"],
  ])("a template without a mark of the end: the end is learned behind %s", async (_, turn, shown) => {
    const plain = thinking
      .replace("<|im_end|>", "")
      .replace("{{ p.text }};", "{{ p.text }}{{ '\\n' if loop.last else ';' }}");
    const row = {
      messages: [
        { role: "user", content: "q" },
        { role: "assistant", ...turn },
      ],
    };
    const { samples } = await loadDataset([row], { ...options, chatTemplate: plain });
    const text = await tokenizer.decode(learned(samples[0] as Sample));
    expect(text).toBe(`<think>\n\n</think>\n\n${shown.replace(/;$/, "\n")}\n${tokenizer.eosToken}`);
  });

  // What Llama 2 has: "▁" before each text that is tokenized, by the normalizer or the pre-tokenizer.
  it.each([
    [
      "a normalizer",
      {
        normalizer: {
          type: "Sequence",
          normalizers: [
            { type: "Prepend", prepend: "▁" },
            { type: "Replace", pattern: { String: " " }, content: "▁" },
          ],
        },
      },
    ],
    [
      "a pre-tokenizer",
      { pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: false } },
    ],
  ])("a tokenizer whose texts begin with a space by %s: the ids of the text in one piece", async (_, how) => {
    const tokens = ["<unk>", "<s>", "</s>", ..."▁abcdefghijklmnopqrstuvwxyz[]/INST:.", "▁▁", "▁a"];
    const special = (id: number) => ({ single_word: false, lstrip: false, rstrip: false, normalized: false, id });
    const begin = { SpecialToken: { id: "<s>", type_id: 0 } };
    const json = {
      version: "1.0",
      added_tokens: [0, 1, 2].map((id) => ({ ...special(id), content: tokens[id], special: true })),
      normalizer: null,
      pre_tokenizer: null,
      ...how,
      post_processor: {
        type: "TemplateProcessing",
        single: [begin, { Sequence: { id: "A", type_id: 0 } }],
        pair: [begin, { Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
        special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
      },
      decoder: { type: "Replace", pattern: { String: "▁" }, content: " " },
      model: {
        ...{ type: "BPE", unk_token: "<unk>", fuse_unk: true },
        merges: ["▁ ▁", "▁ a"],
        vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      },
    };
    const place = mkdtempSync(join(folder, "llama-"));
    writeFileSync(join(place, "tokenizer.json"), JSON.stringify(json));
    const settings = {
      ...{ bos_token: "<s>", eos_token: "</s>", unk_token: "<unk>" },
      chat_template:
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]" +
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
    };
    writeFileSync(join(place, "tokenizer_config.json"), JSON.stringify(settings));
    using llama = await AutoTokenizer.fromPretrained(place);
    const shown = (ids: ArrayLike<number>) => Array.from(ids, (id) => tokens[id]).join(" ");
    const of = async (row: object) => {
      const { samples } = await loadDataset([row], { tokenizer: llama, maxLength: 99 });
      return samples[0] as Sample;
    };
    const turns = ["hi", "a cat", "so", "a dog"].map((content, i) => ({ role: i % 2 ? "assistant" : "user", content }));
    const chat = await of({ messages: turns });
    const whole = await llama.applyChatTemplate(turns);
    expect(shown(chat.ids)).toBe(shown(await llama.encode(whole, { addSpecialTokens: false })));
    expect(shown(learned(chat))).toBe("▁a ▁ c a t ▁ </s> ▁a ▁ d o g ▁ </s>");
    const answer = await of({ prompt: "q:", completion: " a" });
    expect(shown(answer.ids)).toBe(`${shown(await llama.encode("q: a"))} </s>`);
    expect(shown(learned(answer))).toBe("▁a </s>");
    // The space before it is in one token with the first letter: that is learned.
    const astride = await of({ prompt: "q: ", completion: "a" });
    expect(shown(astride.ids)).toBe(shown(answer.ids));
    expect(shown(learned(astride))).toBe("▁a </s>");
  });

  it("preference pairs share their prompt", async () => {
    const { samples } = await loadPreferences([{ prompt: "A", chosen: " good", rejected: " bad" }], options);
    const [pair] = samples;
    expect(await tokenizer.decode((pair as { chosen: Sample }).chosen.ids)).toBe(`A good${tokenizer.eosToken}`);
    expect(learned((pair as { rejected: Sample }).rejected)).toEqual([...(await encode(" bad")), eos]);
    await expect(loadPreferences([{ prompt: "A", chosen: "b" }], options)).rejects.toThrow(
      "loadPreferences: row 1: must have prompt, chosen and rejected, got prompt, chosen",
    );
  });
});

describe("files", () => {
  it("JSON lines, CSV with quotes, and an async iterable give the same samples", async () => {
    const rows = [
      { prompt: 'Say "a, b"', completion: "a\nb" },
      { prompt: "x", completion: "y" },
    ];
    const lines = file("a.jsonl", `\ufeff${rows.map((row) => JSON.stringify(row)).join("\n\n")}`);
    const csv = file("a.csv", '\ufeffprompt,completion\r\n"Say ""a, b""","a\nb"\r\n\r\nx,y');
    async function* later() {
      yield* rows;
    }
    const want = (await loadDataset(rows, options)).samples;
    expect(want.length).toBe(2);
    for (const source of [lines, csv, later()]) expect((await loadDataset(source, options)).samples).toEqual(want);
  });

  it("JSON lines end at line feeds alone, wherever the pieces of the file end", async () => {
    const rows = ["one\u2028two\u2029three", "x".repeat(70_000), "y\u0085", "end"].map((text) => ({ text }));
    const path = file("u.jsonl", rows.map((row) => JSON.stringify(row)).join("\r\n"));
    const long = { ...options, maxLength: 100_000 };
    expect((await loadDataset(path, long)).samples).toEqual((await loadDataset(rows, long)).samples);
  });

  it("a plain text is cut into samples that predict each token once", async () => {
    const text = Array.from({ length: 40 }, (_, i) => `Line ${i} of a text.`).join("\n");
    const { samples } = await loadDataset(file("a.txt", text), { ...options, maxLength: 16 });
    const all = [...(await encode(text)), eos];
    expect(samples.flatMap(({ ids }, i) => [...(i === 0 ? ids : ids.subarray(1))])).toEqual(all);
    expect(Math.max(...samples.map(({ ids }) => ids.length))).toBe(16);
  });

  it("a broken line is told with its number and reason, or left out", async () => {
    const path = file("b.jsonl", '{"text":"fine"}\n{"text":\n[1]\n{"other":1}\n{"text":"also"}\n');
    await expect(loadDataset(path, options)).rejects.toThrow(/^loadDataset: b\.jsonl:2: is no JSON: /);
    const { samples, skipped } = await loadDataset(path, { ...options, onBadRow: "skip" });
    expect(samples.length).toBe(2);
    expect(skipped.map(({ place }) => place)).toEqual(["b.jsonl:2", "b.jsonl:3", "b.jsonl:4"]);
    expect(skipped[2]?.reason).toBe("must have text, prompt and completion, or messages, got other");
    const turns = [
      { role: "user", content: "Hi" },
      { role: "asistant", content: "Hello" },
    ];
    await expect(loadDataset([{ messages: turns }], options)).rejects.toThrow(
      /the role of a message must be one of system, .*, got asistant \(did you mean assistant\?\)/,
    );
    const csv = file("b.csv", 'text\nfine\n"a",b\n"open\n');
    const found = await loadDataset(csv, { ...options, onBadRow: "skip" });
    expect(found.skipped).toEqual([
      { place: "b.csv:3", reason: "has 2 cells, where the first line has 1" },
      { place: "b.csv:4", reason: "has a quote that is never closed" },
    ]);
  });

  it("bytes that are not UTF-8 are told with their line, and not learned as other characters", async () => {
    // "é" in Latin-1, a character that is cut off, and half of a pair; U+FFFD itself is a character as any other.
    const bad = [[0xe9], [0xe2, 0x82], [0xed, 0xa0, 0x80]];
    for (const [i, bytes] of bad.entries()) {
      const line = (text: string) => Buffer.from(text);
      const jsonl = [line('{"text":"caf\ufffd\\ud800"}\n{"text":"a'), Buffer.from(bytes), line('"}\r\n{"text":"c"}')];
      const path = file(`u${i}.jsonl`, Buffer.concat(jsonl));
      await expect(loadDataset(path, options)).rejects.toThrow(`loadDataset: u${i}.jsonl:2: is not UTF-8`);
      const { samples, skipped } = await loadDataset(path, { ...options, onBadRow: "skip" });
      expect(skipped).toEqual([{ place: `u${i}.jsonl:2`, reason: "is not UTF-8" }]);
      expect(samples).toEqual((await loadDataset([{ text: "caf\ufffd\ud800" }, { text: "c" }], options)).samples);
      const csv = Buffer.concat([
        line('text,n\nfine,1\n"a\nb'),
        Buffer.from(bytes),
        line('\nc",2\nalso,3\nd'),
        Buffer.from(bytes),
      ]);
      const found = await loadDataset(file(`u${i}.csv`, csv), { ...options, onBadRow: "skip" });
      expect(found.samples).toEqual((await loadDataset([{ text: "fine" }, { text: "also" }], options)).samples);
      expect(found.skipped).toEqual([
        { place: `u${i}.csv:3`, reason: "is not UTF-8" },
        { place: `u${i}.csv:7`, reason: "is not UTF-8" },
      ]);
      const text = file(`u${i}.txt`, Buffer.from(bytes));
      await expect(loadDataset(text, options)).rejects.toThrow(`loadDataset: u${i}.txt: is not UTF-8`);
    }
  });

  it("a sample that is too long is cut, left out or refused", async () => {
    const rows = [{ text: "short" }, { text: "a much longer text that has many more tokens than the others have" }];
    const small = { tokenizer, maxLength: 12 };
    const cut = await loadDataset(rows, small);
    expect([cut.truncated, cut.samples.map(({ ids }) => ids.length <= 12)]).toEqual([1, [true, true]]);
    const left = await loadDataset(rows, { ...small, onTooLong: "skip" });
    expect([left.samples.length, left.skipped[0]?.place]).toEqual([1, "row 2"]);
    expect(left.skipped[0]?.reason).toMatch(/^has \d+ tokens, more than maxLength 12$/);
    await expect(loadDataset(rows, { ...small, onTooLong: "error" })).rejects.toThrow("loadDataset: row 2: has ");
    const prompt = { prompt: rows[1]?.text, completion: "answer" };
    const none = await loadDataset([...rows, prompt], small);
    expect(none.skipped).toEqual([{ place: "row 3", reason: "has no token to learn within the first 12 tokens" }]);
  });

  it("no file, no rows, another ending", async () => {
    await expect(loadDataset(join(folder, "none.jsonl"), options)).rejects.toMatchObject({ code: "ERR_BNB_FILE" });
    await expect(loadDataset([], options)).rejects.toThrow("loadDataset: the data must hold a sample, got none");
    await expect(loadDataset(file("a.xml", ""), options)).rejects.toThrow("must end in .jsonl, .csv, .parquet or .txt");
  });
});

describe("steps", () => {
  it.each([
    [1.1, 11],
    [2.2, 22],
    [2.25, 23],
    [0.07, 1],
    [3, 30],
  ])("%d epochs of 10 samples are %i steps", (numTrainEpochs, steps) => {
    const args = { outputDir: "x", numTrainEpochs, perDeviceTrainBatchSize: 1 };
    expect(new DataOrder(Array(10).fill(3), resolveArguments("test", args), undefined).totalSteps).toBe(steps);
  });
});

describe("order", () => {
  const lengths = Array.from({ length: 103 }, (_, i) => 5 + ((i * 37) % 50));
  const plan = { batchSize: 4, seed: 7, shuffle: true, groupByLength: false, packedTokens: null };
  const sorted = (batches: number[][]) => batches.flat().sort((a, b) => a - b);
  const all = lengths.map((_, i) => i);

  it("each sample once an epoch, another order each epoch, the same for the same seed", () => {
    const first = epochBatches(lengths, 0, plan);
    expect(sorted(first)).toEqual(all);
    expect(first.slice(0, -1).every(({ length }) => length === 4)).toBe(true);
    expect(epochBatches(lengths, 0, plan)).toEqual(first);
    expect(epochBatches(lengths, 1, plan)).not.toEqual(first);
    expect(epochBatches(lengths, 0, { ...plan, seed: 8 })).not.toEqual(first);
    expect(epochBatches(lengths, 3, { ...plan, shuffle: false }).flat()).toEqual(all);
  });

  it("packed batches never hold more tokens than they may, and are nearly full", () => {
    const batches = epochBatches(lengths, 0, { ...plan, packedTokens: 128 });
    expect(sorted(batches)).toEqual(all);
    const sizes = batches.map((batch) => batch.reduce((sum, i) => sum + (lengths[i] as number), 0));
    expect(Math.max(...sizes)).toBeLessThanOrEqual(128);
    expect(sizes.slice(0, -1).every((size) => size > 128 - 55)).toBe(true);
  });

  it("grouped by length, batches spread less than in a random order", () => {
    const spread = (batches: number[][]) =>
      batches.reduce((sum, batch) => {
        const of = batch.map((i) => lengths[i] as number);
        return sum + Math.max(...of) - Math.min(...of);
      }, 0);
    const grouped = epochBatches(lengths, 0, { ...plan, groupByLength: true });
    expect(sorted(grouped)).toEqual(all);
    expect(spread(grouped)).toBeLessThan(spread(epochBatches(lengths, 0, plan)) / 5);
    expect(Math.max(...(grouped[0] as number[]).map((i) => lengths[i] as number))).toBe(Math.max(...lengths));
  });
});
