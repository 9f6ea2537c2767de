// `bnb merge`: the saved model computes what the model with its adapter does, in floats and in 4 bits.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { AutoModelForCausalLM, noGrad, PeftModel, tensor, tidy } from "../../src/index.js";
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
});
