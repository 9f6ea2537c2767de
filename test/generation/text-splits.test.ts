// A stream of text over all ways in which its bytes may be cut into tokens: what comes is the text, in whole characters, as
// soon as it is certain, and ends where a stop string begins.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { TextStream } from "../../src/generation/text-stream.js";
import type { Tokenizer } from "../../src/hub/index.js";

const seed = 20261128;

/** A tokenizer whose tokens are these bytes, in their order. */
function tokenizerOf(tokens: readonly Buffer[]): Tokenizer {
  const decode = (ids: Iterable<number>): Promise<string> =>
    Promise.resolve(Buffer.concat([...ids].map((id) => tokens[id]!)).toString("utf8"));
  return { vocabSize: tokens.length, decode } as unknown as Tokenizer;
}

/** The bytes of a text, cut behind those whose bit is set. */
function cut(text: string, bits: (at: number) => boolean): Buffer[] {
  const bytes = Buffer.from(text, "utf8");
  const ends = [...bytes.keys()].filter((at) => at > 0 && bits(at - 1));
  return [0, ...ends].map((begin, i) => bytes.subarray(begin, ends[i] ?? bytes.length));
}

async function piecesOf(
  tokens: readonly Buffer[],
  stops: readonly string[],
): Promise<{ pieces: string[]; used: number }> {
  const stream = new TextStream(tokenizerOf(tokens), stops);
  const pieces: string[] = [];
  let used = 0;
  for (const id of tokens.keys()) {
    pieces.push(await stream.push(id));
    used++;
    if (stream.isStopped) break;
  }
  pieces.push(await stream.end());
  return { pieces, used };
}

/** What is left of a text before the stop string that is complete first. */
function before(text: string, stops: readonly string[]): string {
  const found = stops.flatMap((stop) => {
    const at = text.indexOf(stop);
    return at < 0 ? [] : [{ at, end: at + stop.length }];
  });
  const first = Math.min(...found.map(({ end }) => end));
  const begins = found.filter(({ end }) => end === first).map(({ at }) => at);
  return found.length === 0 ? text : text.slice(0, Math.min(...begins));
}

async function check(text: string, stops: readonly string[], tokens: readonly Buffer[]): Promise<void> {
  const { pieces, used } = await piecesOf(tokens, stops);
  const got = pieces.join("");
  for (const piece of pieces) expect(piece).not.toContain("\ufffd");
  const shown = JSON.stringify([text, stops, tokens.map(String)]);
  // Where a token completes several at once, the text ends before the one that begins first.
  const seen = Buffer.concat(tokens.slice(0, used)).toString("utf8");
  const begins = stops.map((stop) => seen.indexOf(stop)).filter((at) => at >= 0);
  expect(got, shown).toBe(begins.length === 0 ? text : text.slice(0, Math.min(...begins)));
  if (tokens.every(({ length }) => length === 1)) expect(got, shown).toBe(before(text, stops));
  for (const stop of stops) expect(got, shown).not.toContain(stop);
  // It ends with the token that completes the first.
  if (begins.length > 0) {
    const without = Buffer.concat(tokens.slice(0, used - 1)).toString("utf8");
    expect(
      stops.every((stop) => !without.includes(stop)),
      shown,
    ).toBe(true);
  }
}

describe("all ways to cut a text into tokens", () => {
  it.each([
    ["aé€b", []],
    ["x😀y", ["😀"]],
    ["abcabd", ["abd"]],
    ["aabaab", ["aab", "b"]],
    ["né😀e", ["😀e"]],
    ["ababcab", ["abc", "bcab"]],
    ["\u0000\r\n\r\n", ["\n\r"]],
  ] as [string, string[]][])("%j with the stop strings %j", async (text, stops) => {
    const length = Buffer.byteLength(text) - 1;
    for (let bits = 0; bits < 2 ** length; bits++)
      await check(
        text,
        stops,
        cut(text, (at) => ((bits >> at) & 1) === 1),
      );
  });

  it("any texts and stop strings, cut anywhere", async () => {
    const letters = fc.constantFrom("a", "b", "é", "€", "😀", "\u0301", "字");
    const text = fc.array(letters, { maxLength: 80 }).map((list) => list.join(""));
    const stop = fc.array(letters, { minLength: 1, maxLength: 4 }).map((list) => list.join(""));
    const property = fc.asyncProperty(
      text,
      fc.array(stop, { maxLength: 4 }),
      fc.infiniteStream(fc.boolean()),
      async (whole, stops, cuts) => {
        if (whole === "") return;
        const bits = [...cuts.take(Buffer.byteLength(whole))];
        await check(
          whole,
          stops,
          cut(whole, (at) => bits[at] as boolean),
        );
      },
    );
    await fc.assert(property, { seed, numRuns: 300 });
  });

  it("a beginning of a stop string is held back no longer than it may become one", async () => {
    const { pieces } = await piecesOf(
      ["ab", "ab", "x", "abc", "d"].map((one) => Buffer.from(one)),
      ["abc"],
    );
    expect(pieces).toEqual(["", "ab", "abx", "", ""]);
  });
});
