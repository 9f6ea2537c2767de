// Beam search against transformers on its small Llama: sequences, their order and their scores.
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { BeamOptions } from "../../src/generation/index.js";
import { beamSearch, Engine, generate } from "../../src/generation/index.js";
import { LlamaConfig, LlamaForCausalLM } from "../../src/models/index.js";
import { fromBytes } from "../../src/tensor/create.js";
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

  const optionsOf = (config: Record<string, unknown>): BeamOptions => ({
    numBeams: config["num_beams"] as number,
    lengthPenalty: config["length_penalty"] as number,
    earlyStopping: config["early_stopping"] as boolean | "never",
    numReturnSequences: config["num_return_sequences"] as number,
    stop: [json.eos_token_id as number],
    maxNewTokens: json.max_new_tokens as number,
  });
  const plain = (json.beam_search as { config: Record<string, unknown>; sequences: unknown[] }[]).filter(({ config }) =>
    Object.keys(config).every((key) => /^(num_beams|length_penalty|early_stopping|num_return_sequences)$/.test(key)),
  );

  it.each(plain)("finds what transformers finds: $config", async ({ config, sequences }) => {
    using engine = new Engine(model, { kvTokens: 1024 });
    const found = await Promise.all(
      (json.prompts as number[][]).map((prompt) => beamSearch(engine, prompt, optionsOf(config))),
    );
    found.forEach((beams, i) => {
      const expected = sequences[i] as { tokens: number[]; score: number }[];
      expect(beams.map(({ tokens }) => tokens)).toEqual(expected.map(({ tokens }) => tokens));
      beams.forEach(({ score }, b) => {
        expect(score).toBeCloseTo(expected[b]?.score as number, 4);
      });
    });
    expect(engine.size).toBe(0);
    expect(engine.freePages).toBe(64);
  });

  it("finds the same with so few pages that beams must go and come back", async () => {
    const { config, sequences } = plain[0] as (typeof plain)[0];
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

  it("continues greedily as transformers does", async () => {
    for (const [i, prompt] of (json.prompts as number[][]).entries()) {
      const made: number[] = [];
      for await (const token of generate(model, prompt, { maxNewTokens: 24 })) made.push(token);
      expect(made).toEqual(json.greedy_without_eos[i]);
    }
  });

  it("penalizes repetition as transformers does", async () => {
    const known = (
      json.greedy_with_processors as { config: Record<string, number>; rows: { tokens: number[] }[] }[]
    ).find(({ config }) => Object.keys(config).join() === "repetition_penalty");
    for (const [i, prompt] of (json.prompts as number[][]).entries()) {
      const expected = known?.rows[i]?.tokens as number[];
      const made: number[] = [];
      const options = {
        maxNewTokens: expected.length,
        repetitionPenalty: known?.config["repetition_penalty"] as number,
        stop: [json.eos_token_id as number],
      };
      for await (const token of generate(model, prompt, options)) made.push(token);
      expect(made).toEqual(expected.slice(0, made.length));
      expect(made.length).toBeGreaterThan(0);
    }
  });

  it("refuses more beams than it can tell apart, and more results than beams", async () => {
    using engine = new Engine(model);
    await expect(beamSearch(engine, [1], { numBeams: 11 })).rejects.toThrow(
      "beamSearch: numBeams * (1 + ids in stop, at least 1) must be at most 20, got 22",
    );
    await expect(beamSearch(engine, [1], { numBeams: 2, numReturnSequences: 3 })).rejects.toThrow(
      "beamSearch: numReturnSequences must be at most numBeams, 2, got 3",
    );
  });
});
