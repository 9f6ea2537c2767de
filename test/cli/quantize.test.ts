// quantize, dequantize and eval: their files against savePretrained, their errors and perplexities against float64.
import {
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { Interrupts } from "../../src/cli/interrupts.js";
import { main } from "../../src/cli/main.js";
import { compareModels, logits } from "../../src/cli/verify.js";
import type { BitsAndBytesConfigOptions, QuantizationLoss } from "../../src/hub/index.js";
import { openCheckpoint } from "../../src/hub/index.js";
import {
  AutoModelForCausalLM,
  BitsAndBytesConfig,
  dequantizeModel,
  memory,
  noGrad,
  savePretrained,
  tensor,
  tidy,
} from "../../src/index.js";
import type { CausalLM, FromPretrainedOptions } from "../../src/models/index.js";
import { bnb, bnbJson, Sink } from "../helpers/bnb.js";
import { dequantize4, quantize4 } from "../reference/quantize.js";

const root = mkdtempSync(join(tmpdir(), "bnb-quantize-"));
afterAll(() => rmSync(root, { recursive: true }));
afterEach(() => vi.unstubAllEnvs());
let made = 0;
const newPath = () => join(root, String(made++));
const model = newPath();
const text = join(root, "text.txt");
const words = "Weights are kept in few bits, and activations in many: naïve, but it works. ".repeat(4);
beforeAll(async () => {
  const sizes = ["--hidden-size", "64", "--intermediate-size", "96", "--positions", "64", "--device", "cpu"];
  expect(await bnb("make-model", model, ...sizes)).toMatchObject({ code: 0 });
  writeFileSync(text, words);
});

const load = (folder: string, options: FromPretrainedOptions = {}): Promise<CausalLM> =>
  AutoModelForCausalLM.fromPretrained(folder, options);
const contents = (folder: string) =>
  Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), "latin1")]));
const cpu = ["--device", "cpu"];

interface Quantized {
  bytes: number;
  layers: QuantizationLoss[];
  isVerified?: boolean;
}

describe("quantize", () => {
  const nf4: BitsAndBytesConfigOptions = { loadIn4bit: true, bnb4bitQuantType: "nf4" };
  it.each<[args: string[], config: BitsAndBytesConfigOptions, blocksize?: number]>([
    [[], { ...nf4, bnb4bitUseDoubleQuant: false }],
    [["--nf4", "--double-quant"], { ...nf4, bnb4bitUseDoubleQuant: true }],
    [["--fp4", "--blocksize", "128"], { loadIn4bit: true, bnb4bitQuantType: "fp4", bnb4bitUseDoubleQuant: false }, 128],
    [
      ["--compute-dtype", "bfloat16", "--skip", "q_proj", "--skip", "lm_head"],
      {
        ...nf4,
        bnb4bitUseDoubleQuant: false,
        bnb4bitComputeDtype: "bfloat16",
        llmInt8SkipModules: ["q_proj", "lm_head"],
      },
    ],
    [["--int8", "--threshold", "4"], { loadIn8bit: true, llmInt8Threshold: 4 }],
  ])("%s writes the bytes that savePretrained does", async (args, config, blocksize) => {
    const [out, want] = [newPath(), newPath()];
    const { layers, isVerified } = await bnbJson<Quantized>("quantize", model, out, ...args, "--verify", ...cpu);
    const quantized = await load(model, {
      quantizationConfig: new BitsAndBytesConfig(config),
      ...(blocksize !== undefined && { blocksize }),
    });
    await savePretrained(quantized, want);
    expect(contents(out)).toEqual(contents(want));
    expect(layers).toHaveLength(config.llmInt8SkipModules ? 12 : 14);
    expect(isVerified).toBe(true);
    quantized.dispose();
  });

  it.each([
    ["nf4", 64],
    ["fp4", 32],
  ] as const)("says what layers lose to %s in blocks of %i", async (type, blocksize) => {
    const out = newPath();
    const options = ["--blocksize", String(blocksize), "--dtype", "float32"];
    const { layers } = await bnbJson<Quantized>("quantize", model, out, `--${type}`, ...options, ...cpu);
    const source = await openCheckpoint(model);
    for (const { name, format, shape, rmse, relative } of layers) {
      const weight = await source.load(`${name}.weight`, { dtype: "float32" });
      const x = weight.floatsSync();
      expect([format, shape]).toEqual([type, [...weight.shape]]);
      weight.dispose();
      const { codes, absmax } = quantize4(x, blocksize, type);
      const back = dequantize4(codes, absmax, blocksize, type);
      const mean = (of: (i: number) => number) => x.reduce((sum, _, i) => sum + of(i) ** 2, 0) / x.length;
      const error = Math.sqrt(mean((i) => x[i]! - back[i]!));
      expect(rmse / error).toBeCloseTo(1, 4);
      expect(relative / (error / Math.sqrt(mean((i) => x[i]!)))).toBeCloseTo(1, 4);
    }
    await source.close();
  });

  it("prints the kinds of layers together, or each with --all", async () => {
    const before = memory();
    const { code, stdout, stderr } = await bnb("quantize", model, newPath(), ...cpu);
    expect([code, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(
      /^ {2}model\.layers\.\*\.mlp\.up_proj \(2\) +nf4 +96 × 64 +\d\.\d\de-3 +\d\.\d\d % +\d\.\d\d %$/m,
    );
    expect(stdout).toMatch(/: 14 layers of 61,440 weights quantized, the largest error \d+\.\d\d % \(model\.layers/);
    const each = await bnb("quantize", model, newPath(), "--all", ...cpu);
    expect(each.stdout).toMatch(/^ {2}model\.layers\.1\.mlp\.up_proj +nf4 /m);
    expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
  });

  it("finds a model that differs from what was saved", async () => {
    const other = newPath();
    await bnb("make-model", other, "--hidden-size", "64", "--intermediate-size", "96", "--seed", "2", ...cpu);
    const [a, b] = [await load(model), await load(other)];
    await expect(compareModels(a, b)).rejects.toThrow("differs from the one in memory: model.embed_tokens.weight");
    await expect(compareModels(a, a)).resolves.toMatchObject({ tensors: 21 });
    a.dispose();
    b.dispose();
  });

  it("refuses what contradicts itself, before anything is loaded", async () => {
    const quantized = newPath();
    await bnb("quantize", model, quantized, "--int8", ...cpu);
    const out = newPath();
    const cases: [args: string[], message: string][] = [
      [[model, out, "--nf4", "--int8"], "--nf4 and --int8: give one of them"],
      [[model, out, "--int8", "--double-quant"], "--double-quant is of 4-bit formats: leave it out"],
      [[model, out, "--int8", "--blocksize", "64"], "--blocksize is of 4-bit formats: leave it out"],
      [[model, out, "--threshold", "6"], "--threshold is of --int8: leave it out"],
      [[model, out, "--blocksize", "100"], "--blocksize must be one of 32, 64, "],
      [[model, model], `${model} is the folder of the model itself; give another for the result`],
      [[model, quantized], `${quantized} is not empty; give a new folder, or --force to write into it`],
      [[quantized, out], `${quantized} is quantized already; bnb dequantize makes floats of it`],
      [
        [model, out, "--skip", "lm_head", "--skip", "q_projj", "--skip", "layers.9.mlp"],
        "--skip must name modules of the model, got q_projj (did you mean q_proj?), layers.9.mlp",
      ],
      [[model, out, "--skip", "model", "--skip", "lm_head"], `${model} has no linear layer to quantize`],
    ];
    for (const [args, message] of cases) {
      const { code, stdout, stderr } = await bnb("quantize", ...args);
      expect([code, stdout]).toEqual([2, ""]);
      expect(stderr).toContain(`bnb quantize: ${message}`);
    }
    expect(await bnb("quantize", "./nothing", out)).toMatchObject({
      code: 1,
      stderr: "bnb quantize: ./nothing: is no folder\n",
    });
    expect(() => statSync(out)).toThrow("ENOENT");
  });

  it.each(["Loading", "Saving"])("leaves nothing when Ctrl-C comes while it is %s", async (stage) => {
    vi.stubEnv("CI", "");
    const [interrupts, stdout, before] = [new Interrupts(), new Sink(), memory()];
    const stderr = Object.assign(new Sink(), { isTTY: true });
    stderr.write = (text) => {
      stderr.text += text;
      if (text.includes(stage)) interrupts.fire();
      return true;
    };
    const out = join(newPath(), "below");
    const code = await main(["quantize", model, out, ...cpu], { stdout, stderr, interrupts });
    expect(code).toBe(130);
    expect(stderr.text).toMatch(/bnb quantize: stopped\n$/);
    expect(stdout.text).toBe("");
    expect(() => statSync(join(out, ".."))).toThrow("ENOENT");
    expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
  });
});

describe("dequantize", () => {
  it.each([["--nf4"], ["--int8"]])("of %s saves the floats that the model computes with", async (format) => {
    const [quantized, out, want] = [newPath(), newPath(), newPath()];
    await bnb("quantize", model, quantized, format, ...cpu);
    const { layers } = await bnbJson<{ layers: number }>("dequantize", quantized, out, ...cpu);
    expect(layers).toBe(14);
    const loaded = await load(quantized);
    await savePretrained(dequantizeModel(loaded), want);
    expect(contents(out)).toEqual(contents(want));
    expect(JSON.parse(readFileSync(join(out, "config.json"), "utf8"))).not.toHaveProperty("quantization_config");
    const floats = await load(out);
    expect(floats.stateDict().size).toBe(21);
    expect(floats.dtype).toBe("bfloat16");
    loaded.dispose();
    floats.dispose();
  });

  it("refuses a model of floats, and takes a dtype", async () => {
    const [quantized, out] = [newPath(), newPath()];
    expect((await bnb("dequantize", model, out)).stderr).toMatch(
      `${model} has no quantized layer: it is a float model`,
    );
    await bnb("quantize", model, quantized, ...cpu);
    expect(await bnb("dequantize", quantized, out, "--dtype", "float32", ...cpu)).toMatchObject({ code: 0 });
    const floats = await load(out);
    expect(new Set([...floats.stateDict().values()].map(({ dtype }) => dtype))).toEqual(new Set(["float32"]));
    floats.dispose();
  });
});

interface Evaluated {
  tokens: number;
  context: number;
  formats: { format: string; perplexity: number; change: number; bitsPerByte: number; bytes: number }[];
}

/** Mean of -log p in float64 over windows whose last token is the first of the next. */
function oracle(loaded: CausalLM, ids: readonly number[], context: number): number {
  let sum = 0;
  for (let at = 0; at + 1 < ids.length; at += context) {
    const part = ids.slice(at, at + context + 1);
    const read = part.slice(0, -1);
    const out = tidy(() => noGrad(() => loaded.forward(tensor(read, { dtype: "int32", shape: [1, read.length] }))));
    const values = out.floatsSync();
    const vocab = out.shape[2]!;
    out.dispose();
    read.forEach((_, i) => {
      const row = values.subarray(i * vocab, (i + 1) * vocab);
      const largest = row.reduce((a, b) => Math.max(a, b), -Infinity);
      const total = row.reduce((s, v) => s + Math.exp(v - largest), 0);
      sum += largest + Math.log(total) - row[part[i + 1]!]!;
    });
  }
  return sum / (ids.length - 1);
}

describe("eval", () => {
  it("measures what float64 does, in every format, whatever the last window's length", async () => {
    const html = join(root, "page", "eval.html");
    const options = ["--formats", "float,nf4-dq,int8", "--context", "50", "--dtype", "float32", "--html", html, ...cpu];
    const result = await bnbJson<Evaluated>("eval", model, "--text", text, ...options);
    const ids = [...Buffer.from(words)];
    expect(result).toMatchObject({ tokens: ids.length - 1, context: 50 });
    expect((ids.length - 1) % 50).not.toBe(0);
    const configs = [
      null,
      new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4", bnb4bitUseDoubleQuant: true }),
      new BitsAndBytesConfig({ loadIn8bit: true }),
    ];
    const losses: number[] = [];
    for (const quantizationConfig of configs) {
      const loaded = await load(model, { quantizationConfig, dtype: "float32" });
      losses.push(oracle(loaded, ids, 50));
      loaded.dispose();
    }
    expect(result.formats.map(({ format }) => format)).toEqual(["float", "nf4-dq", "int8"]);
    for (const [i, { perplexity, change, bitsPerByte }] of result.formats.entries()) {
      expect(Math.log(perplexity)).toBeCloseTo(losses[i]!, 5);
      expect(change).toBeCloseTo(Math.exp(losses[i]! - losses[0]!) - 1, 4);
      // A token is a byte here.
      expect(bitsPerByte).toBeCloseTo(losses[i]! / Math.LN2, 4);
    }
    const page = readFileSync(html, "utf8");
    expect(page).toMatch(/^<!doctype html>/);
    expect(page).not.toMatch(/(src|href)=|url\(|@import/);
    for (const { perplexity } of result.formats) expect(page).toContain(`<td>${perplexity.toFixed(3)}</td>`);
  });

  it("prints a table, counts the first tokens only where it is told to, and takes a quantized model as it is", async () => {
    const { stdout } = await bnb("eval", model, "--text", text, "--max-tokens", "20", ...cpu);
    expect(stdout).toMatch(/text\.txt: 19 tokens in windows of 64\n/);
    expect(stdout.match(/^ {2}(float|int8|nf4) +[\d.]+ KiB +\d+\.\d{3} /gm)).toHaveLength(3);
    const quantized = newPath();
    await bnb("quantize", model, quantized, ...cpu);
    const own = await bnbJson<Evaluated>("eval", quantized, "--text", text, "--max-tokens", "20", ...cpu);
    expect(own.formats.map(({ format }) => format)).toEqual(["as it is"]);
    const compared = await bnbJson<Evaluated>("eval", model, "--text", text, "--max-tokens", "20", ...cpu);
    expect(own.formats[0]!.perplexity).toBe(compared.formats[2]!.perplexity);
  });

  it("makes no folder for a page that never comes, and writes through a link", async () => {
    const above = newPath();
    const none = await bnb("eval", "./nosuch", "--text", text, "--html", join(above, "a", "x.html"));
    expect([none.code, existsSync(above)]).toEqual([1, false]);
    mkdirSync(above);
    const [page, link] = [join(above, "page.html"), join(above, "link.html")];
    writeFileSync(page, "old");
    symlinkSync(page, link);
    const options = ["--max-tokens", "9", "--formats", "float", "--html", link, ...cpu];
    expect(await bnb("eval", model, "--text", text, ...options)).toMatchObject({ code: 0 });
    expect(lstatSync(link).isSymbolicLink()).toBe(true);
    expect(readFileSync(page, "utf8")).toMatch(/^<!doctype html>[\s\S]*<\/html>\s*$/);
    expect(readdirSync(above).sort()).toEqual(["link.html", "page.html"]);
  });

  it("says what is wrong with a text, a format, a window or a folder", async () => {
    const [latin, short, bare] = [join(root, "latin.txt"), join(root, "short.txt"), newPath()];
    writeFileSync(latin, Buffer.from([0xe9, 0x20]));
    writeFileSync(short, "a");
    cpSync(model, bare, { recursive: true });
    rmSync(join(bare, "tokenizer.json"));
    const cut = newPath();
    cpSync(model, cut, { recursive: true });
    writeFileSync(join(cut, "tokenizer.json"), '{"version": ');
    const cases: [args: string[], message: string][] = [
      [[model], "--text FILE is missing: the text to measure on"],
      [[model, "--text", "/no/file"], "--text must be a file that can be read, got /no/file: ENOENT"],
      [[model, "--text", latin], `--text must be UTF-8, and ${latin} is not`],
      [[model, "--text", short], "--text must have at least 2 tokens, has 1"],
      [
        [model, "--text", text, "--formats", "float,nf5"],
        "--formats must be one of float, int8, fp4, nf4, nf4-dq, got nf5",
      ],
      [[model, "--text", text, "--context", "65"], "--context must be at most 64, as the model says, got 65"],
      [
        [bare, "--text", text],
        "the model has no tokenizer, which a text needs: its tokenizer.json must be in its folder",
      ],
      [
        [cut, "--text", text],
        "the model has no tokenizer, which a text needs: its tokenizer.json must be in its folder",
      ],
      [[model, "--text", text, "--max-tokens", "1"], '--max-tokens must be a whole number of at least 2, got "1"'],
    ];
    for (const [args, message] of cases) {
      const { code, stdout, stderr } = await bnb("eval", ...args);
      expect(code).not.toBe(0);
      expect(stdout).toBe("");
      expect(stderr).toMatch(`bnb eval: ${message}`);
    }
  });
});

it("logits of verify are those of a short text within the vocabulary", async () => {
  const loaded = await load(model);
  const [all, some] = [logits(loaded), logits(loaded, [1, 260])];
  expect([all.shape, some.shape]).toEqual([
    [1, 8, 259],
    [1, 2, 259],
  ]);
  for (const used of [all, some]) used.dispose();
  loaded.dispose();
});
