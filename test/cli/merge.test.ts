// `bnb merge`: the saved model computes what the model with its adapter does, in floats and in 4 bits.
import { cpSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import {
  AutoModelForCausalLM,
  Generator,
  getPeftModel,
  LoraConfig,
  noGrad,
  PeftModel,
  tensor,
  tidy,
} from "../../src/index.js";
import type { CausalLM } from "../../src/models/index.js";
import { bnb, bnbJson } from "../helpers/bnb.js";

const root = mkdtempSync(join(tmpdir(), "bnb-merge-"));
afterAll(() => rmSync(root, { recursive: true }));
const adapter = "test/fixtures/peft/lora-attn";
const base = (format: string): string => `test/fixtures/models/llama/${format}`;
const logitsOf = (model: CausalLM): number[] =>
  noGrad(() => tidy(() => Array.from(model.forward(tensor([[1, 20, 300, 4]], { dtype: "int32" })).floatsSync())));

async function logitsIn(folder: string, withAdapter: boolean): Promise<number[]> {
  const model = await AutoModelForCausalLM.fromPretrained(folder);
  if (withAdapter) await PeftModel.fromPretrained(model, adapter);
  const found = logitsOf(model);
  model.dispose();
  return found;
}
const distance = (a: number[], b: number[]): number => a.reduce((sum, v, i) => sum + Math.abs(v - b[i]!), 0) / a.length;

interface Merged {
  layers: number;
  losses: { relative: number; format: string }[];
}

describe("--lora", () => {
  it("generates with an adapter, without merging it", async () => {
    const [folder, lora] = [join(root, "made"), join(root, "lora")];
    await bnb("make-model", folder, "--hidden-size", "64", "--intermediate-size", "96", "--device", "cpu");
    const model = await AutoModelForCausalLM.fromPretrained(folder);
    const config = new LoraConfig({ targetModules: "all-linear", loraAlpha: 64, initLoraWeights: false });
    const peft = getPeftModel(model, config, { generator: new Generator(1) });
    await peft.savePretrained(lora);
    const text = async (...more: string[]) =>
      (
        await bnbJson<{ text: string }>(
          "generate",
          folder,
          "--prompt",
          "Hi",
          "--max-new-tokens",
          "8",
          "--device",
          "cpu",
          ...more,
        )
      ).text;
    const want = (await model.complete("Hi", { maxNewTokens: 8 }))[0]!.text;
    expect(await text("--lora", lora)).toBe(want);
    expect(await text()).not.toBe(want);
    peft.dispose();
    const failed = await bnb("generate", folder, "--prompt", "Hi", "--lora", folder, "--device", "cpu");
    expect(failed.code).toBe(1);
    expect(failed.stderr).toContain("its adapter_config.json could not be read");
  });
});

describe("bnb merge", () => {
  it("saves floats that compute the same", async () => {
    const out = join(root, "float");
    const { layers, losses } = await bnbJson<Merged>("merge", base("fp32"), adapter, out, "--device", "cpu");
    expect(losses).toEqual([]);
    expect(layers).toBeGreaterThan(4);
    expect(distance(await logitsIn(out, false), await logitsIn(base("fp32"), true))).toBeLessThan(1e-5);
  });

  it("saves 4 bits and says what that lost, or floats on request", async () => {
    const [packed, floats] = [join(root, "packed"), join(root, "floats")];
    const { losses } = await bnbJson<Merged>("merge", base("nf4"), adapter, packed, "--device", "cpu");
    expect(losses.every(({ format, relative }) => format === "nf4" && relative > 0.01 && relative < 0.2)).toBe(true);
    const with4bit = await logitsIn(base("nf4"), true);
    expect(distance(await logitsIn(packed, false), with4bit)).toBeLessThan(0.6);
    await bnb("merge", base("nf4"), adapter, floats, "--dequantize", "--device", "cpu");
    expect(distance(await logitsIn(floats, false), with4bit)).toBeLessThan(1e-4);
  });

  it("writes neither into the model's folder nor into the adapter's, whatever they are called by", async () => {
    const [model, lora, link] = [join(root, "own-model"), join(root, "own-lora"), join(root, "link")];
    cpSync(base("fp32"), model, { recursive: true });
    cpSync(adapter, lora, { recursive: true });
    symlinkSync(lora, link);
    const before = readdirSync(lora);
    for (const [out, what] of [
      [lora, "adapter"],
      [link, "adapter"],
      [`${lora}/../own-model`, "model"],
    ] as const) {
      const { code, stdout, stderr } = await bnb("merge", model, lora, out, "--force", "--device", "cpu");
      expect([code, stdout]).toEqual([2, ""]);
      expect(stderr).toContain(`${out} is the folder of the ${what} itself; give another for the result\n`);
    }
    expect(readdirSync(lora)).toEqual(before);
  });
});
