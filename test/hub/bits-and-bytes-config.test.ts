// BitsAndBytesConfig: Python's defaults, the file's keys in their order, and what is refused; and which modules a skip list
// names, as transformers resolves it.
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import type { BitsAndBytesConfigOptions } from "../../src/hub/bits-and-bytes-config.js";
import { BitsAndBytesConfig } from "../../src/hub/bits-and-bytes-config.js";
import { parseConfig, quantizationText, withKeys } from "../../src/hub/config-text.js";
import { linearPattern } from "../../src/hub/linear-pattern.js";
import { defaultSkips } from "../../src/hub/quantize-linears.js";
import { SkipList } from "../../src/hub/skip-patterns.js";
import { LlamaForCausalLM } from "../../src/index.js";
import { fixturePath } from "../helpers/safetensors.js";

afterEach(() => vi.restoreAllMocks());

const defaults = {
  _load_in_4bit: false,
  _load_in_8bit: false,
  bnb_4bit_compute_dtype: "float32",
  bnb_4bit_quant_storage: "uint8",
  bnb_4bit_quant_type: "fp4",
  bnb_4bit_use_double_quant: false,
  llm_int8_enable_fp32_cpu_offload: false,
  llm_int8_has_fp16_weight: false,
  llm_int8_skip_modules: null,
  llm_int8_threshold: 6,
  load_in_4bit: false,
  load_in_8bit: false,
  quant_method: "bitsandbytes",
};

describe("toJSON and fromJSON", () => {
  it("has Python's defaults, in the order of its files", () => {
    const json = new BitsAndBytesConfig().toJSON();
    expect(Object.entries(json)).toEqual(Object.entries(defaults));
    expect(BitsAndBytesConfig.fromJSON({})).toEqual(new BitsAndBytesConfig());
  });

  const settings: BitsAndBytesConfigOptions[] = [
    {
      loadIn4bit: true,
      bnb4bitComputeDtype: "bfloat16",
      bnb4bitQuantType: "nf4",
      bnb4bitUseDoubleQuant: true,
      bnb4bitQuantStorage: "float16",
      llmInt8SkipModules: ["lm_head", "é"],
      llmInt8EnableFp32CpuOffload: true,
    },
    { loadIn8bit: true, llmInt8Threshold: 2.5, llmInt8HasFp16Weight: true, llmInt8SkipModules: [] },
  ];
  it.each(settings)("%j comes back", (options) => {
    const config = new BitsAndBytesConfig(options);
    expect(config).toMatchObject(options);
    expect(BitsAndBytesConfig.fromJSON(config.toJSON())).toEqual(config);
    expect(BitsAndBytesConfig.fromJSON(JSON.parse(quantizationText(config)))).toEqual(config);
  });

  it.each(["nf4", "fp4", "int8"])("writes what transformers wrote for %s", (variant) => {
    const text = readFileSync(fixturePath(`models/llama/${variant}/config.json`), "utf8");
    const plain = readFileSync(fixturePath("models/llama/fp32/config.json"), "utf8");
    const config = BitsAndBytesConfig.fromJSON(parseConfig(text)["quantization_config"] as Record<string, unknown>);
    expect(withKeys(plain, { quantization_config: quantizationText(config) })).toBe(text);
    expect(withKeys(text, { quantization_config: null })).toBe(plain);
  });

  it("writes a list of modules as Python does", () => {
    const text = quantizationText(new BitsAndBytesConfig({ loadIn4bit: true, llmInt8SkipModules: ["a", "b\u00e9"] }));
    expect(text).toContain(
      '    "llm_int8_skip_modules": [\n      "a",\n      "b\\u00e9"\n    ],\n    "llm_int8_threshold": 6.0,\n',
    );
    expect(text).toMatch(/^\{\n {4}"_load_in_4bit": true,\n.*\n {2}\}$/s);
  });

  it("understands dtypes of older files and ignores unknown keys with a warning", () => {
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    const config = BitsAndBytesConfig.fromJSON({
      load_in_4bit: true,
      bnb_4bit_compute_dtype: "torch.bfloat16",
      bnb_4bit_blocksize: 32,
      quant_method: "bitsandbytes",
    });
    expect(config.bnb4bitComputeDtype).toBe("bfloat16");
    expect(warn).toHaveBeenCalledExactlyOnceWith("quantization_config: ignored, because unknown: bnb_4bit_blocksize", {
      type: "BnbWarning",
      code: "BNB_UNKNOWN_KEY",
    });
  });

  it.each([
    [{ load_in_4bit: 1 }, "quantization_config: load_in_4bit must be true or false, got 1"],
    [{ bnb_4bit_quant_type: "int4" }, 'quantization_config: bnb_4bit_quant_type must be one of fp4, nf4, got "int4"'],
    [{ load_in_4bit: true, load_in_8bit: true }, "must not both be true: choose one"],
    [
      { llm_int8_skip_modules: ["b(?=a)a"] },
      "must look ahead only where it begins, not back, nor repeat thousands of times",
    ],
    [
      { llm_int8_skip_modules: ["(a)\\1"] },
      "must look ahead only where it begins, not back, nor repeat thousands of times",
    ],
    [
      { llm_int8_skip_modules: ["(((){999}){999}){999}"] },
      "must look ahead only where it begins, not back, nor repeat thousands of times",
    ],
    [
      { llm_int8_skip_modules: ["((a{99}){99}){99}"] },
      "must look ahead only where it begins, not back, nor repeat thousands of times",
    ],
    [{ llm_int8_skip_modules: ["a".repeat(257)] }, "has 257 characters, at most 256 may be"],
    [{ llm_int8_skip_modules: ["("] }, "must be a regular expression"],
  ])("%j in a file is refused", (json, message) => {
    const read = () => BitsAndBytesConfig.fromJSON(json);
    expect(read).toThrow(message);
    expect(read).toThrow(expect.objectContaining({ code: "ERR_BNB_FORMAT" }));
  });
});

describe("settings that contradict each other", () => {
  const cases: [BitsAndBytesConfigOptions, string][] = [
    [{ loadIn4bit: true, loadIn8bit: true }, "loadIn4bit and loadIn8bit must not both be true: choose one"],
    [{ bnb4bitQuantType: "nf4" }, "bnb4bitQuantType needs loadIn4bit: true, which is not set: set it, or leave"],
    [{ loadIn8bit: true, bnb4bitUseDoubleQuant: false }, "bnb4bitUseDoubleQuant needs loadIn4bit: true"],
    [{ loadIn4bit: true, llmInt8Threshold: 6 }, "llmInt8Threshold needs loadIn8bit: true, which is not set"],
    [{ loadIn8bit: true, llmInt8Threshold: -1 }, "llmInt8Threshold must be a finite number of at least 0, got -1"],
  ];
  it.each(cases)("%j", (options, message) => {
    expect(() => new BitsAndBytesConfig(options)).toThrow(`BitsAndBytesConfig: ${message}`);
  });

  it("Python's spelling is recognized", () => {
    const wrong = { load_in_4bit: true } as BitsAndBytesConfigOptions;
    expect(() => new BitsAndBytesConfig(wrong)).toThrow("got load_in_4bit (did you mean loadIn4bit?)");
  });
});

describe("the skip list", () => {
  const names = [
    "model.embed_tokens",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.mlp.down_proj",
    "model.layers.10.mlp.down_proj",
    "model.norm",
    "lm_head",
    "score",
  ];
  // What Python's `re.match(pattern + ".", name) or re.match(pattern, name) or name.endswith(pattern)` says.
  const table: [pattern: string, skipped: number[]][] = [
    ["lm_head", [5]],
    ["lm", [5]],
    ["head", [5]],
    ["model.layers.1", [1, 2, 3]],
    ["model.layers.1.", [1, 2, 3]],
    ["model\\.layers\\.1\\.", [1, 2]],
    ["down_proj", [2, 3]],
    [".*down_proj", [2, 3]],
    ["mlp", []],
    ["model.layers.\\d+.mlp", [2, 3]],
    ["(score|lm_head)", [5, 6]],
    ["model.norm$", [4]],
    ["orm", [4]],
    ["", [0, 1, 2, 3, 4, 5, 6]],
    ["a|lm_head", [5]],
  ];
  it.each(table)("%j", (pattern, skipped) => {
    const list = new SkipList([pattern]);
    expect(names.flatMap((name, i) => (list.skips(name) ? [i] : []))).toEqual(skipped);
    expect(list.unmatched).toEqual(skipped.length === 0 ? [pattern] : []);
  });

  it("is by default the head, both ends of a tie and the last module", () => {
    const sizes = { vocabSize: 8, hiddenSize: 4, intermediateSize: 4, numHiddenLayers: 1, numAttentionHeads: 1 };
    const model = new LlamaForCausalLM(sizes);
    expect(defaultSkips(model, { head: "lm_head", tied: {} })).toEqual(["lm_head"]);
    const tied = new LlamaForCausalLM({ ...sizes, tieWordEmbeddings: true });
    const ends = { "lm_head.weight": "model.embed_tokens.weight" };
    expect(defaultSkips(tied, { head: "lm_head", tied: ends })).toEqual([
      "lm_head",
      "model.embed_tokens",
      "model.norm",
    ]);
    model.dispose();
    tied.dispose();
  });

  it("of a user must hold regular expressions", () => {
    expect(() => new SkipList(["["])).toThrow('each of llmInt8SkipModules must be a regular expression, got "["');
  });

  it.each(["(\\w|\\w|\\.)*!", "([ab.]+)+!", "((.*)*)*!", `${".*".repeat(80)}!`, "(a|b|ab|\\.)*(b\\.|a)*!"])(
    "takes no time for %j of a file",
    (pattern) => {
      const config = BitsAndBytesConfig.fromJSON({ load_in_4bit: true, llm_int8_skip_modules: [pattern] });
      const list = new SkipList(config.llmInt8SkipModules!);
      const path = "ab.".repeat(40);
      expect([list.skips(path), list.skips(`${path}!`)]).toEqual([false, true]);
    },
  );

  it("matches from the start as regular expressions do", () => {
    const atom = fc.constantFrom("a", "b", ".", "\\.", "\\d", "\\w", "[ab]", "[^a1]", "[a-]", "1", "-");
    const times = fc.constantFrom("", "", "*", "+", "?", "{2}", "{1,2}", "{0}", "{2,}", "*?", "{1,2}?");
    const { pattern } = fc.letrec<{ pattern: string }>((tie) => ({
      pattern: fc.oneof(
        { maxDepth: 4 },
        atom,
        fc.constantFrom("", "^", "$", "\\b", "\\B"),
        fc.tuple(atom, times).map((parts) => parts.join("")),
        fc.tuple(tie("pattern"), tie("pattern")).map((parts) => parts.join("")),
        fc.tuple(tie("pattern"), tie("pattern")).map((parts) => parts.join("|")),
        fc
          .tuple(fc.constantFrom("(", "(?:"), tie("pattern"), times)
          .map(([open, own, more]) => `${open}${own})${more}`),
      ),
    }));
    const text = fc.array(fc.constantFrom("a", "b", ".", "1", "-"), { maxLength: 8 }).map((parts) => parts.join(""));
    const looks = fc.array(
      fc.tuple(fc.constantFrom("(?=", "(?!"), pattern).map(([open, own]) => `${open}${own})`),
      {
        maxLength: 2,
      },
    );
    fc.assert(
      fc.property(looks, pattern, text, (before, own, path) => {
        const source = before.length > 0 ? `${before.join("")}(?:${own})` : own;
        const [start, whole] = [linearPattern(source), linearPattern(source, { whole: true })];
        expect(start, source).not.toBeNull();
        expect(start!(path), source).toBe(new RegExp(`^(?:${source})`).test(path));
        expect(whole!(path), source).toBe(new RegExp(`^(?:${source})$`).test(path));
      }),
      { seed: 20261128, numRuns: 3000 },
    );
  });
});
