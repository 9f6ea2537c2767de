// Whole texts in one engine: each is what it is alone, draws, beams and their log-probabilities against transformers.
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { CompleteOptions, GenerateOptions } from "../../src/generation/index.js";
import { complete } from "../../src/generation/index.js";
import type { Tokenizer } from "../../src/hub/index.js";
import { AutoTokenizer } from "../../src/hub/index.js";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM, LlamaForCausalLM } from "../../src/models/index.js";
import { Generator, manualSeed } from "../../src/ops/index.js";
import { memory } from "../../src/tensor/scope.js";
import { camel } from "../helpers/generation.js";
import { fixturePath } from "../helpers/safetensors.js";

const json = JSON.parse(readFileSync(fixturePath("generation/expected.json"), "utf8"));
const prompts = json.prompts as number[][];

async function take<T>(pieces: AsyncIterable<T>): Promise<T[]> {
  const made: T[] = [];
  for await (const piece of pieces) made.push(piece);
  return made;
}

describe("token ids", () => {
  let model: CausalLM;
  beforeAll(async () => {
    model = await AutoModelForCausalLM.fromPretrained(fixturePath("families/llama-plain/fp32"), { deviceMap: "cpu" });
    model.generationConfig = {};
  });
  afterAll(() => model.dispose());

  it("are continued as transformers does, in a batch and alone", async () => {
    const options = { maxNewTokens: 24 };
    const batch = await complete(model, prompts, options);
    expect(batch.map(([one]) => [...one!.tokens])).toEqual(json.greedy_without_eos);
    expect(batch.map(({ length }) => length)).toEqual([1, 1, 1]);
    for (const [i, prompt] of prompts.entries()) {
      const [one, ...others] = await model.complete(prompt, options);
      expect(others).toEqual([]);
      expect([...one!.tokens]).toEqual(json.greedy_without_eos[i]);
      expect(one).toEqual({ text: null, tokens: one!.tokens, finishReason: "length" });
    }
  });

  it("may be more than fit into one call of a function", async () => {
    const many = Array.from({ length: 150_000 }, () => [1]);
    const made = await complete(model, many, { maxNewTokens: 0 });
    expect(made).toHaveLength(150_000);
    expect(made.at(-1)).toEqual([{ text: null, tokens: new Int32Array(0), finishReason: "length" }]);
  });

  it.each(json.greedy_with_processors as { config: object; rows: { tokens: number[] }[] }[])(
    "have the log-probabilities of transformers, after its processors: $config",
    async ({ config, rows }) => {
      const options = { ...camel({ ...config }), maxNewTokens: 24, logprobs: 3 } as CompleteOptions;
      const batch = await model.complete(prompts, options);
      batch.forEach(([one], i) => {
        const { tokens, log_probabilities_after_processors: expected } = rows[i] as never as Record<string, number[]>;
        expect([...one!.tokens]).toEqual(tokens);
        const ended = one!.tokens.length < 24;
        expect(one!.finishReason).toBe(ended ? "stop" : "length");
        expect(one!.logprobs).toHaveLength(tokens!.length);
        one!.logprobs!.forEach(({ id, logprob, best }, t) => {
          expect(id).toBe(tokens![t]);
          expect(Math.abs(logprob - (expected![t] as number))).toBeLessThan(1e-4);
          expect(best).toHaveLength(3);
          expect(best[0]).toEqual({ id, logprob }); // greedy takes the likeliest
          expect(best[1]!.logprob).toBeLessThan(logprob);
        });
      });
    },
  );

  it.each(json.beam_search as { config: Record<string, unknown>; sequences: never[][] }[])(
    "of beams are those of transformers, in a batch: $config",
    async ({ config, sequences }) => {
      const options = { ...camel(config), eosTokenId: json.eos_token_id, maxNewTokens: json.max_new_tokens };
      const found = await model.complete(prompts, options as CompleteOptions);
      found.forEach((beams, i) => {
        const expected = sequences[i] as { tokens: number[]; score: number }[];
        expect(beams.map(({ tokens }) => [...tokens])).toEqual(expected.map(({ tokens }) => tokens));
        beams.forEach(({ score, text, finishReason, tokens }, b) => {
          expect(score).toBeCloseTo(expected[b]!.score, 4);
          expect(text).toBeNull();
          expect(finishReason).toBe(tokens.at(-1) === json.eos_token_id ? "stop" : "length");
        });
      });
    },
  );

  it("are drawn several times, each as with its own seed", async () => {
    const draw: GenerateOptions = { doSample: true, topK: 0, temperature: 1.2, maxNewTokens: 12 };
    const batch = await model.complete(prompts, { ...draw, seed: 7, numReturnSequences: 3 });
    const all = new Set<string>();
    for (const [i, texts] of batch.entries()) {
      expect(texts).toHaveLength(3);
      for (const [n, { tokens }] of texts.entries()) {
        all.add(tokens.join());
        expect([...tokens]).toEqual(await take(model.generate(prompts[i]!, { ...draw, seed: 7 + n })));
      }
    }
    expect(all.size).toBe(9);
  });

  it("have the same numbers to the bit in a deterministic batch as alone", async () => {
    const options = { deterministic: true, logprobs: 4, maxNewTokens: 8 };
    const batch = await model.complete(prompts, options);
    for (const [i, prompt] of prompts.entries()) expect(batch[i]).toEqual(await model.complete(prompt, options));
  });

  it("need no more room than is given: some wait", async () => {
    const many = Array.from({ length: 9 }, (_, i) => prompts[i % 3]!);
    const found = await model.complete(many, { maxNewTokens: 24, kvTokens: 64 });
    found.forEach(([one], i) => {
      expect([...one!.tokens]).toEqual(json.greedy_without_eos[i % 3]);
    });
  });

  it.each([1, 16, 17, 40])("end where no more has room: %i tokens", async (kvTokens) => {
    const prompt = [1, 2, 3];
    const options = { maxNewTokens: 64, eosTokenId: null, kvTokens: 1 << 12 };
    if (kvTokens < prompt.length) {
      // A page is the least there is.
      expect((await model.complete([5], { ...options, kvTokens }))[0]!.tokens).toHaveLength(16);
      return;
    }
    const room = Math.ceil(kvTokens / 16) * 16;
    const [whole] = await model.complete(prompt, options);
    const [short] = await model.complete(prompt, { ...options, kvTokens });
    // The last one needs no room: nothing follows it.
    const most = room + 1 - prompt.length;
    expect([...short!.tokens]).toEqual([...whole!.tokens].slice(0, most));
    expect([whole!.tokens.length, short!.finishReason]).toEqual([64, "length"]);
    const beams = { ...options, numBeams: 2 };
    const [best] = await model.complete(prompt, { ...beams, kvTokens: 2 * room });
    expect(best!.tokens.length).toBeLessThanOrEqual(2 * room + 1 - prompt.length);
  });

  it("are none of no prompts, and no new ones where none are wanted", async () => {
    expect(await model.complete([])).toEqual([]);
    const options = { maxNewTokens: 0 };
    const none = { text: null, tokens: new Int32Array(0), finishReason: "length" };
    expect(await model.complete([1, 2], options)).toEqual([none]);
    expect(await model.complete([1, 2], { ...options, numBeams: 2 })).toEqual([]);
  });

  it("may be many with one signal", async () => {
    const warned: string[] = [];
    const listen = (warning: Error) => warned.push(warning.message);
    process.on("warning", listen);
    const control = new AbortController();
    const many = Array.from({ length: 12 }, () => [1, 2]);
    expect(await model.complete(many, { maxNewTokens: 3, signal: control.signal })).toHaveLength(12);
    await new Promise((resolve) => setImmediate(resolve));
    process.off("warning", listen);
    expect(warned).toEqual([]);
  });

  it("leave nothing behind, also when one of them fails or all are aborted", async () => {
    await model.complete([1], { maxNewTokens: 2 });
    const before = memory();
    const control = new AbortController();
    let tokens = 0;
    const abortAtTen = (): null => {
      if (++tokens === 10) control.abort("enough");
      return null;
    };
    const aborted = { maxNewTokens: 60, signal: control.signal, prefixAllowedTokens: abortAtTen };
    await expect(model.complete(prompts, aborted)).rejects.toThrow(
      expect.objectContaining({ code: "ERR_BNB_ABORTED", cause: "enough" }),
    );
    await expect(model.complete(prompts, { signal: AbortSignal.abort(), numBeams: 3 })).rejects.toThrow(
      "complete: aborted by its signal",
    );
    let calls = 0;
    const prefixAllowedTokens = () => (calls++ < 5 ? null : []);
    await expect(model.complete(prompts, { prefixAllowedTokens })).rejects.toThrow("complete: no token can be drawn");
    expect(memory().tensors).toBe(before.tensors);
    expect(memory().liveBytes).toBe(before.liveBytes);
  });

  it.each([
    [[1], { logprobs: 21 }, "complete: logprobs must be an integer from 0 to 20, got 21"],
    [[1], { logprobs: 1, numBeams: 2 }, "complete: logprobs must come without beams, got numBeams: 2"],
    [[1], { kvTokens: 0 }, "complete: kvTokens must be an integer from 1 to 2147483647, got 0"],
    [[1], { numReturnSequences: 2 }, "complete: numReturnSequences must be 1 for greedy texts"],
    [[[1], [99]], {}, "complete: a token id must lie in 0..95, got 99"],
    [[[1], []], {}, "complete: the prompt must have between 1 and 256 tokens, got 0"],
    [[[1], [[2]]], {}, "complete: prompt must be one text, or the messages or token ids of one, got [[Array]]"],
    [["text"], {}, "complete: texts and messages need a tokenizer, got a model without one"],
    [3, {}, "complete: prompt must be a text, messages, or an array or TypedArray of token ids"],
  ])("refuse %o with %o", async (input, options, message) => {
    await expect(model.complete(input as number[], options)).rejects.toThrow(message);
  });
});

describe("texts", () => {
  let model: CausalLM;
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    model = await AutoModelForCausalLM.fromPretrained(fixturePath("models/llama/fp32"), { deviceMap: "cpu" });
    tokenizer = await AutoTokenizer.fromPretrained(fixturePath("models/tokenizer"));
    model.tokenizer = tokenizer;
  });
  afterAll(() => {
    model.dispose();
    tokenizer.dispose();
  });
  const options: CompleteOptions = { maxNewTokens: 10, eosTokenId: null };

  it("are what their pieces are, of every kind of prompt in one list", async () => {
    const chat = [{ role: "user", content: "Hi" }];
    const ids = await tokenizer.encode("to be or not");
    const found = await model.complete(["Once upon a time", chat, ids], options);
    const expected = [
      await take(model.generate("Once upon a time", options)),
      await take(model.generate(chat, options)),
    ];
    expect(found.slice(0, 2).map(([one]) => one!.text)).toEqual(expected.map((pieces) => pieces.join("")));
    const tokens = await take(model.generate(ids, options));
    expect(found[2]).toEqual([
      {
        text: await tokenizer.decode(tokens, { skipSpecialTokens: true }),
        tokens: Int32Array.from(tokens),
        finishReason: "length",
      },
    ]);
    expect((await model.complete(chat, options))[0]!.text).toBe(expected[1]!.join(""));
  });

  it("end before their end and stop strings, which are among the tokens", async () => {
    const [whole] = await model.complete("Once upon", options);
    const end = whole!.tokens[4]!;
    const at = whole!.tokens.indexOf(end);
    const [ended] = await model.complete("Once upon", { ...options, eosTokenId: [end] });
    expect(ended).toEqual({
      text: await tokenizer.decode(whole!.tokens.subarray(0, at), { skipSpecialTokens: true }),
      tokens: whole!.tokens.slice(0, at + 1),
      finishReason: "stop",
    });
    const stop = Array.from(whole!.text!, (_, i) => whole!.text!.slice(i, i + 2)).find(
      (two) => !two.includes("\ufffd"),
    )!;
    const [stopped] = await model.complete("Once upon", { ...options, stopStrings: stop });
    expect(stopped!.text).toBe(whole!.text!.slice(0, whole!.text!.indexOf(stop)));
    expect(stopped!.finishReason).toBe("stop");
    expect(stopped!.tokens).toEqual(whole!.tokens.slice(0, stopped!.tokens.length));
    expect(stopped!.tokens.length).toBeLessThanOrEqual(whole!.tokens.length);
  });

  it("of beams have their texts, too", async () => {
    const beams = await model.complete("Once upon", { ...options, numBeams: 3, numReturnSequences: 2 });
    expect(beams).toHaveLength(2);
    for (const { text, tokens } of beams) {
      expect(text).toBe(await tokenizer.decode(tokens, { skipSpecialTokens: true }));
    }
    expect(beams[0]!.score).toBeGreaterThan(beams[1]!.score!);
    await expect(model.complete("a", { numBeams: 2, stopStrings: "x" })).rejects.toThrow(
      "complete: stopStrings must come without beams, got numBeams: 2",
    );
  });
});

describe("without a seed", () => {
  it("draws anew at each call, and the same again after manualSeed", async () => {
    const model = new LlamaForCausalLM(
      {
        vocabSize: 61,
        hiddenSize: 32,
        intermediateSize: 48,
        numHiddenLayers: 1,
        numAttentionHeads: 4,
        maxPositionEmbeddings: 80,
      },
      { generator: new Generator(5) },
    ).eval();
    const texts = async (): Promise<number[][]> => {
      manualSeed(3);
      const options = { doSample: true, temperature: 5, maxNewTokens: 16 };
      const all = [await model.complete([1, 2], options), await model.complete([1, 2], options)];
      return all.map(([text]) => [...text!.tokens]);
    };
    const [first, second] = await texts();
    expect(first).not.toEqual(second);
    expect(await texts()).toEqual([first, second]);
    model.dispose();
  });
});
