// A server with many clients of all kinds: each gets what he would alone, slow readers hold up nobody and lose nothing, and
// nothing is left behind.
import { request } from "node:http";
import type OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { CausalLM } from "../../src/models/index.js";
import { memory } from "../../src/tensor/scope.js";
import { uniforms } from "../helpers/random.js";
import type { Running, TinyModel } from "../helpers/served.js";
import { expectIdle, serve, tinyModel } from "../helpers/served.js";

let tiny: TinyModel;
let model: CausalLM;
beforeAll(async () => {
  tiny = await tinyModel();
  ({ model } = tiny);
});
afterAll(() => tiny[Symbol.dispose]());

const greedy = { model: "tiny", temperature: 0, ignore_eos: true } as const;
const complete = ({ client }: Running, body: object): Promise<OpenAI.Completion> =>
  client.completions.create({ ...greedy, ...body } as never) as unknown as Promise<OpenAI.Completion>;

interface Reading extends AsyncIterable<Uint8Array> {
  destroy(): void;
}
/** A streamed answer as its bytes come, which are read only when they are asked for. */
function streamed({ url }: Running, body: object): Promise<Reading> {
  return new Promise((resolve, reject) => {
    const asked = request(`${url}/v1/completions`, { method: "POST" }, resolve);
    asked.on("error", reject);
    asked.end(JSON.stringify({ ...greedy, ...body, stream: true }));
  });
}

describe("many clients", () => {
  it("of any length, some of whom leave or read slowly, get what each gets alone", async () => {
    // Not all have room at once: some must wait, and some must go and come again.
    await using own = await serve(model, { kvTokens: 768, maxSequences: 8 });
    await own.handler.ready;
    const random = uniforms(20261128);
    const whole = (most: number) => 1 + Math.floor(random() * most);
    const texts = Array.from({ length: 36 }, (_, i) => ({
      prompt: `${i % 3 === 0 ? "The same beginning of a page or two. " : ""}${"abcdefgh ".repeat(whole(9))}${i}`,
      max_tokens: whole(24),
      kind: i % 4,
    }));
    const alone: string[] = [];
    for (const { prompt, max_tokens } of texts) {
      alone.push((await complete(own, { prompt, max_tokens, cache_salt: "alone" })).choices[0]!.text);
    }
    await expectIdle(own);
    const before = memory();
    const got = await Promise.all(
      texts.map(async ({ prompt, max_tokens, kind }, i) => {
        if (kind < 2) return (await complete(own, { prompt, max_tokens })).choices[0]!.text;
        const reading = await streamed(own, { prompt, max_tokens });
        let [text, bytes] = ["", 0];
        for await (const piece of reading) {
          text += Buffer.from(piece).toString("latin1");
          bytes += piece.length;
          if (kind === 3 && bytes > 200) {
            reading.destroy();
            return alone[i];
          }
          if (kind === 2) await new Promise((resolve) => setTimeout(resolve, 2));
        }
        const events = Buffer.from(text, "latin1").toString("utf8").split("\n\n").slice(0, -2);
        const choices = events.map((event) => (JSON.parse(event.slice(6)) as OpenAI.Completion).choices[0]!);
        expect(choices.at(-1)!.finish_reason).toBe("length");
        return choices.map((choice) => choice.text).join("");
      }),
    );
    expect(got).toEqual(alone);
    await expectIdle(own);
    expect(memory().tensors).toBe(before.tensors);
    expect(memory().liveBytes).toBe(before.liveBytes);
    expect(own.lines.filter(({ status }) => status !== 200 && status !== 499)).toEqual([]);
  });

  it("who read nothing for a while hold up nobody, and get all of it", async () => {
    await using own = await serve(model);
    const [n, max_tokens] = [8, 200];
    // So many bytes that they fill what lies between the two ends.
    const reading = await streamed(own, { prompt: "a", n, max_tokens, logprobs: 5 });
    for (let i = 0; i < 3; i++) {
      expect((await complete(own, { prompt: `b${i}`, max_tokens: 40 })).usage!.completion_tokens).toBe(40);
    }
    let text = "";
    for await (const piece of reading) text += Buffer.from(piece).toString("latin1");
    const events = text.split("\n\n").slice(0, -2);
    const choices = events.map((event) => (JSON.parse(event.slice(6)) as OpenAI.Completion).choices[0]!);
    for (let i = 0; i < n; i++) {
      const mine = choices.filter(({ index }) => index === i);
      expect(mine.flatMap(({ logprobs }) => logprobs?.tokens ?? [])).toHaveLength(max_tokens);
      expect(mine.at(-1)!.finish_reason).toBe("length");
    }
    await expectIdle(own);
  });
});

describe("a deterministic server", () => {
  it("says the same to the bit, whoever else is there", async () => {
    await using own = await serve(model, { deterministic: true, kvTokens: 512 });
    const asked = { prompt: "A text of its own, of more than a page", max_tokens: 12, logprobs: 5 };
    const ask = async (salt: string) => (await complete(own, { ...asked, cache_salt: salt })).choices[0]!;
    const alone = await ask("alone");
    const others = Array.from({ length: 9 }, (_, i) => {
      return complete(own, { prompt: "x".repeat(1 + 13 * i), max_tokens: 20, temperature: 1, seed: i });
    });
    expect(await ask("among others")).toEqual(alone);
    // Its beginning was computed before.
    expect(await ask("alone")).toEqual(alone);
    await Promise.all(others);
  });
});
