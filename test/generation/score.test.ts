// The likelihood of texts, and their vectors: against transformers' numbers and a float64 oracle over the logits.
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import { embed, score } from "../../src/generation/index.js";
import { AutoTokenizer } from "../../src/hub/index.js";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import { linear } from "../../src/ops/index.js";
import { tensor } from "../../src/tensor/create.js";
import { memory, tidy } from "../../src/tensor/scope.js";
import { integers } from "../helpers/random.js";
import { fixturePath, readSafetensors, toNumbers } from "../helpers/safetensors.js";

const known = readSafetensors("perplexity/tokens_and_nll.safetensors");
const { results } = JSON.parse(readFileSync(fixturePath("perplexity/perplexity.json"), "utf8"));
const idsOf = (name: string) => Int32Array.from(toNumbers(known.get(name)!));
const open = (variant: string) =>
  AutoModelForCausalLM.fromPretrained(fixturePath(`models/llama/${variant}`), { deviceMap: "cpu" });

let model: CausalLM;
beforeAll(async () => {
  model = await open("fp32");
});
afterAll(() => model.dispose());

/** log softmax(logits)[next] of each position but the last, in float64. */
function oracle(ids: ArrayLike<number>): number[] {
  const logits = tidy(() =>
    noGrad(() => model.forward(tensor(Int32Array.from(ids), { shape: [1, ids.length], device: model.device }))),
  );
  const values = logits.floatsSync();
  const vocab = logits.shape[2] as number;
  logits.dispose();
  return Array.from({ length: ids.length - 1 }, (_, row) => {
    const part = Array.from(values.subarray(row * vocab, (row + 1) * vocab));
    const most = Math.max(...part);
    const sum = part.reduce((total, value) => total + Math.exp(value - most), 0);
    return (part[ids[row + 1] as number] as number) - most - Math.log(sum);
  });
}

describe("score", () => {
  it.each([
    ["fp32", 1e-4],
    ["nf4", 1e-4],
    ["int8", 2e-2],
  ])("has the numbers of transformers and bitsandbytes: %s", async (variant, tolerance) => {
    using loaded = await open(variant);
    for (const name of ["sampled_from_fp32", "text"]) {
      const { logprobs, meanLogprob, perplexity, tokens } = await loaded.score(idsOf(name));
      expect([...tokens]).toEqual([...idsOf(name)]);
      const { mean_nll } = results[variant][name];
      expect(Math.abs(-meanLogprob - mean_nll)).toBeLessThan(tolerance);
      expect(perplexity).toBeCloseTo(Math.exp(-meanLogprob), 6);
      const nll = toNumbers(known.get(`${variant}.${name}.nll`)!);
      const apart = logprobs.reduce((most, value, i) => Math.max(most, Math.abs(value + nll[i]!)), 0);
      expect(apart).toBeLessThan(variant === "int8" ? 0.5 : 1e-3);
    }
  });

  it("is that of the tokens of a text", async () => {
    const tokenizer = await AutoTokenizer.fromPretrained(fixturePath("models/tokenizer"));
    model.tokenizer = tokenizer;
    const { tokens, logprobs } = await score(model, "Once upon a time");
    expect(tokens).toEqual(await tokenizer.encode("Once upon a time"));
    const expected = oracle(tokens);
    logprobs.forEach((value, i) => {
      expect(Math.abs(value - expected[i]!)).toBeLessThan(1e-4);
    });
    model.tokenizer = null;
    tokenizer.dispose();
  });

  it.each([
    { length: 50, window: 20, stride: 8 },
    { length: 50, window: 20, stride: 19 },
    { length: 41, window: 20, stride: undefined },
    { length: 20, window: 20, stride: 5 },
    { length: 21, window: 20, stride: 1 },
    { length: 2, window: 2, stride: 1 },
  ])("moves a window over longer texts: %o", async ({ length, window, stride }) => {
    const ids = [...integers(length, 512, 3)];
    const { logprobs } = await model.score(ids, { window, ...(stride && { stride }) });
    // Token i is scored in the first window that reaches it.
    const step = stride ?? window / 2;
    const expected = ids.slice(1).map((_, i) => {
      const start = Math.max(0, Math.ceil((i + 2 - window) / step)) * step;
      return oracle(ids.slice(start, i + 2)).at(-1)!;
    });
    expect(logprobs).toHaveLength(length - 1);
    expected.forEach((value, i) => {
      expect(Math.abs(logprobs[i]! - value), `token ${i + 1}`).toBeLessThan(1e-4);
    });
  });

  it("takes texts beyond the model's positions, and frees what it needs", async () => {
    const before = memory();
    const ids = integers(1500, 512, 9);
    const { logprobs } = await model.score(Int32Array.from(ids), { stride: 1000 });
    expect(logprobs).toHaveLength(1499);
    expect(logprobs.every((value) => value < 0)).toBe(true);
    expect(memory().liveBytes).toBe(before.liveBytes);
    expect(memory().tensors).toBe(before.tensors);
  });

  it.each([
    [[1], {}, "score: the text must have at least 2 tokens, got 1"],
    [[], {}, "score: the prompt must have between 1 and 9007199254740991 tokens, got 0"],
    [[1, 2], { window: 8, stride: 8 }, "score: stride must be below the window of 8 tokens, got 8"],
    [[1, 2], { window: 1 }, "score: window must be an integer of at least 2, got 1"],
    [[1, 600], {}, "score: a token id must lie in 0..511, got 600"],
    [[1, 2], { signal: AbortSignal.abort() }, "score: aborted by its signal"],
    ["text", {}, "score: texts and messages need a tokenizer, got a model without one"],
    [[{ role: "user", content: "" }], {}, "score: a token id must lie in 0..511, got"],
  ])("refuses %o with %o", async (text, options, message) => {
    await expect(model.score(text as string, options)).rejects.toThrow(message);
  });
});

describe("embed", () => {
  const texts = [5, 1, 12].map((length, i) => [...integers(length, 512, 20 + i)]);
  /** Hidden states in float64, [t][hidden]. */
  const statesOf = (ids: number[]) => {
    const states = tidy(() =>
      noGrad(() => model.hiddenStates(tensor(ids, { shape: [1, ids.length], dtype: "int32", device: model.device }))),
    );
    const hidden = states.shape[2] as number;
    const values = states.floatsSync();
    states.dispose();
    return ids.map((_, i) => Array.from(values.subarray(i * hidden, (i + 1) * hidden)));
  };
  const pooled = {
    mean: (rows: number[][]) => rows[0]!.map((_, h) => rows.reduce((sum, row) => sum + row[h]!, 0) / rows.length),
    last: (rows: number[][]) => rows.at(-1)!,
    first: (rows: number[][]) => rows[0]!,
  };

  it("hidden states are what the head makes logits of", async () => {
    const ids = tensor(texts[0]!, { shape: [1, 5], dtype: "int32", device: model.device });
    const head = model.stateDict().get("lm_head.weight")!;
    const [a, b] = tidy(() =>
      noGrad(() => [linear(model.hiddenStates(ids), head, null).floatsSync(), model.forward(ids).floatsSync()]),
    );
    expect(a).toEqual(b);
    ids.dispose();
  });

  it.each(["mean", "last", "first"] as const)("pools the hidden states: %s", async (pooling) => {
    using vectors = await model.embed(texts, { pooling });
    using units = await model.embed(texts, { pooling, normalize: true });
    expect(vectors.shape).toEqual([3, 128]);
    expect(vectors.dtype).toBe("float32");
    const values = await vectors.floats();
    const normalized = await units.floats();
    texts.forEach((ids, i) => {
      const expected = pooled[pooling](statesOf(ids));
      const length = Math.sqrt(expected.reduce((sum, x) => sum + x * x, 0));
      expected.forEach((x, h) => {
        expect(values[i * 128 + h]).toBeCloseTo(x, 5);
        expect(normalized[i * 128 + h]).toBeCloseTo(x / length, 5);
      });
    });
  });

  it("takes one text as one row, the mean by default, and leaves only its result", async () => {
    const before = memory().tensors;
    const one = await embed(model, texts[2]!);
    expect(memory().tensors).toBe(before + 1);
    expect(one.shape).toEqual([1, 128]);
    using mean = await embed(model, [texts[2]!], { pooling: "mean" });
    expect(await one.floats()).toEqual(await mean.floats());
    one.dispose();
  });

  it.each([
    [[], {}, "embed: texts must be at least one, got []"],
    [[[]], {}, "embed: the prompt must have between 1 and 1024 tokens, got 0"],
    [new Int32Array(1025), {}, "embed: the prompt must have between 1 and 1024 tokens, got 1025"],
    [[1], { pooling: "max" }, "embed: pooling must be one of mean, first, last, got"],
    ["text", {}, "embed: texts and messages need a tokenizer, got a model without one"],
  ])("refuses %o with %o", async (input, options, message) => {
    await expect(model.embed(input as number[], options as object)).rejects.toThrow(message);
  });
});
