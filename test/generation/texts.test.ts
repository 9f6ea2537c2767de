// Text in, text out: a checkpoint with its tokenizer, its generation_config.json, conversations, ends and stop strings.
import { execFile } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, describe, expect, it, vi } from "vitest";
import type { GenerateOptions } from "../../src/generation/index.js";
import { generate } from "../../src/generation/index.js";
import { settingsOf } from "../../src/generation/settings.js";
import { AutoTokenizer } from "../../src/hub/index.js";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import { memory } from "../../src/tensor/scope.js";
import { fixturePath } from "../helpers/safetensors.js";

const root = mkdtempSync(join(tmpdir(), "bnb-texts-"));
let count = 0;
/** The small Llama with a tokenizer of its size, and other files in place of its own; null leaves one out. */
function folderWith(files: Record<string, string | object | null> = {}): string {
  const folder = join(root, String(count++));
  cpSync(fixturePath("models/llama/fp32"), folder, { recursive: true });
  for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
    cpSync(fixturePath(`models/tokenizer/${name}`), join(folder, name));
  }
  for (const [name, content] of Object.entries(files)) {
    rmSync(join(folder, name));
    if (content === null) continue;
    writeFileSync(join(folder, name), typeof content === "string" ? content : JSON.stringify(content));
  }
  return folder;
}
const open = (files: Record<string, string | object | null> = {}) =>
  AutoModelForCausalLM.fromPretrained(folderWith(files), { deviceMap: "cpu" });
const model = await open();
const tokenizer = model.tokenizer!;
afterAll(() => {
  model.dispose();
  rmSync(root, { recursive: true });
});

async function take<T>(pieces: AsyncIterable<T>): Promise<T[]> {
  const made: T[] = [];
  for await (const piece of pieces) made.push(piece);
  return made;
}
const greedy: GenerateOptions = { maxNewTokens: 24, eosTokenId: null };
/** Draws with every token, so that bytes of characters come alone. */
const wild: GenerateOptions = { doSample: true, topK: 0, temperature: 3, maxNewTokens: 60, eosTokenId: null };

describe("texts", () => {
  it("go on as the tokens of the text do", async () => {
    const prompt = "Once upon a time";
    const ids = await tokenizer.encode(prompt);
    for (const options of [greedy, { ...wild, seed: 1 }]) {
      const tokens = await take(model.generate(ids, options));
      const pieces = await take(model.generate(prompt, options));
      expect(pieces.join("")).toBe(await tokenizer.decode(tokens, { skipSpecialTokens: true }));
      expect(pieces.filter((piece) => piece === "")).toEqual([]);
      expect(pieces.length).toBeGreaterThan(1);
    }
  });

  it("of a conversation follow its template, up to where the answer begins", async () => {
    const messages = [
      { role: "system", content: "Be brief." },
      { role: "user", content: "Hi" },
    ];
    const text = await tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true });
    const ids = await tokenizer.encode(text, { addSpecialTokens: false });
    const tokens = await take(generate(model, ids, greedy));
    const answer = (await take(generate(model, messages, greedy))).join("");
    expect(answer).toBe(await tokenizer.decode(tokens, { skipSpecialTokens: true }));
  });

  it("end before a stop string, and their tokens with the one that completes it", async () => {
    const prompt = "Once upon a time";
    const whole = (await take(model.generate(prompt, greedy))).join("");
    const tokens = await take(model.generate(await tokenizer.encode(prompt), greedy));
    // A broken character may be mended by the next token.
    const stops = Array.from(whole, (_, at) => whole.slice(at, at + 3)).filter((stop) => !stop.includes("\ufffd"));
    expect(stops.length).toBeGreaterThan(10);
    for (const stop of stops.filter((_, i) => i % 5 === 0)) {
      const options = { ...greedy, stopStrings: ["\u0000 never", stop] };
      expect((await take(model.generate(prompt, options))).join("")).toBe(whole.slice(0, whole.indexOf(stop)));
      const ended = await take(model.generate(await tokenizer.encode(prompt), options));
      expect(ended).toEqual(tokens.slice(0, ended.length));
      expect(await tokenizer.decode(ended)).toContain(stop);
      expect(await tokenizer.decode(ended.slice(0, -1))).not.toContain(stop);
    }
  });

  it("are the same with guesses", async () => {
    const prompt = "one two one two one two one";
    const expected = await take(model.generate(prompt, greedy));
    const guessed = await take(model.generate(prompt, { ...greedy, promptLookup: true }));
    expect(guessed.join("")).toBe(expected.join(""));
  });

  it("that are left early, or aborted, leave nothing behind", async () => {
    await take(model.generate("a", { ...greedy, maxNewTokens: 2 }));
    const before = memory();
    for await (const _ of model.generate("Once upon", greedy)) break;
    const control = new AbortController();
    const aborted = async () => {
      for await (const _ of model.generate("Once upon", { ...greedy, signal: control.signal })) control.abort();
    };
    await expect(aborted()).rejects.toThrow("generate: aborted by its signal");
    expect(memory().tensors).toBe(before.tensors);
    expect(memory().liveBytes).toBe(before.liveBytes);
  });
});

describe("generation_config.json", () => {
  it("says what callers do not", async () => {
    const ids = await tokenizer.encode("Once upon a time");
    const whole = await take(model.generate(ids, greedy));
    const end = whole[5] as number;
    const first = whole.indexOf(end);
    using other = await open({ "generation_config.json": { eos_token_id: [end, 500], max_new_tokens: 7 } });
    expect(other.generationConfig).toEqual({ eosTokenId: [end, 500], maxNewTokens: 7 });
    expect(await take(other.generate(ids))).toEqual(whole.slice(0, first + 1));
    expect(await take(other.generate(ids, { eosTokenId: null }))).toEqual(whole.slice(0, 7));
    expect(await take(other.generate(ids, { eosTokenId: null, maxLength: ids.length + 3 }))).toEqual(whole.slice(0, 3));
    // The end is a token, and no text.
    const text = (await take(other.generate("Once upon a time"))).join("");
    expect(text).toBe(await other.tokenizer?.decode(whole.slice(0, first)));
    other.generationConfig = { ...other.generationConfig, eosTokenId: null };
    expect(await take(other.generate(ids))).toEqual(whole.slice(0, 7));
  });

  it("may want draws, which a caller may not", async () => {
    const ids = await tokenizer.encode("Once");
    using other = await open({
      "generation_config.json": { do_sample: true, temperature: 3, top_k: 0, top_p: 0.95, eos_token_id: null },
    });
    const options = { doSample: true, temperature: 3, topK: 0, topP: 0.95, eosTokenId: null, maxNewTokens: 12 };
    const drawn = await take(model.generate(ids, { ...options, seed: 5 }));
    const said = { eosTokenId: null, maxNewTokens: 12 };
    expect(await take(other.generate(ids, { ...said, seed: 5 }))).toEqual(drawn);
    expect(await take(other.generate(ids, { ...said, doSample: false }))).toEqual(
      await take(model.generate(ids, { ...greedy, maxNewTokens: 12 })),
    );
    expect(drawn).not.toEqual(await take(model.generate(ids, { ...greedy, maxNewTokens: 12 })));
  });

  it("may be missing: then config.json says where texts end", async () => {
    using other = await open({ "generation_config.json": null });
    expect(other.generationConfig).toEqual({ eosTokenId: 2 });
    expect(model.generationConfig).toEqual({ eosTokenId: 2 });
  });

  it("may say what means nothing, or no end", async () => {
    using other = await open({
      "generation_config.json": {
        ...{ bos_token_id: 1, pad_token_id: null, max_length: 20, temperature: null, num_beams: 1, guidance_scale: 1 },
        ...{ eos_token_id: -1, transformers_version: "4.0", cache_implementation: "hybrid", some_key: 3 },
      },
    });
    expect(other.generationConfig).toEqual({ numBeams: 1 });
  });

  it("warns once of what it would mean in transformers", async () => {
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    const files = { "generation_config.json": { penalty_alpha: 0.6, forced_bos_token_id: 3, diversity_penalty: 0 } };
    (await open(files)).dispose();
    (await open(files)).dispose();
    expect(warn.mock.calls.map(([message]) => message)).toEqual([
      "generation_config.json: forced_bos_token_id, penalty_alpha would change texts in transformers, and does nothing here",
    ]);
    warn.mockRestore();
  });

  it.each([
    ["{", "generation_config.json: is not JSON"],
    ["[]", "generation_config.json: must hold an object"],
    [{ temperature: "hot" }, 'generation_config.json: temperature must be a finite number of at least 0, got "hot"'],
    [{ top_p: 2 }, "generation_config.json: top_p must be above 0 and at most 1, got 2"],
  ])("is refused where it cannot be: %o", async (content, message) => {
    const before = memory().tensors;
    await expect(open({ "generation_config.json": content })).rejects.toThrow(
      expect.objectContaining({ code: "ERR_BNB_FORMAT", message: expect.stringContaining(message) as string }),
    );
    expect(memory().tensors).toBe(before);
  });
});

describe("tokenizers", () => {
  it("are none without tokenizer.json; then ids are taken and texts are not, until one is set", async () => {
    using bare = await open({ "tokenizer.json": null });
    expect(bare.tokenizer).toBeNull();
    await expect(take(bare.generate("Hi"))).rejects.toThrow(
      expect.objectContaining({
        code: "ERR_BNB_ARGUMENT",
        message:
          "generate: texts and messages need a tokenizer, got a model without one: its folder had no tokenizer.json; set model.tokenizer",
      }),
    );
    await expect(take(bare.generate([1], { stopStrings: "." }))).rejects.toThrow(
      'generate: stopStrings must come with a model that has a tokenizer, got "."',
    );
    expect(await take(bare.generate([1, 2], { ...greedy, stopStrings: [], maxNewTokens: 2 }))).toHaveLength(2);
    bare.tokenizer = tokenizer;
    expect((await take(bare.generate("Hi", greedy))).join("")).not.toBe("");
  });

  it("that were loaded end with the model; those that were set do not", async () => {
    const other = await open();
    const own = other.tokenizer;
    other.dispose();
    await expect(own?.encode("a")).rejects.toThrow("Tokenizer: it was disposed");
    const mine = await AutoTokenizer.fromPretrained(fixturePath("models/tokenizer"));
    const third = await open();
    third.tokenizer = mine;
    third.dispose();
    expect((await mine.encode("a")).length).toBeGreaterThan(0);
    mine.dispose();
  });

  it("that cannot be used leave a model that computes, with a warning", async () => {
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    using other = await open({ "tokenizer.json": "{}" });
    expect(other.tokenizer).toBeNull();
    expect(String(warn.mock.calls[0]?.[0])).toMatch(/^fromPretrained: model\.tokenizer is null: tokenizer\.json/);
    warn.mockRestore();
    expect(await take(other.generate([1], { ...greedy, maxNewTokens: 1 }))).toHaveLength(1);
  });
});

describe("settings", () => {
  it("become what transformers would draw with", () => {
    const drawn = (options: GenerateOptions) => settingsOf("generate", model, options).draw;
    const none = { repetitionPenalty: 1, presencePenalty: 0, frequencyPenalty: 0 };
    const all = { temperature: 1, topK: 50, topP: 1, minP: 0, typicalP: 1, seed: 0 };
    expect(drawn({})).toEqual(none);
    expect(drawn({ doSample: true })).toEqual({ ...all, ...none });
    const said = { temperature: 0.7, topK: 5, topP: 0.9, minP: 0.1, typicalP: 0.8, seed: 3, repetitionPenalty: 1.2 };
    expect(drawn({ doSample: true, ...said })).toEqual({ ...none, ...said });
    // What changes nothing may be said of a greedy text.
    expect(drawn({ temperature: 0, topK: 0, topP: 1, minP: 0, typicalP: 1 })).toEqual(none);
  });

  it("of a caller replace those of the model that do not go with them", () => {
    const before = model.generationConfig;
    model.generationConfig = { doSample: true, temperature: 0.6, topP: 0.9, maxLength: 100, eosTokenId: [2, 3, 2] };
    const { config, ends } = settingsOf("generate", model, { numBeams: 3, maxNewTokens: 4 });
    expect(config).toEqual({ numBeams: 3, maxNewTokens: 4, eosTokenId: [2, 3, 2] });
    expect(ends).toEqual([2, 3]);
    model.generationConfig = { numBeams: 3, lengthPenalty: 2, maxNewTokens: 9 };
    expect(settingsOf("generate", model, { doSample: true, maxLength: 50 }).config).toEqual({
      doSample: true,
      maxLength: 50,
    });
    model.generationConfig = before;
  });
});

describe("settings that contradict themselves are refused", () => {
  it.each([
    [{ temperature: 0.7 }, "generate: temperature must come with doSample: true, got 0.7"],
    [{ doSample: false, topP: 0.9 }, "generate: topP must come with doSample: true, got 0.9"],
    [{ lengthPenalty: 2 }, "generate: lengthPenalty must come with numBeams above 1, got 2"],
    [{ doSample: true, numBeams: 2 }, "generate: numBeams must be 1 where tokens are drawn (doSample: true), got 2"],
    [{ numBeams: 2, numReturnSequences: 3 }, "generate: numReturnSequences must be at most numBeams, 2, got 3"],
    [
      { numReturnSequences: 2 },
      "generate: numReturnSequences must be 1 for greedy texts, which are all the same (doSample: true draws), got 2",
    ],
    [
      { maxNewTokens: 4, maxLength: 9 },
      "generate: maxNewTokens and maxLength bound the same length: give one of them, got [4, 9]",
    ],
    [{ maxNewTokens: 4, minNewTokens: 5 }, "generate: minNewTokens must be at most maxNewTokens, 4, got 5"],
    [{ maxLength: 4, minLength: 5 }, "generate: minLength must be at most maxLength, 4, got 5"],
    [
      { maxLength: 2 },
      "generate: maxLength must be above the 2 tokens of the prompt, got 2; maxNewTokens does not count them",
    ],
    [
      { numBeams: 4 },
      "generate: options must be those of one text that comes piece by piece (model.complete takes the others), got { numBeams: 4 }",
    ],
    [{ stop: [2] }, "got stop (did you mean eosTokenId?)"],
    [{ stopStrings: [""] }, "generate: stopStrings must be a text that is not empty or an array of texts"],
    [{ eosTokenId: -1 }, "generate: eosTokenId must be an integer of at least 0 or an array of token ids"],
  ])("%o", async (options, message) => {
    await expect(take(model.generate([1, 2], options as GenerateOptions))).rejects.toThrow(
      expect.objectContaining({ code: "ERR_BNB_OPTION", message: expect.stringContaining(message) as string }),
    );
  });

  it("also where the model says so", async () => {
    using other = await open({ "generation_config.json": { num_beams: 3 } });
    await expect(take(other.generate([1]))).rejects.toThrow("got { numBeams: 3 }");
    other.generationConfig = { made_up: 1 } as object;
    await expect(take(other.generate([1]))).rejects.toThrow("generate: model.generationConfig: options must be among");
  });
});

it("the fixture's model and tokenizer are of one size", () => {
  const { vocab_size } = JSON.parse(readFileSync(fixturePath("models/llama/fp32/config.json"), "utf8"));
  expect(tokenizer.vocabSize).toBe(vocab_size);
});

it("a program ends though neither its model nor the tokenizer was disposed", async () => {
  const code = `import { AutoModelForCausalLM } from "bitsandbytes-node";
    const model = await AutoModelForCausalLM.fromPretrained(${JSON.stringify(folderWith())});
    for await (const piece of model.generate("Hi", { maxNewTokens: 3 })) if (!piece) throw piece;
    console.log("the end");`;
  const args = ["--input-type=module", "--eval", code];
  const { stdout } = await promisify(execFile)(process.execPath, args, { timeout: 30_000 });
  expect(stdout).toBe("the end\n");
});
