// Grammars over a vocabulary of 128,000 tokens: what may follow is what a search through all of them finds, and the event loop
// is free while they are compiled and followed.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { afterAll, beforeAll, expect, it } from "vitest";
import { AutoTokenizer } from "../../src/hub/index.js";
import { bnb } from "../helpers/bnb.js";
import { uniforms } from "../helpers/random.js";

const size = 128_000;
const root = mkdtempSync(join(tmpdir(), "bnb-large-"));
const folder = join(root, "model");
/** What each token stands for; the first 256 are bytes, and then come three special ones. */
const texts: string[] = [];
/** What is no text by itself, or none at all. */
const nothing = "\0";

beforeAll(async () => {
  const small = ["--hidden-size", "32", "--intermediate-size", "64", "--layers", "1", "--dtype", "float32"];
  expect(await bnb("make-model", folder, ...small, "--device", "cpu")).toMatchObject({ code: 0 });
  const path = join(folder, "tokenizer.json");
  const tokenizer = JSON.parse(readFileSync(path, "utf8")) as { model: { vocab: Record<string, number> } };
  const { vocab } = tokenizer.model;
  for (let byte = 0; byte < 256; byte++) texts.push(byte < 128 ? String.fromCharCode(byte) : nothing);
  texts.push(nothing, nothing, nothing);
  // Words as they are in JSON: letters, digits, and what stands between.
  const random = uniforms(5);
  const letters = `abcdefghijklmnopqrstuvwxyz0123456789.-{}[]":,`;
  const known = new Set(texts);
  while (texts.length < size) {
    const length = 2 + Math.floor(random() ** 2 * 8);
    const narrow = random() < 0.3 ? 36 : letters.length;
    const from = random() < 0.2 ? 26 : 0;
    const word = Array.from({ length }, () => letters[from + Math.floor(random() * (narrow - from))]).join("");
    if (known.has(word)) continue;
    known.add(word);
    vocab[word] = texts.length;
    texts.push(word);
  }
  writeFileSync(path, JSON.stringify(tokenizer));
});
afterAll(() => rmSync(root, { recursive: true }));

/** Whether a text begins one of the language of the grammar. */
const begins = (text: string) => /^(\d{0,6}|\d{1,6}\.[a-z]{0,8}|\d{1,6}\.[a-z]{2,8}-[a-z0-9]{0,12})$/.test(text);
const isWhole = (text: string) => /^\d{1,6}\.[a-z]{2,8}-[a-z0-9]{1,12}$/.test(text);
const grammar = 'root ::= [0-9]{1,6} "." [a-z]{2,8} "-" [a-z0-9]{1,12}';
const end = 258;

it("allow what a search finds, in every state, and leave the event loop alone", async () => {
  using tokenizer = await AutoTokenizer.fromPretrained(folder);
  expect(tokenizer.vocabSize).toBe(size);
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  using text = await tokenizer.grammars.open("test", "format", { type: "grammar", grammar }, [end]);
  const schema = { type: "object", properties: { name: { type: "string" }, list: { type: "array" } } };
  await tokenizer.grammars.compile("test", "format", { type: "json_schema", schema });
  delay.disable();
  expect(delay.percentile(99) / 1e6, "p99 delay of the event loop, ms").toBeLessThan(20);

  let written = "";
  const random = uniforms(6);
  for (let states = 0; ; states++) {
    const allowed = (id: number) => ((text.allowed![id >> 5]! >> (id & 31)) & 1) === 1;
    const wrong = texts.findIndex((own, id) => {
      const isRight = id === end ? isWhole(written) : own !== nothing && begins(written + own);
      return isRight !== allowed(id);
    });
    expect(wrong < 0 ? "none" : `${JSON.stringify(texts[wrong])} (${wrong}) behind ${written}`).toBe("none");
    if (allowed(end)) {
      expect(states).toBeGreaterThan(2);
      break;
    }
    const may = texts.flatMap((_, id) => (allowed(id) ? [id] : []));
    const id = may[Math.floor(random() * may.length)]!;
    written += texts[id];
    await text.accept(id);
  }
});
