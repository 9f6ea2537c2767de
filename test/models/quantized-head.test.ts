// The head in int8 or 4 bits at run time: what it computes, where, and that nothing else of the model changes.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import type { CausalLM } from "../../src/index.js";
import {
  AutoModelForCausalLM,
  BitsAndBytesConfig,
  Generator,
  memory,
  nn,
  randn,
  savePretrained,
  tensor,
  tidy,
} from "../../src/index.js";
import type { LlamaForCausalLM } from "../../src/models/index.js";
import { copyInto, dequantize4bit, quantize4bit } from "../../src/ops/index.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { expectClose } from "../helpers/expect-close.js";
import { fixturePath, readSafetensors, toNumbers } from "../helpers/safetensors.js";
import { dequantize4, quantize4 } from "../reference/quantize.js";

const root = mkdtempSync(join(tmpdir(), "bnb-head-"));
afterAll(() => rmSync(root, { recursive: true }));

const open = (name: string) => AutoModelForCausalLM.fromPretrained(fixturePath(name));
const prompt = [3, 1, 4, 1, 5, 9, 2, 6];
const idsFor = (model: CausalLM) => tensor([prompt], { dtype: "int32", device: model.device });
const logitsOf = (model: CausalLM) => tidy(() => noGrad(() => model.forward(idsFor(model)).floatsSync()));
const statesOf = (model: CausalLM) => tidy(() => noGrad(() => model.hiddenStates(idsFor(model)).floatsSync()));
const largest = (values: Iterable<number>) => [...values].reduce((most, value) => Math.max(most, Math.abs(value)), 0);

/** The weight of the head by its name in the state dict. */
function headOf(model: CausalLM, name: string): Tensor {
  const weight = model.stateDict().get(name);
  if (!weight) throw new Error(`${name} is missing`);
  return weight;
}

/** Rounds a weight to what a format of 4 bits holds exactly. */
function round(weight: Tensor, quantType: "nf4" | "fp4"): void {
  noGrad(() =>
    tidy(() => {
      const [packed, quantState] = quantize4bit(weight.detach(), { quantType });
      copyInto(weight, dequantize4bit(packed, { quantState }));
    }),
  );
}

describe.each([
  ["llama-plain", "lm_head.weight"],
  ["gpt-neox", "embed_out.weight"],
  ["smollm3", "model.embed_tokens.weight"],
  ["gemma2", "model.embed_tokens.weight"], // soft caps
  ["granite", "model.embed_tokens.weight"], // scaled logits
  ["gpt2", "transformer.wte.weight"],
  ["opt", "model.decoder.embed_tokens.weight"],
  ["falcon", "transformer.word_embeddings.weight"],
])("%s", (family, name) => {
  it.each(["nf4", "fp4"] as const)("has the same logits by a weight that %s holds exactly", async (format) => {
    using model = await open(`families/${family}/fp32`);
    model.quantizeHead(format);
    round(headOf(model, name), format); // the copy follows
    const quantized = logitsOf(model);
    model.quantizeHead(null);
    const exact = logitsOf(model);
    expect(quantized).not.toEqual(exact); // not the same sums
    expectClose(quantized, exact, { atol: 2e-5 * largest(exact), rtol: 0 });
  });
});

it.each(["int8", "nf4"] as const)("%s follows a head that is another", async (format) => {
  using model = await open("families/llama-plain/fp32");
  const head = (model as unknown as { lmHead: nn.Linear }).lmHead;
  model.quantizeHead(format);
  logitsOf(model);
  const old = head.weight;
  head.weight = new nn.Parameter(randn([...old.shape], { generator: new Generator(5) }));
  const got = logitsOf(model);
  model.quantizeHead(null);
  model.quantizeHead(format); // made from the new weight alone
  expect(got).toEqual(logitsOf(model));
  old.dispose();
});

describe("int8", () => {
  it("stays within what the rounding of weights and states can make", async () => {
    using model = await open("families/llama-plain/fp32");
    const weight = headOf(model, "lm_head.weight");
    const [vocab, hidden] = weight.shape as [number, number];
    const [w, h, exact] = [weight.floatsSync(), statesOf(model), logitsOf(model)];
    model.quantizeHead("int8");
    const got = logitsOf(model);
    let [most, worst] = [0, 0];
    for (let row = 0; row < prompt.length; row++) {
      const state = h.subarray(row * hidden, (row + 1) * hidden);
      for (let n = 0; n < vocab; n++) {
        const line = w.subarray(n * hidden, (n + 1) * hidden);
        const [dw, dh] = [largest(line) / 254, largest(state) / 254];
        let bound = hidden * dw * dh;
        for (let k = 0; k < hidden; k++) bound += Math.abs(state[k]!) * dw + Math.abs(line[k]!) * dh;
        const apart = Math.abs(got[row * vocab + n]! - exact[row * vocab + n]!);
        worst = Math.max(worst, apart / bound);
        most = Math.max(most, apart);
      }
    }
    expect(worst).toBeLessThan(1);
    expect(most).toBeGreaterThan(0);
  });
});

// By how much a head changes the perplexity of models/llama, a random Llama of 2 layers, hidden size 128 and 512 ids.
const isGpu = process.env["BNB_TEST_DEVICE"] !== undefined;
const why = isGpu ? " (skipped: the texts are long for an emulated GPU, and the format is what changes it)" : "";
describe.skipIf(isGpu)(`perplexity${why}`, () => {
  const { results } = JSON.parse(readFileSync(fixturePath("perplexity/perplexity.json"), "utf8"));
  const known = readSafetensors("perplexity/tokens_and_nll.safetensors");
  const idsOf = (text: string) => Int32Array.from(toNumbers(known.get(text)!));

  it.each([
    // Bounds for the text that the float model drew, which on the whole is most likely to itself, and for one that fits
    // no model. Measured:
    ["fp32", "int8", 0.001, 0.001], // +0.06 %, -0.02 %
    ["fp32", "nf4", 0.025, 0.01], //   +2.04 %, +0.66 %
    ["nf4", "nf4", 0.015, 0.01], //    +1.13 %, +0.55 %
  ] as const)(
    "of %s layers with a head in %s stays near that with a float head",
    async (variant, format, drawn, other) => {
      using model = await open(`models/llama/${variant}`);
      model.quantizeHead(format);
      for (const [text, bound] of [["sampled_from_fp32", drawn] as const, ["text", other] as const]) {
        const { perplexity } = await model.score(idsOf(text));
        const change = perplexity / results[variant][text].perplexity - 1; // transformers' float head
        expect(Math.abs(change)).toBeLessThan(bound);
        expect(Math.abs(change)).toBeGreaterThan(1e-5);
      }
    },
  );

  it.each(["nf4", "fp4"] as const)("with a head in %s is that of the plain rules, in float64", async (format) => {
    using model = await open("models/llama/fp32");
    const weight = headOf(model, "lm_head.weight");
    const [vocab, hidden] = weight.shape as [number, number];
    const { codes, absmax } = quantize4(weight.floatsSync(), 64, format);
    const w = dequantize4(codes, absmax, 64, format);
    const ids = idsOf("sampled_from_fp32").subarray(0, 96);
    const states = tidy(() => noGrad(() => model.hiddenStates(tensor([[...ids]], { dtype: "int32" })).floatsSync()));
    const expected = Array.from(ids.subarray(1), (next, row) => {
      const state = states.subarray(row * hidden, (row + 1) * hidden);
      const logits = Array.from({ length: vocab }, (_, n) =>
        state.reduce((sum, x, k) => sum + x * w[n * hidden + k]!, 0),
      );
      const most = Math.max(...logits);
      return logits[next]! - most - Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - most), 0));
    });
    const { logprobs, perplexity } = await model.quantizeHead(format).score(ids);
    expectClose(logprobs, Float32Array.from(expected), { atol: 1e-4, rtol: 0 });
    const mean = expected.reduce((sum, logprob) => sum + logprob, 0) / expected.length;
    expect(perplexity / Math.exp(-mean)).toBeCloseTo(1, 5);
  });
});

describe("the model", () => {
  it("trains its float head, and saves what it would without a copy", async () => {
    const folders = [join(root, "plain"), join(root, "copy")];
    using model = await open("families/llama-plain/fp32");
    await savePretrained(model, folders[0]!);
    const before = tidy(() => model.forward(idsFor(model)).floatsSync());
    model.quantizeHead("int8");
    expect(tidy(() => model.forward(idsFor(model)).floatsSync())).toEqual(before);
    expect(logitsOf(model)).not.toEqual(before);
    expect(model.namedParameters().filter(([name]) => /head/i.test(name))).toHaveLength(1);
    await savePretrained(model, folders[1]!);
    const [plain, copy] = folders.map((folder) => readFileSync(join(folder, "model.safetensors")));
    expect(copy!.equals(plain!)).toBe(true);
  });

  it("says and counts what it has, and frees it", async () => {
    const before = memory();
    const model = await AutoModelForCausalLM.fromPretrained(fixturePath("families/llama-plain/fp32"), {
      quantizeHead: "nf4",
      quantizationConfig: new BitsAndBytesConfig({ loadIn4bit: true }),
    });
    expect(model.headFormat).toBe("nf4");
    const weight = headOf(model, "lm_head.weight");
    const withCopy = model.memoryFootprint();
    const text = await model.complete([1, 2, 3], { maxNewTokens: 4 });
    model.quantizeHead("int8").quantizeHead(null);
    expect(model.headFormat).toBe(null);
    expect(withCopy - model.memoryFootprint()).toBe(weight.size / 2 + (weight.size / 64) * 4);
    expect(text[0]?.tokens).toHaveLength(4);
    model.quantizeHead("int8");
    model.dispose();
    expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
  });

  it("is clear about what it cannot do", async () => {
    using model = (await open("families/llama-plain/fp32")) as LlamaForCausalLM;
    expect(() => model.quantizeHead("int4" as "int8")).toThrow(
      'quantizeHead: format must be one of int8, nf4, fp4 or null, got "int4"',
    );
    noGrad(() =>
      copyInto(headOf(model, "lm_head.weight"), tensor([new Array(32).fill(Number.NaN)], { device: model.device })),
    );
    const before = memory();
    for (const format of ["nf4", "int8"] as const) {
      expect(() => model.quantizeHead(format)).toThrow(
        "quantizeHead: the weight of the head must be finite, got NaN at 0",
      );
    }
    expect(memory().liveBytes).toBe(before.liveBytes);
    expect(model.headFormat).toBe(null);
    const quantizationConfig = new BitsAndBytesConfig({ loadIn8bit: true, llmInt8SkipModules: [] });
    const options = { quantizationConfig, quantizeHead: "int8" } as const;
    await expect(
      AutoModelForCausalLM.fromPretrained(fixturePath("families/llama-plain/fp32"), options),
    ).rejects.toThrow("quantizeHead: the output projection must be a Linear, got Linear8bitLt");
  });
});
