// Every example runs, in a quick form, against the built package; and does what it says.
import { execFile, execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { newTokenizer } from "../src/cli/new-tokenizer.js";
import { saveNewModel } from "../src/cli/save-new-model.js";
import { encoderFamilies } from "../src/models/families/index.js";
import { createModel } from "../src/models/load.js";
import { drawWeights } from "../src/models/parts/decoder.js";
import { Generator } from "../src/ops/index.js";
import { bnb } from "./helpers/bnb.js";
import { fixturePath } from "./helpers/safetensors.js";

const root = mkdtempSync(join(tmpdir(), "bnb-examples-"));
afterAll(() => rmSync(root, { recursive: true }));
const [chat, encoder] = [join(root, "chat"), join(root, "encoder")];
const file = (name: string, rows: readonly object[]): string => {
  writeFileSync(join(root, name), rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
  return join(root, name);
};
const examples = readdirSync("examples").flatMap((name) => (name.endsWith(".ts") ? [name.slice(0, -3)] : []));
const tried = new Set<string>();

async function run(name: string, ...args: string[]): Promise<string> {
  tried.add(name);
  const options = { timeout: 50_000, env: { ...process.env, NODE_NO_WARNINGS: "1" } };
  const { stdout } = await promisify(execFile)(process.execPath, [`build/examples/${name}.js`, ...args], options);
  return stdout;
}
const numbers = (text: string, pattern: RegExp): number[] =>
  [...text.matchAll(pattern)].map(([, value]) => Number(value));

beforeAll(async () => {
  execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "-p", "examples/tsconfig.json"]);
  const sizes = ["--hidden-size", "32", "--intermediate-size", "64", "--layers", "1", "--positions", "128"];
  await bnb("make-model", chat, ...sizes, "--dtype", "float32", "--device", "cpu");
  const tokenizer = newTokenizer();
  const config = JSON.parse(readFileSync(fixturePath("families/bert/fp32/config.json"), "utf8"));
  const model = createModel(
    { ...config, vocab_size: tokenizer.vocabSize, max_position_embeddings: 128 },
    () => encoderFamilies["bert"] as never,
    {
      device: "cpu",
    },
  );
  drawWeights(model, 0.3, { device: "cpu", generator: new Generator(1) });
  await saveNewModel(model as never, encoder, tokenizer);
  model.dispose();
});

describe("examples", () => {
  it("qlora", async () => {
    const rows = ["red", "green", "blue", "grey"].map((color) => ({
      messages: [
        { role: "user", content: `Say ${color}` },
        { role: "assistant", content: `It is ${color}.` },
      ],
    }));
    const output = join(root, "qlora");
    const text = await run("qlora", chat, file("chat.jsonl", rows), output, "2");
    expect(text).toMatch(/^4 samples, 0 of them cut at 128 tokens\ntrainable params: [\d,]+ \|\| all params: /);
    expect(numbers(text, /^step (\d+) /gm)).toEqual([1, 2]);
    expect(readdirSync(output)).toEqual(expect.arrayContaining(["adapter_config.json", "adapter_model.safetensors"]));
    // A second call with more steps would be another run; with the same it finds the first one done.
    expect(await run("qlora", chat, join(root, "chat.jsonl"), output, "2")).not.toMatch(/^step/m);
  });

  it("dpo", async () => {
    const rows = [1, 2, 3, 4].map((n) => ({ prompt: `${n}?`, chosen: `Yes, ${n}.`, rejected: "No" }));
    const output = join(root, "dpo");
    const text = await run("dpo", chat, file("pairs.jsonl", rows), output, "2");
    const losses = numbers(text, /^step \d: loss ([\d.]+), margin/gm);
    expect(losses.length).toBe(2);
    // Adapters begin as nothing.
    expect(losses[0]).toBeCloseTo(Math.log(2), 3);
    expect(readdirSync(output)).toContain("adapter_model.safetensors");
  });

  it("train-from-scratch", async () => {
    const path = join(root, "text.txt");
    writeFileSync(path, "To be or not to be, that is the question. ".repeat(400));
    const text = await run("train-from-scratch", path, "24");
    const [before = 0, after = 0] = numbers(text, /perplexity of a byte \w+: ([\d.]+)/g);
    expect(before).toBeGreaterThan(150);
    expect(after).toBeLessThan(before / 5);
    expect(text).toMatch(/\nThe [\s\S]{20,}/);
  });

  it("classifier", async () => {
    const text = await run("classifier", "300");
    expect(numbers(text, /([\d.]+) % of new points/g)[0]).toBeGreaterThan(90);
  });

  it("embeddings", async () => {
    const text = await run("embeddings", encoder, "A cat sleeps on the warm windowsill.");
    const cosines = numbers(text, /^(-?[\d.]+) {2}/gm);
    expect(cosines.length).toBe(5);
    expect(cosines).toEqual([...cosines].sort((a, b) => b - a));
    // The same words are nearest.
    expect(text).toMatch(/^1\.000 {2}A cat sleeps/);
  });

  it("are all tried", () => {
    expect([...tried].sort()).toEqual(examples.sort());
  });
});
