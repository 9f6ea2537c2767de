// Every family against transformers: the logits of whole prompts, and the greedy texts of the engine, with a config.json as
// transformers 5 writes it and as checkpoints on the hub have it.
import { cpSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import type { CausalLM } from "../../src/index.js";
import { AutoModelForCausalLM, generate, memory, savePretrained, tensor, tidy } from "../../src/index.js";
import { fixturePath, readSafetensors, toNumbers } from "../helpers/safetensors.js";

const root = mkdtempSync(join(tmpdir(), "bnb-families-"));
afterAll(() => rmSync(root, { recursive: true }));

const names = [
  ...[
    "llama-plain",
    "llama-linear",
    "llama-dynamic-ntk",
    "llama-yarn",
    "llama31",
    "mistral-window",
    "mixtral",
    "qwen3",
  ],
  ...["qwen3-moe", "smollm3", "gemma2", "gemma3-text", "phi3-longrope", "olmo2", "granite", "gpt2", "gpt-neox", "opt"],
  ...["falcon", "falcon-alibi", "gemma", "qwen2", "gemma3"],
];

interface Expected {
  prompts: { margins: number[] }[];
}

describe.each(names)("%s", (name) => {
  const expected = readSafetensors(`families/${name}/expected.safetensors`);
  const { prompts } = JSON.parse(readFileSync(fixturePath(`families/${name}/expected.json`), "utf8")) as Expected;
  const folder = fixturePath(`families/${name}/fp32`);
  const older = join(root, name);
  cpSync(folder, older, { recursive: true });
  cpSync(fixturePath(`families/${name}/config_transformers4.json`), join(older, "config.json"));
  const idsOf = (i: number): Int32Array => Int32Array.from(toNumbers(expected.get(`input_ids.${i}`)!));

  it.each([
    ["as transformers 5 describes it", folder],
    ["as checkpoints on the hub do", older],
  ])("%s, has the logits of transformers", async (_, path) => {
    const before = memory().tensors;
    const model = await AutoModelForCausalLM.fromPretrained(path);
    for (const i of [0, 1, 2]) {
      const want = toNumbers(expected.get(`logits.${i}`)!);
      const largest = want.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const got = logitsOf(model, idsOf(i));
      expect(got).toHaveLength(want.length);
      const apart = want.reduce((most, value, at) => Math.max(most, Math.abs(value - got[at]!)), 0);
      expect(apart / largest, `prompt ${i}`).toBeLessThan(1e-4);
    }
    model.dispose();
    expect(memory().tensors).toBe(before);
  });

  it("continues prompts as transformers does, alone and in a batch", async () => {
    const model = await AutoModelForCausalLM.fromPretrained(folder);
    const wanted = [0, 1, 2].map((i) => [...toNumbers(expected.get(`generated.${i}`)!)]);
    const maxNewTokens = Math.max(...wanted.map(({ length }) => length));
    const batch = await model.complete([0, 1, 2].map(idsOf), { maxNewTokens });
    expect(batch.map(([one], i) => [...one!.tokens].slice(0, wanted[i]!.length))).toEqual(wanted);
    for (const i of [0, 1, 2]) {
      const want = wanted[i]!;
      const got: number[] = [];
      for await (const token of generate(model, idsOf(i), { maxNewTokens: want.length })) got.push(token);
      expect(prompts[i]?.margins.every((margin) => margin > 1e-3)).toBe(true); // no near tie
      expect(got, `prompt ${i}`).toEqual(want);
    }
    model.dispose();
  });
});

it("Gemma 3 with images is its language model, and is saved as one", async () => {
  const folder = join(root, "gemma3-saved");
  const model = await AutoModelForCausalLM.fromPretrained(fixturePath("families/gemma3/fp32"));
  await savePretrained(model, folder);
  const names = [...readSafetensors(join(folder, "model.safetensors")).keys()];
  expect(names).toHaveLength(41);
  expect(names.every((name) => name.startsWith("model."))).toBe(true);
  const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
  expect(config).toMatchObject({ architectures: ["Gemma3ForCausalLM"], model_type: "gemma3_text", dtype: "float32" });
  expect(config).not.toHaveProperty("vision_config");
  const again = await AutoModelForCausalLM.fromPretrained(folder);
  expect(logitsOf(again, Int32Array.of(5, 6, 7))).toEqual(logitsOf(model, Int32Array.of(5, 6, 7)));
  model.dispose();
  again.dispose();
});

function logitsOf(model: CausalLM, ids: Int32Array): Float32Array {
  const logits = tidy(() => noGrad(() => model.forward(tensor(ids, { shape: [1, ids.length] }))));
  const values = logits.floatsSync();
  logits.dispose();
  return values;
}
