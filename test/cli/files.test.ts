// The commands about the files of models, make-model, inspect and estimate, and doctor: what they print against the
// files themselves, against models that were loaded, and against optimizers that took a step.
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { modelBytes, optimizerBytes } from "../../src/cli/measure.js";
import { families } from "../../src/cli/new-config.js";
import { AutoTokenizer, openCheckpoint } from "../../src/hub/index.js";
import {
  AutoModelForCausalLM,
  applyLora,
  BitsAndBytesConfig,
  crossEntropy,
  KvPages,
  memory,
  noGrad,
  tensor,
  tidy,
} from "../../src/index.js";
import { causalFamilies } from "../../src/models/families/index.js";
import { Linear, Linear4bit } from "../../src/nn/index.js";
import { AdamW8bit } from "../../src/optim/index.js";
import { devices } from "../../src/tensor/device.js";
import { bnb, bnbJson } from "../helpers/bnb.js";
import { fixturePath } from "../helpers/safetensors.js";

const root = mkdtempSync(join(tmpdir(), "bnb-files-"));
afterAll(() => rmSync(root, { recursive: true }));
let made = 0;
const newPath = () => join(root, String(made++));
const version = (JSON.parse(readFileSync("package.json", "utf8")) as { version: string }).version;
const cpu = ["--device", "cpu"];

describe("make-model", () => {
  it.each(families)("makes a %s that opens, computes and estimates", async (family) => {
    const out = newPath();
    const sizes = ["--hidden-size", "64", "--intermediate-size", "96", "--kv-heads", "2"];
    const { parameters } = await bnbJson<{ parameters: number }>(
      "make-model",
      out,
      "--family",
      family,
      ...sizes,
      ...cpu,
    );
    const model = await AutoModelForCausalLM.fromPretrained(out);
    const logits = tidy(() => noGrad(() => model.forward(tensor([1, 2, 256], { shape: [1, 3], dtype: "int32" }))));
    expect(logits.shape).toEqual([1, 3, 259]);
    expect([...logits.floatsSync()].every(Number.isFinite)).toBe(true);
    expect(model.parameters().reduce((sum, { size }) => sum + size, 0)).toBe(parameters);
    const { formats } = await bnbJson<{ formats: { weights: number }[] }>("estimate", out);
    expect(formats[0]!.weights).toBe(model.parameters().reduce((sum, { nbytes }) => sum + nbytes, 0));
    logits.dispose();
    model.dispose();
  });

  it("knows every family that opens, and those with images by their language models", () => {
    const own = Object.entries(causalFamilies).filter(([, { languageConfig }]) => !languageConfig);
    expect(families).toEqual(own.map(([type]) => type));
  });

  it("gives the same bytes for a seed, others for another, and what transformers calls its files", async () => {
    const [a, b, c] = [newPath(), newPath(), newPath()];
    for (const [out, seed] of [
      [a, "3"],
      [b, "3"],
      [c, "4"],
    ] as const) {
      expect(await bnb("make-model", out, "--seed", seed, "--layers", "1", ...cpu)).toMatchObject({
        code: 0,
        stderr: "",
      });
    }
    const read = (folder: string) => readdirSync(folder).map((name) => readFileSync(join(folder, name), "latin1"));
    expect(readdirSync(a).sort()).toEqual([
      "config.json",
      "generation_config.json",
      "model.safetensors",
      "tokenizer.json",
      "tokenizer_config.json",
    ]);
    expect(read(b)).toEqual(read(a));
    expect(read(c)).not.toEqual(read(a));
  });

  it("has a tokenizer whose tokens are bytes, and a chat template", async () => {
    const out = newPath();
    await bnb("make-model", out, ...cpu);
    using tokenizer = await AutoTokenizer.fromPretrained(out);
    const text = "Ünï ▁ 🦙\n\t\u0000\u00ad~";
    const ids = await tokenizer.encode(text);
    expect([...ids]).toEqual([...Buffer.from(text)]);
    expect(await tokenizer.decode(ids)).toBe(text);
    const chat = await tokenizer.applyChatTemplate(
      [
        { role: "system", content: "Be brief." },
        { role: "user", content: "Hi" },
      ],
      { addGenerationPrompt: true },
    );
    expect(chat).toBe(
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    );
    const bytes = (part: string) => [...Buffer.from(part)];
    expect([...(await tokenizer.encode("<|im_start|>a<|im_end|><|endoftext|>"))]).toEqual([
      257,
      ...bytes("a"),
      258,
      256,
    ]);
  });

  it("refuses what cannot be made, and leaves nothing of it", async () => {
    const full = newPath();
    mkdirSync(full);
    writeFileSync(join(full, "notes.txt"), "mine");
    const cases: [args: string[], message: string][] = [
      [[full], `${full} is not empty; give a new folder, or --force to write into it`],
      [[join(full, "notes.txt")], `${join(full, "notes.txt")} is a file; give a folder for the model`],
      [[newPath(), "--family", "lama"], "--family must be one of llama, "],
      [[""], "<out> must not be empty"],
      [[newPath(), "--heads", "0"], '--heads must be a whole number of at least 1, got "0"'],
    ];
    for (const [args, message] of cases) {
      const { code, stderr } = await bnb("make-model", ...args);
      expect(code).toBe(2);
      expect(stderr).toMatch(`bnb make-model: ${message}`);
      expect(stderr.split("\n")).toHaveLength(3);
    }
    const odd = newPath();
    const { code, stderr } = await bnb("make-model", odd, "--kv-heads", "3", ...cpu);
    expect([code, stderr.includes("must divide")]).toEqual([2, true]);
    expect(() => statSync(odd)).toThrow("ENOENT");
    const below = join(full, "notes.txt", "model");
    expect((await bnb("make-model", below)).stderr).toMatch(`${below}: cannot be written`);
    expect(await bnb("make-model", full, "--force", ...cpu)).toMatchObject({ code: 0 });
    expect(readFileSync(join(full, "notes.txt"), "utf8")).toBe("mine");
  });
});

interface Inspected {
  weights: { name: string; format: string; shape: number[]; parameters: number; nbytes: number; file: string }[];
  total: { parameters: number; nbytes: number; weights: number };
}

describe("inspect", () => {
  it.each([
    ["fp32", "f32"],
    ["nf4", "nf4, double quant"],
    ["fp4", "fp4"],
    ["int8", "int8"],
  ])("counts %s as a loaded model has it", async (variant, format) => {
    const folder = fixturePath(`models/llama/${variant}`);
    const { weights, total } = await bnbJson<Inspected>("inspect", folder);
    const source = await openCheckpoint(folder);
    const tensors = [...source.names()].map((name) => source.info(name));
    expect(total.nbytes).toBe(tensors.reduce((sum, { nbytes }) => sum + nbytes, 0));
    expect(tensors.map(({ file }) => file)).toEqual(expect.arrayContaining(weights.map(({ file }) => file)));
    await source.close();
    const model = await AutoModelForCausalLM.fromPretrained(folder);
    for (const [path, module] of model.namedModules()) {
      if (!(module instanceof Linear)) continue;
      const weight = weights.find(({ name }) => name === `${path}.weight`)!;
      expect(weight.shape).toEqual([module.outFeatures, module.inFeatures]);
      if (path.endsWith("lm_head")) continue;
      expect(weight.format).toBe(format);
    }
    model.dispose();
    expect(weights.every(({ name }) => name.endsWith(".weight"))).toBe(true);
  });

  it("prints a line for weights that differ in numbers, and every one with --all", async () => {
    const folder = fixturePath("models/llama/nf4");
    const { stdout } = await bnb("inspect", folder);
    expect(stdout).toMatch(
      /^ {2}model\.layers\.\*\.mlp\.up_proj\.weight \(2\) +nf4, double quant +\d+ × \d+ +\d\.\d\d +[\d.]+ KiB$/m,
    );
    const all = await bnb("inspect", folder, "--all");
    expect(all.stdout).toMatch("model.layers.1.mlp.up_proj.weight ");
    const file = await bnb("inspect", join(folder, "model.safetensors"));
    expect(file.stdout).toBe(stdout);
  });

  it("shows names of a file without their control characters, those of errors too", async () => {
    const write = (header: object, bytes: number): string => {
      const path = `${newPath()}.safetensors`;
      const json = Buffer.from(JSON.stringify(header));
      const length = Buffer.alloc(8);
      length.writeBigUInt64LE(BigInt(json.length));
      writeFileSync(path, Buffer.concat([length, json, Buffer.alloc(bytes)]));
      return path;
    };
    const name = "\x1b[31mred\n\tx";
    const tensor = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
    const { code, stdout } = await bnb("inspect", write({ [name]: tensor }, 8));
    expect(code).toBe(0);
    expect(stdout).toMatch(/^ {2}·\[31mred··x +f32 +2 +32\.00 +8 B$/m);
    const broken = await bnb("inspect", write({ [name]: { ...tensor, dtype: "\x1b[2J" } }, 8));
    expect(broken.code).toBe(1);
    expect(stdout + broken.stderr).not.toContain("\x1b");
    expect(broken.stderr).toContain("[31mred");
  });

  it("says what is wrong with a path", async () => {
    expect(await bnb("inspect", "./nothing")).toMatchObject({
      code: 1,
      stdout: "",
      stderr: "bnb inspect: ./nothing: is no folder\n",
    });
    expect((await bnb("inspect", "some/model")).stderr).toMatch(
      /^bnb inspect: some\/model: the cache at .* must hold it, as it is no folder and nothing is downloaded for this/,
    );
    const empty = newPath();
    mkdirSync(empty);
    expect((await bnb("inspect", empty)).stderr).toMatch("must hold model.safetensors or");
    cpSync(fixturePath("models/llama/nf4"), empty, { recursive: true });
    const path = join(empty, "model.safetensors");
    writeFileSync(path, readFileSync(path).subarray(0, 9000));
    const cut = await bnb("inspect", empty);
    expect(cut).toMatchObject({ code: 1, stderr: expect.stringMatching(/^bnb inspect: model.safetensors: .*\n$/) });
    expect((await bnb("inspect", empty, "--debug")).stderr).toMatch(/\n {4}at .*safetensors/);
  });
});

interface Format {
  format: string;
  weights: number;
  kv: number;
  activations: number;
  optimizer: number;
  adapters: number;
  total: number;
  card: string;
}
const estimate = async (...args: string[]) => bnbJson<{ formats: Format[]; parameters: number }>("estimate", ...args);

describe("estimate", () => {
  const configs = {
    int8: new BitsAndBytesConfig({ loadIn8bit: true }),
    nf4: new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" }),
    "nf4, double quant": new BitsAndBytesConfig({
      loadIn4bit: true,
      bnb4bitQuantType: "nf4",
      bnb4bitUseDoubleQuant: true,
    }),
  };

  it.each(["llama31", "gemma2", "gpt2", "phi3-longrope", "mixtral", "falcon", "opt"])(
    "of %s are the bytes of the loaded model, and of its pages",
    async (family) => {
      const folder = fixturePath(`families/${family}/fp32`);
      const alone = newPath();
      mkdirSync(alone);
      cpSync(join(folder, "config.json"), join(alone, "config.json"));
      const { formats } = await estimate(join(alone, "config.json"), "--context", "40", "--batch", "3");
      expect(formats.map(({ format }) => format)).toEqual(["float32", ...Object.keys(configs)]);
      for (const { format, weights, kv } of formats) {
        const quantizationConfig = configs[format as keyof typeof configs] ?? null;
        const model = await AutoModelForCausalLM.fromPretrained(folder, { quantizationConfig });
        // In files, the mean of the scales stands in a layer's JSON.
        const nested = format.endsWith("double quant") ? model.modules().filter((m) => m instanceof Linear4bit) : [];
        expect(weights).toBe(modelBytes(model) + 4 * nested.length);
        const before = memory().liveBytes;
        using pages = new KvPages(model.kvLayout(), { pages: 9, dtype: model.dtype as "float32" });
        expect(kv).toBe(memory().liveBytes - before);
        expect(pages.layer(0).keys.shape[0]).toBe(9);
        model.dispose();
      }
    },
  );

  it("of adapters are those that a step of QLoRA leaves", async () => {
    const out = newPath();
    await bnb("make-model", out, "--hidden-size", "256", "--intermediate-size", "512", ...cpu);
    const { formats } = await estimate(out, "--train", "--rank", "16", "--4bit", "--context", "64");
    const model = await AutoModelForCausalLM.fromPretrained(out, { quantizationConfig: configs.nf4 });
    const targetModules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    const adapters = applyLora(model, { r: 16, targetModules });
    const optimizer = new AdamW8bit(adapters, { lr: 1e-3 });
    const ids = tensor(new Int32Array(64), { shape: [1, 64] });
    tidy(() => crossEntropy(model.forward(ids), ids).backward());
    optimizer.step();
    expect(formats[0]!.adapters).toBe(adapters.reduce((sum, { nbytes }) => sum + nbytes, 0));
    // The tables of the dynamic codes, which all tensors share, are not counted.
    const tables = new Set(
      adapters.flatMap((p) => Object.entries(optimizer.stateOf(p) ?? {}).filter(([key]) => /qmap/.test(key))),
    );
    expect(tables.size).toBeGreaterThanOrEqual(0);
    expect(formats[0]!.optimizer).toBe(optimizerBytes(optimizer, adapters));
    optimizer.dispose();
    ids.dispose();
    model.dispose();
  });

  it("chooses the smallest card, from a config alone, for sizes that no machine here has", async () => {
    const folder = newPath();
    mkdirSync(folder);
    // Llama 3.1 70B and 8B: 70,553,706,496 and 8,030,261,248 parameters, as published.
    const config = {
      model_type: "llama",
      dtype: "bfloat16",
      hidden_size: 8192,
      intermediate_size: 28_672,
      num_hidden_layers: 80,
      num_attention_heads: 64,
      num_key_value_heads: 8,
      vocab_size: 128_256,
      max_position_embeddings: 131_072,
    };
    const write = (json: object) => writeFileSync(join(folder, "config.json"), JSON.stringify(json));
    write(config);
    const large = await estimate(folder, "--context", "8192");
    expect(large.parameters).toBe(70_553_706_496);
    expect(large.formats[0]).toMatchObject({
      weights: 141_107_412_992,
      kv: 8192 * 80 * 2 * 8 * 128 * 2,
      card: "141 GiB (H200)",
    });
    expect(large.formats[3]!.card).toBe("48 GiB (L40S, A6000)");
    expect((await estimate(folder, "--context", "65536")).formats[0]!.card).toBe("several cards");
    write({ ...config, hidden_size: 4096, intermediate_size: 14_336, num_hidden_layers: 32, num_attention_heads: 32 });
    const small = await estimate(folder);
    expect(small.parameters).toBe(8_030_261_248);
    expect(small.formats.map(({ card }) => card)).toEqual([
      "24 GiB (RTX 4090, A10, L4)",
      "12 GiB (RTX 4070)",
      "8 GiB (RTX 4060)",
      "8 GiB (RTX 4060)",
    ]);
    expect((await estimate(folder, "--8bit", "--kv", "int8", "--context", "16")).formats).toMatchObject([
      { format: "int8", kv: 16 * 32 * 2 * 8 * (128 + 4) },
    ]);
    expect((await bnb("estimate", folder, "--context", "200000")).stderr).toMatch(
      "bnb estimate: --context must be at most 131072, as the model says, got 200000\n",
    );
    const { stdout } = await bnb("estimate", folder);
    expect(stdout).toMatch("llama, 8,030,261,248 parameters; generating, 1 × 4,096 tokens");
    expect(stdout).toMatch(/^ {2}nf4, double quant +5\.\d\d +\d\.\d\d GiB +512 MiB .* 8 GiB \(RTX 4060\)$/m);
  });

  it("refuses options that would do nothing", async () => {
    const folder = fixturePath("models/llama/fp32");
    for (const [args, message] of [
      [["--rank", "8"], "--rank is of --train: leave it out"],
      [["--keep-activations"], "--keep-activations is of --train: leave it out"],
      [["--train", "--rank", "abc"], '--rank must be a whole number of at least 1, got "abc"'],
      [["--train", "--kv", "int8"], "--kv is of generating: leave it out with --train"],
      [["--4bit", "--8bit"], "--4bit and --8bit: give one of them"],
      [["--revision", "main"], `--revision is of models of the hub, and ${folder} is a path: leave it out`],
    ] as const) {
      const { code, stdout, stderr } = await bnb("estimate", folder, ...args);
      expect([code, stdout, stderr.split("\n")[0]]).toEqual([2, "", `bnb estimate: ${message}`]);
    }
    expect((await bnb("inspect", folder, "--revision", "x")).stderr).toContain("--revision is of models of the hub");
  });

  it("takes a quantized checkpoint as it is", async () => {
    const folder = fixturePath("models/llama/nf4");
    const { formats } = await estimate(folder);
    expect(formats.map(({ format }) => format)).toEqual(["nf4, double quant", "float32"]);
    const model = await AutoModelForCausalLM.fromPretrained(folder);
    const nested = model.modules().filter((module) => module instanceof Linear4bit);
    expect(formats[0]!.weights).toBe(modelBytes(model) + 4 * nested.length);
    model.dispose();
    expect((await bnb("estimate", folder, "--8bit")).stderr).toMatch("quantized already, as nf4, double quant\n");
  });

  it("says what is wrong with a config", async () => {
    const folder = newPath();
    mkdirSync(folder);
    expect((await bnb("estimate", folder)).stderr).toMatch("config.json: could not be read");
    const wrong = async (text: string) => {
      writeFileSync(join(folder, "config.json"), text);
      const { code, stderr } = await bnb("estimate", folder);
      expect(code).not.toBe(0);
      return stderr;
    };
    expect(await wrong("{")).toMatch("bnb estimate: config.json: is not JSON");
    expect(await wrong('{"model_type": "bort"}')).toMatch("model_type must be one of llama, mistral");
    expect(await wrong('{"model_type": "qwen2"}')).toMatch("hidden_size must be a positive integer, got undefined");
    expect(
      await wrong(
        '{"model_type":"qwen2","hidden_size":64,"num_attention_heads":2,"num_hidden_layers":1000000000,"intermediate_size":64,"vocab_size":9}',
      ),
    ).toMatch("num_hidden_layers is 1000000000, and 10000 are the most that are made");
  });
});

describe("doctor", () => {
  it("names the versions, the devices with their instruction set, and what works", async () => {
    const { code, stdout } = await bnb("doctor");
    expect(code).toBe(0);
    expect(stdout).toContain(version);
    expect(stdout).toContain(process.versions.node);
    expect(stdout).toMatch(/cpu .*(base|avx2|avx_vnni|avx512), \d+ threads/);
    // A GPU with its libraries, or why there is none.
    expect(stdout).toMatch(devices().length > 1 ? /cuda:0 .*\n.*cuBLASLt: / : /^GPU +\w/m);
    expect(stdout.match(/^✓ \S+ computes: NF4 there and back$/gm)).toHaveLength(devices().length);
  });

  it("gives the same as JSON, and says what does not work", async () => {
    const before = process.env["HF_HUB_CACHE"];
    const file = newPath();
    writeFileSync(file, "");
    process.env["HF_HUB_CACHE"] = join(file, "hub");
    try {
      const { code, stdout } = await bnb("doctor", "--json");
      const json = JSON.parse(stdout) as { devices: { device: string }[]; checks: { holds: boolean; found: string }[] };
      expect(json.devices.map(({ device }) => device)).toEqual(devices().map(String));
      expect(code).toBe(1);
      expect(json.checks.at(-1)).toMatchObject({ holds: false, found: expect.stringContaining("set HF_HOME") });
    } finally {
      if (before === undefined) delete process.env["HF_HUB_CACHE"];
      else process.env["HF_HUB_CACHE"] = before;
    }
  });
});
