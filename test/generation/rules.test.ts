// What may not follow, against transformers' processors on its small Llama: greedy texts and the log-probability of each token.
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Next } from "../../src/generation/index.js";
import { Engine } from "../../src/generation/index.js";
import { rulesOf } from "../../src/generation/row-rules.js";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import { camel } from "../helpers/generation.js";
import { fixturePath } from "../helpers/safetensors.js";

interface Case {
  config: Record<string, unknown>;
  rows: { tokens: number[]; min_margin: number | null; log_probabilities_after_processors: number[] }[];
}
const json = JSON.parse(readFileSync(fixturePath("generation/expected.json"), "utf8"));
const prompts = json.prompts as number[][];

describe("greedy texts with rules", () => {
  let model: CausalLM;
  beforeAll(async () => {
    model = await AutoModelForCausalLM.fromPretrained(fixturePath("families/llama-plain/fp32"), { deviceMap: "cpu" });
    model.generationConfig = {};
  });
  afterAll(() => model.dispose());

  const take = async (tokens: AsyncIterable<number>) => {
    const made: number[] = [];
    for await (const token of tokens) made.push(token);
    return made;
  };

  it("without any, are those of transformers", async () => {
    for (const [i, prompt] of prompts.entries()) {
      expect(await take(model.generate(prompt, { maxNewTokens: 24 }))).toEqual(json.greedy_without_eos[i]);
    }
  });

  it.each(json.greedy_with_processors as Case[])("are those of transformers: $config", async ({ config, rows }) => {
    const options = { ...camel(config), maxNewTokens: 24 };
    using engine = new Engine(model, { kvTokens: 256 });
    const together = await Promise.all(prompts.map((prompt) => take(engine.submit(prompt, options))));
    for (const [i, { tokens, min_margin }] of rows.entries()) {
      expect(min_margin ?? 1).toBeGreaterThan(1e-3); // no near tie
      expect(together[i]).toEqual(tokens);
      expect(await take(model.generate(prompts[i] as number[], options))).toEqual(tokens);
      expect(await take(model.generate(prompts[i] as number[], { ...options, promptLookup: true }))).toEqual(tokens);
    }
  });

  it("draw only what a function allows, through bits", async () => {
    const even = Array.from({ length: 48 }, (_, i) => 2 * i);
    const options = { doSample: true, topK: 0, maxNewTokens: 20, seed: 4 };
    const lengths: number[] = [];
    const prefixAllowedTokens = (tokens: readonly number[]) => {
      lengths.push(tokens.length);
      return tokens.length % 2 === 0 ? even : null;
    };
    const [prompt] = prompts as [number[]];
    const made = await take(model.generate(prompt, { ...options, prefixAllowedTokens }));
    expect(lengths).toEqual(made.map((_, i) => prompt.length + i));
    const odd = made.map((id, i) => ((prompt.length + i) % 2 === 0 ? 0 : id % 2));
    expect(made.filter((id, i) => (prompt.length + i) % 2 === 0 && id % 2 === 1)).toEqual([]);
    expect(odd).toContain(1);
  });

  it("take what is added to logits into account", async () => {
    const [prompt] = prompts as [number[]];
    expect(await take(model.generate(prompt, { logitBias: { 5: 100 }, maxNewTokens: 3 }))).toEqual([5, 5, 5]);
    const [first] = await take(model.generate(prompt, { maxNewTokens: 1 }));
    const [other] = await take(
      model.generate(prompt, { logitBias: { [first as number]: -Infinity }, maxNewTokens: 1 }),
    );
    using engine = new Engine(model);
    using branch = engine.open(prompt, { telling: { logprobs: true, best: 2 } });
    const [next] = (await branch.next()) as [Next];
    expect([...next.bestIds]).toEqual([first, other]);
  });

  it("fail where nothing may come, and leave nothing open", async () => {
    const suppressTokens = Array.from({ length: 96 }, (_, i) => i);
    using engine = new Engine(model);
    const others = take(engine.submit(prompts[1] as number[], { maxNewTokens: 3 }));
    await expect(take(engine.submit(prompts[0] as number[], { suppressTokens }))).rejects.toThrow(
      expect.objectContaining({
        code: "ERR_BNB_NONFINITE",
        message:
          "generate: no token can be drawn: the logits must be finite and a token allowed, got NaN, infinity or nothing that is allowed",
      }),
    );
    expect(await others).toEqual((json.greedy_without_eos[1] as number[]).slice(0, 3));
    const broken = () => {
      throw new Error("not today");
    };
    await expect(take(engine.submit([1], { prefixAllowedTokens: broken }))).rejects.toThrow("not today");
    expect(engine.size).toBe(0);
  });

  it.each([
    [{ suppressTokens: [96] }, "generate: a token id in suppressTokens must lie in 0..95, got 96"],
    [{ badWordsIds: [[1, 99]] }, "generate: a token id in badWordsIds must lie in 0..95, got 99"],
    [
      { badWordsIds: [[]] },
      "generate: badWordsIds must be an array of sequences, each a list of token ids that is not empty",
    ],
    [{ logitBias: { 200: 1 } }, "generate: a token id in logitBias must lie in 0..95, got 200"],
    [{ logitBias: { 2: NaN } }, "generate: logitBias must be an object of finite numbers, or -Infinity, by token id"],
    [{ prefixAllowedTokens: () => [-1] }, "generate: a token id in prefixAllowedTokens must lie in 0..95, got -1"],
    [{ prefixAllowedTokens: (() => 3) as never }, "generate: prefixAllowedTokens must return token ids or null"],
  ])("refuse %o", async (options, message) => {
    await expect(take(model.generate([1, 2], options))).rejects.toThrow(
      expect.objectContaining({ code: "ERR_BNB_OPTION", message: expect.stringContaining(message) as string }),
    );
  });
});

describe("rules", () => {
  const none = { ends: [], prompt: 2, vocabSize: 40 };
  const forbidden = (ids: number[], init: Partial<Parameters<typeof rulesOf>[1]>) => {
    const rules = rulesOf("generate", { config: {}, ...none, ...init });
    return [...(rules?.(ids)?.bias?.keys() ?? [])].sort((a, b) => a - b);
  };

  it("are none where nothing was said, or nothing that could matter", () => {
    expect(rulesOf("generate", { config: {}, ...none })).toBeNull();
    expect(rulesOf("generate", { config: { minNewTokens: 3 }, ...none })).toBeNull(); // no end to forbid
    expect(rulesOf("generate", { config: { minLength: 2 }, ...none, ends: [1] })).toBeNull();
    expect(rulesOf("generate", { config: { badWordsIds: [[7]] }, ...none, ends: [7] })).toBeNull();
  });

  it("forbid the end of texts that are too short, with and without their prompt", () => {
    const ends = [5, 6];
    expect(forbidden([1, 2, 3], { config: { minNewTokens: 2 }, ends })).toEqual([5, 6]);
    expect(forbidden([1, 2, 3, 4], { config: { minNewTokens: 2 }, ends })).toEqual([]);
    expect(forbidden([1, 2, 3], { config: { minLength: 4 }, ends })).toEqual([5, 6]);
    expect(forbidden([1, 2, 3, 4], { config: { minLength: 4 }, ends })).toEqual([]);
  });

  it("forbid the first token only", () => {
    expect(forbidden([1, 2], { config: { beginSuppressTokens: [9] } })).toEqual([9]);
    expect(forbidden([1, 2, 3], { config: { beginSuppressTokens: [9] } })).toEqual([]);
  });

  it("forbid sequences that came, of any length", () => {
    expect(forbidden([1, 2, 1, 3, 1], { config: { noRepeatNgramSize: 2 } })).toEqual([2, 3]);
    expect(forbidden([1, 2, 3, 1, 2], { config: { noRepeatNgramSize: 3 } })).toEqual([3]);
    expect(forbidden([4, 8, 4], { config: { noRepeatNgramSize: 1 } })).toEqual([4, 8]);
    expect(forbidden([4], { config: { noRepeatNgramSize: 3 } })).toEqual([]);
  });

  it("forbid bad words where they would be complete", () => {
    const config = { badWordsIds: [[7], [1, 2, 3], [2, 9]] };
    expect(forbidden([1, 2], { config })).toEqual([7, 9]); // [1, 2, 3] is longer than what is there
    expect(forbidden([0, 1, 2], { config })).toEqual([3, 7, 9]);
    expect(forbidden([0, 1, 4], { config })).toEqual([7]);
  });
});
