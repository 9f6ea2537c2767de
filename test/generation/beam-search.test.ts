// Beam search against transformers on its small Llama: sequences, their order and their scores.
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { TextOptions } from "../../src/generation/index.js";
import { beamSearch, Engine, generate } from "../../src/generation/index.js";
import { LlamaConfig, LlamaForCausalLM } from "../../src/models/index.js";
import { fromBytes } from "../../src/tensor/create.js";
import { camel } from "../helpers/generation.js";
import { fixturePath, readSafetensors } from "../helpers/safetensors.js";

const json = JSON.parse(readFileSync(fixturePath("generation/expected.json"), "utf8"));
const folder = "families/llama-plain/fp32";

// The order of beams is a matter of the host; what devices compute is tested elsewhere.
describe("beamSearch", () => {
  let model: LlamaForCausalLM;
  beforeAll(() => {
    const config = LlamaConfig.fromJSON(JSON.parse(readFileSync(fixturePath(`${folder}/config.json`), "utf8")));
    model = new LlamaForCausalLM(config, { device: "cpu" }).eval();
    const tensors = [...readSafetensors(`${folder}/model.safetensors`)].map(
      ([name, { shape, bytes }]) => [name, fromBytes(bytes, { dtype: "float32", shape, device: "cpu" })] as const,
    );
    model.loadStateDict(new Map(tensors));
    for (const [, tensor] of tensors) tensor.dispose();
  });
  afterAll(() => model.dispose());

  const optionsOf = (config: Record<string, unknown>): TextOptions => ({
    ...camel(config),
    eosTokenId: json.eos_token_id as number,
    maxNewTokens: json.max_new_tokens as number,
  });
  const configs = json.beam_search as { config: Record<string, unknown>; sequences: unknown[] }[];

  it.each(configs)("finds what transformers finds: $config", async ({ config, sequences }) => {
    using engine = new Engine(model, { kvTokens: 1024 });
    const found = await Promise.all(
      (json.prompts as number[][]).map((prompt) => beamSearch(engine, prompt, optionsOf(config))),
    );
    found.forEach((beams, i) => {
      const expected = sequences[i] as { tokens: number[]; score: number }[];
      expect(beams.map(({ tokens }) => tokens)).toEqual(expected.map(({ tokens }) => tokens));
      beams.forEach(({ score, tokens, finishReason }, b) => {
        expect(score).toBeCloseTo(expected[b]?.score as number, 4);
        expect(finishReason).toBe(tokens.at(-1) === json.eos_token_id ? "stop" : "length");
      });
    });
    expect(engine.size).toBe(0);
    expect(engine.freePages).toBe(64);
  });

  it("finds the same with so few pages that beams must go and come back", async () => {
    const { config, sequences } = configs[0] as (typeof configs)[0];
    using engine = new Engine(model, { kvTokens: 64, maxLength: 40 });
    const prompt = json.prompts[0] as number[];
    const beams = await beamSearch(engine, prompt, optionsOf(config));
    expect(beams.map(({ tokens }) => tokens)).toEqual(
      (sequences[0] as { tokens: number[] }[]).map(({ tokens }) => tokens),
    );
  });

  it("of one beam is greedy", async () => {
    using engine = new Engine(model, { kvTokens: 256 });
    for (const prompt of json.prompts as number[][]) {
      const greedy: number[] = [];
      for await (const token of generate(model, prompt, { maxNewTokens: 8 })) greedy.push(token);
      const [beam] = await beamSearch(engine, prompt, { numBeams: 1, maxNewTokens: 8 });
      expect(beam?.tokens).toEqual(greedy);
    }
  });

  it("finds the same by all log-probabilities as by the likeliest that the kernel tells", async () => {
    using engine = new Engine(model, { kvTokens: 1024 });
    const options = { ...optionsOf((configs[0] as (typeof configs)[0]).config), numReturnSequences: 4 };
    for (const prompt of json.prompts as number[][]) {
      const told = await beamSearch(engine, prompt, options);
      // A rule that changes nothing.
      const all = await beamSearch(engine, prompt, { ...options, logitBias: { 3: 0 } });
      expect(all.map(({ tokens }) => tokens)).toEqual(told.map(({ tokens }) => tokens));
      all.forEach(({ score }, i) => {
        expect(score).toBeCloseTo(told[i]?.score as number, 5);
      });
    }
  });

  it("of more beams than the kernel tells apart is no worse", async () => {
    using engine = new Engine(model, { kvTokens: 4096 });
    const options = { ...optionsOf({}), lengthPenalty: 0 };
    for (const prompt of json.prompts as number[][]) {
      const [few] = await beamSearch(engine, prompt, { ...options, numBeams: 2 });
      const [many] = await beamSearch(engine, prompt, { ...options, numBeams: 16 });
      expect(many?.score).toBeGreaterThanOrEqual((few?.score as number) - 1e-4);
    }
  });

  it("refuses more results than beams, and what is no matter of beams", async () => {
    using engine = new Engine(model);
    await expect(beamSearch(engine, [1], { numBeams: 2, numReturnSequences: 3 })).rejects.toThrow(
      "beamSearch: numReturnSequences must be at most numBeams, 2, got 3",
    );
    await expect(beamSearch(engine, [1], { doSample: true })).rejects.toThrow(
      "beamSearch: numBeams must be 1 where tokens are drawn (doSample: true), got 4",
    );
    const signal = AbortSignal.abort();
    await expect(beamSearch(engine, [1], { signal })).rejects.toThrow("beamSearch: aborted by its signal");
    expect(engine.size).toBe(0);
  });
});
