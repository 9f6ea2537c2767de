// A text that grows token by token: whole characters only, and nothing of a stop string, however it lies over the tokens.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { TextStream } from "../../src/generation/text-stream.js";
import { AutoTokenizer } from "../../src/hub/index.js";
import { integers } from "../helpers/random.js";
import { fixturePath } from "../helpers/safetensors.js";

const tokenizer = await AutoTokenizer.fromPretrained(fixturePath("models/tokenizer"));
afterAll(() => tokenizer.dispose());

/** The pieces of a text, one for each token and one for the end. */
async function pieces(ids: Iterable<number>, stops: string[] = [], by = tokenizer): Promise<string[]> {
  const stream = new TextStream(by, stops);
  const made: string[] = [];
  for (const id of ids) {
    made.push(await stream.push(id));
    if (stream.isStopped) break;
  }
  made.push(await stream.end());
  return made;
}

const texts = [
  "Once upon a time, there was a bit.",
  "naïve façade, Ωμέγα, привет, 東京, 한국어",
  "👋🏽 hello 👩‍👩‍👧 family 🏳️‍🌈!",
  "  spaces   and\n\nlines\t",
  "e\u0301 combines, \ufffd is itself",
];

describe("characters", () => {
  it.each(texts)("come whole: %s", async (text) => {
    const ids = await tokenizer.encode(text);
    const made = await pieces(ids);
    expect(made.join("")).toBe(text);
    const early = made.slice(0, -1).join("");
    // Only what may still be the beginning of a character waits for the end.
    expect(text.startsWith(early)).toBe(true);
    // No lone surrogate.
    for (const piece of made) expect(Buffer.from(piece).toString()).toBe(piece);
    if (!text.includes("\ufffd")) expect(made.filter((piece) => piece.includes("\ufffd"))).toEqual([]);
  });

  it("come as soon as they are complete, though a token is a part of one", async () => {
    const ids = await tokenizer.encode("👋");
    expect(ids.length).toBeGreaterThan(1);
    expect(await pieces(ids)).toEqual([...new Array<string>(ids.length - 1).fill(""), "👋", ""]);
  });

  it("that never become complete are said so at the end", async () => {
    const ids = (await tokenizer.encode("a👋")).slice(0, -1);
    const made = await pieces(ids);
    expect(made.join("")).toBe(await tokenizer.decode(ids));
    expect(made.join("")).toMatch(/^a\ufffd+$/);
  });

  it.each([1, 2, 3])("are those of the whole text for tokens at random, whatever bytes they are (%i)", async (seed) => {
    const ids = [...integers(200, tokenizer.vocabSize, seed)];
    expect((await pieces(ids)).join("")).toBe(await tokenizer.decode(ids, { skipSpecialTokens: true }));
  });

  it("are none of special tokens, and of tokens that the tokenizer does not have", async () => {
    const end = (await tokenizer.tokenToId(tokenizer.eosToken as string)) as number;
    const [a, b] = [await tokenizer.encode("a"), await tokenizer.encode("b")];
    expect((await pieces([...a, end, 100_000, ...b])).join("")).toBe("ab");
  });
});

describe("bytes among pieces, as in Llama 2's tokenizer", () => {
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`);
  const pieces_ = ["<unk>", "<s>", "</s>", ...bytes, "\u2581", "a", "b", "\u2581a"];
  const folder = mkdtempSync(join(tmpdir(), "bnb-text-stream-"));
  const special = (content: string, id: number) => ({
    ...{ id, content, special: true, single_word: false, lstrip: false, rstrip: false, normalized: false },
  });
  writeFileSync(
    join(folder, "tokenizer.json"),
    JSON.stringify({
      version: "1.0",
      added_tokens: ["<unk>", "<s>", "</s>"].map(special),
      normalizer: {
        type: "Sequence",
        normalizers: [
          { type: "Prepend", prepend: "\u2581" },
          { type: "Replace", pattern: { String: " " }, content: "\u2581" },
        ],
      },
      pre_tokenizer: null,
      post_processor: null,
      decoder: {
        type: "Sequence",
        decoders: [
          { type: "Replace", pattern: { String: "\u2581" }, content: " " },
          { type: "ByteFallback" },
          { type: "Fuse" },
          { type: "Strip", content: " ", start: 1, stop: 0 },
        ],
      },
      model: {
        ...{ type: "BPE", dropout: null, unk_token: "<unk>", fuse_unk: true, byte_fallback: true },
        vocab: Object.fromEntries(pieces_.map((piece, id) => [piece, id])),
        merges: [["\u2581", "a"]],
      },
    }),
  );
  afterAll(() => rmSync(folder, { recursive: true }));

  it("come as whole characters, with the spaces between words", async () => {
    using fallback = await AutoTokenizer.fromPretrained(folder);
    const text = "a b a\u20ac\ud83d\ude00 a\u00e9\u20ac b";
    const ids = await fallback.encode(text);
    expect(ids.length).toBeGreaterThan([...text].length);
    const made = await pieces(ids, [], fallback);
    expect(made.join("")).toBe(text);
    expect(made.filter((piece) => piece.includes("\ufffd"))).toEqual([]);
    const long = "a b ".repeat(40);
    expect((await pieces(await fallback.encode(long), [], fallback)).join("")).toBe(long);
    for (const seed of [1, 2]) {
      const random = [...integers(150, fallback.vocabSize, seed)];
      expect((await pieces(random, [], fallback)).join("")).toBe(
        await fallback.decode(random, { skipSpecialTokens: true }),
      );
    }
  });
});

describe("stop strings", () => {
  it("end the text where they begin, wherever tokens end", async () => {
    const text = "one two three four";
    const ids = await tokenizer.encode(text);
    for (let begin = 0; begin < text.length; begin++) {
      for (const length of [1, 2, 5, 9]) {
        const stop = text.slice(begin, begin + length);
        const made = await pieces(ids, [stop]);
        expect(made.join("")).toBe(text.slice(0, text.indexOf(stop)));
      }
    }
  });

  it("hold back no more than what may be the beginning of one", async () => {
    const ids = await tokenizer.encode("abcd abce abcd.");
    const made = await pieces(ids, ["abcd."]);
    expect(made.join("")).toBe("abcd abce ");
    let sent = "";
    for (let i = 0; i < made.length - 1; i++) {
      sent += made[i];
      const known = (await tokenizer.decode(ids.slice(0, i + 1))) as string;
      expect("abcd.".startsWith(known.slice(sent.length))).toBe(true);
    }
  });

  it("come in full where the text ends before they do", async () => {
    const ids = await tokenizer.encode("ab ab");
    expect((await pieces(ids, ["abc"])).join("")).toBe("ab ab");
  });

  it("the first of several counts, also one within another", async () => {
    const ids = await tokenizer.encode("one two three");
    expect((await pieces(ids, ["three", "two th", "wo"])).join("")).toBe("one t");
    // Both are complete with the same token.
    expect((await pieces(ids, ["wo", "two"])).join("")).toBe("one ");
    expect((await pieces(ids, ["two", "wo"])).join("")).toBe("one ");
  });
});
