// Samples in a file: the same ones as in memory, in any order; what a changed file says.
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { AutoTokenizer } from "../../src/hub/index.js";
import type { PreferencePair, Sample } from "../../src/train/index.js";
import { loadDataset, loadPreferences, storeDataset, storePreferences } from "../../src/train/index.js";
import { StoredSamples } from "../../src/train/stored-samples.js";
import { fixturePath } from "../helpers/safetensors.js";

const folder = mkdtempSync(join(tmpdir(), "bnb-stored-"));
afterAll(() => rmSync(folder, { recursive: true }));
const tokenizer = await AutoTokenizer.fromPretrained(fixturePath("models/tokenizer"));
afterAll(() => tokenizer.dispose());
const options = { tokenizer, maxLength: 10 };

const rows = Array.from({ length: 40 }, (_, i) => ({
  prompt: `${i} and`,
  completion: " on".repeat(1 + ((7 * i) % 11)),
}));
const lines = join(folder, "rows.jsonl");
writeFileSync(lines, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));

describe("storeDataset", () => {
  it("gives what loadDataset gives, by number, as slices, in order and again", async () => {
    const path = join(folder, "new", "a.tokens");
    const memory = await loadDataset(lines, options);
    const { samples, truncated, skipped } = await storeDataset(lines, path, options);
    expect([samples.length, truncated, skipped]).toEqual([40, memory.truncated, memory.skipped]);
    expect(memory.truncated).toBeGreaterThan(0);
    expect(samples.lengths).toEqual(memory.samples.map(({ ids }) => ids.length));
    for (const i of [39, 0, 17, -1, -40]) expect(samples.at(i)).toEqual(memory.samples.at(i));
    expect([samples.at(40), samples.at(-41)]).toEqual([undefined, undefined]);
    expect(samples.slice(5, 9)).toEqual(memory.samples.slice(5, 9));
    expect(samples.slice(38, 60)).toEqual(memory.samples.slice(38));
    expect([...samples]).toEqual(memory.samples);
    samples.dispose();
    samples.dispose();
    expect(existsSync(path)).toBe(false);
    expect(() => samples.at(0)).toThrow(`${path}: its samples were disposed`);
  });

  it("pairs, and a text that is cut into pieces", async () => {
    const pairs = rows.map(({ prompt, completion }) => ({ prompt, chosen: completion, rejected: " no" }));
    using stored = (await storePreferences(pairs, join(folder, "p.tokens"), options)).samples;
    const wanted: readonly PreferencePair[] = (await loadPreferences(pairs, options)).samples;
    expect([...stored]).toEqual(wanted);
    expect(stored.lengths).toEqual(wanted.map(({ chosen, rejected }) => chosen.ids.length + rejected.ids.length));
    const text = join(folder, "a.txt");
    writeFileSync(text, "one two three ".repeat(60));
    using pieces = (await storeDataset(text, join(folder, "t.tokens"), options)).samples;
    expect([...pieces]).toEqual((await loadDataset(text, options)).samples);
    expect(pieces.length).toBeGreaterThan(3);
  });

  it("leaves what is there until the samples are complete", async () => {
    const path = join(folder, "precious");
    const is = (text: string) => expect(readFileSync(path, "utf8")).toBe(text);
    writeFileSync(path, "precious");
    await expect(storeDataset(lines, path, { ...options, maxLenght: 3 } as never)).rejects.toThrow("got maxLenght");
    is("precious");
    await expect(storeDataset([{ a: 1 }], path, options)).rejects.toThrow("storeDataset: row 1: must have text");
    is("precious");
    (await storeDataset(lines, path, options)).samples.dispose();
    expect(existsSync(path)).toBe(false);

    const source = join(folder, "source.jsonl");
    writeFileSync(source, readFileSync(lines));
    symlinkSync(source, join(folder, "link.jsonl"));
    for (const other of [source, join(folder, ".", "source.jsonl"), join(folder, "link.jsonl")]) {
      await expect(storeDataset(source, other, options)).rejects.toThrow(
        `storeDataset: path must be another file than the source, got ${other}`,
      );
    }
    expect(readFileSync(source, "utf8")).toBe(readFileSync(lines, "utf8"));
    expect(readdirSync(folder).filter((name) => name.endsWith(".part"))).toEqual([]);
  });

  it("leaves a source and a file of another program alone, whatever they are called", async () => {
    const source = join(folder, "train.part");
    writeFileSync(source, readFileSync(lines));
    const wanted = await loadDataset(lines, options);
    using first = (await storeDataset(source, join(folder, "train"), { ...options, format: "jsonl" })).samples;
    const [second, third] = await Promise.all([
      storeDataset(rows, join(folder, "both"), options),
      storeDataset(rows.slice(0, 5), join(folder, "both.part"), options),
    ]);
    expect([...first]).toEqual(wanted.samples);
    expect([...second.samples]).toEqual(wanted.samples);
    expect([...third.samples]).toEqual(wanted.samples.slice(0, 5));
    for (const { samples } of [second, third]) samples.dispose();
    expect(readFileSync(source, "utf8")).toBe(readFileSync(lines, "utf8"));
    expect(readdirSync(folder).filter((name) => name.endsWith(".part"))).toEqual(["train.part"]);
    rmSync(source);
  });

  it("leaves no file where the data cannot be used", async () => {
    const path = join(folder, "broken.tokens");
    await expect(storeDataset([rows[0] as object, { a: 1 }], path, options)).rejects.toThrow(
      "storeDataset: row 2: must have text, prompt and completion, or messages, got a",
    );
    expect(existsSync(path)).toBe(false);
    await expect(storeDataset(rows, folder, options)).rejects.toThrow(
      `${folder}: could not be used for samples: EISDIR`,
    );
  });

  it("says so when somebody cut the file", async () => {
    const path = join(folder, "cut.tokens");
    using samples = (await storeDataset(lines, path, options)).samples;
    expect(samples.at(39)).toBeDefined();
    truncateSync(path, 16);
    expect(() => samples.at(39)).toThrow(/cut\.tokens: ends at byte \d+: it was changed$/);
  });
});

describe("StoredSamples", () => {
  it("keeps more than its buffer holds", async () => {
    const sample = (i: number): Sample => {
      const ids = Int32Array.from({ length: 5000 }, (_, j) => (i * 31 + j) % 1000);
      return { ids, labels: ids.map((id) => (id % 2 ? id : -100)) };
    };
    using samples = await StoredSamples.make<Sample>(join(folder, "long.tokens"), {
      parts: (one) => [one],
      whole: ([one]) => one as Sample,
    });
    for (let i = 0; i < 100; i++) samples.push(sample(i));
    for (const i of [0, 25, 26, 27, 99]) expect(samples.at(i)).toEqual(sample(i));
  });
});
