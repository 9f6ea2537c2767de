// Checkpoints as transformers writes them, opened by their config.json: the logits of transformers, quantized files as
// they are, floats quantized on the way, and saving that gives the bytes back.
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, it, vi } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import { openCheckpoint, saveCheckpoint } from "../../src/hub/index.js";
import {
  AutoModelForCausalLM,
  BitsAndBytesConfig,
  devices,
  Generator,
  LlamaForCausalLM,
  memory,
  nn,
  savePretrained,
  tensor,
  tidy,
} from "../../src/index.js";
import type { FromPretrainedOptions, FromPretrainedProgress } from "../../src/models/index.js";
import type { Linear8bitLt } from "../../src/nn/index.js";
import { Linear, Linear4bit } from "../../src/nn/index.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { fixturePath, readSafetensors, toNumbers } from "../helpers/safetensors.js";

const root = mkdtempSync(join(tmpdir(), "bnb-auto-"));
afterAll(() => rmSync(root, { recursive: true }));
afterEach(() => vi.restoreAllMocks());
let count = 0;
const newFolder = () => join(root, String(count++));
const llama = (variant: string) => fixturePath(`models/llama/${variant}`);
const load = async (path: string, options?: FromPretrainedOptions): Promise<LlamaForCausalLM> =>
  (await AutoModelForCausalLM.fromPretrained(path, options)) as LlamaForCausalLM;

function logitsOf(model: LlamaForCausalLM, ids: ArrayLike<number>): Float32Array {
  const logits = tidy(() => noGrad(() => model.forward(tensor(Int32Array.from(ids), { shape: [1, ids.length] }))));
  const values = logits.floatsSync();
  logits.dispose();
  return values;
}

/** The largest distance relative to the largest value. */
function distance(got: Float32Array, want: Float64Array): number {
  expect(got).toHaveLength(want.length);
  const largest = want.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  return want.reduce((most, value, i) => Math.max(most, Math.abs(value - got[i]!)), 0) / largest;
}

/** A copy of a fixture's folder with an edited config.json. */
function edited(from: string, edit: (config: Record<string, unknown>) => void): string {
  const folder = newFolder();
  cpSync(from, folder, { recursive: true });
  const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8")) as Record<string, unknown>;
  edit(config);
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  return folder;
}

const made: Tensor[] = [];
afterEach(() => {
  for (const t of made.splice(0)) t.dispose();
});
/** A tensor that lives as long as the test. */
function passing(t: Tensor): Tensor {
  made.push(t);
  return t;
}

async function tensorsOf(folder: string): Promise<Map<string, Tensor>> {
  const source = await openCheckpoint(folder);
  const tensors = new Map<string, Tensor>();
  for (const name of source.names()) tensors.set(name, passing(await source.load(name)));
  await source.close();
  return tensors;
}

describe.each(["llama-plain", "llama-linear", "llama-dynamic-ntk", "llama31", "llama-yarn"])("%s", (name) => {
  const expected = readSafetensors(`families/${name}/expected.safetensors`);
  const folder = fixturePath(`families/${name}/fp32`);
  const older = newFolder();
  cpSync(folder, older, { recursive: true });
  cpSync(fixturePath(`families/${name}/config_transformers4.json`), join(older, "config.json"));

  it.each([
    ["as transformers 5 describes it", folder],
    ["as checkpoints on the hub do", older],
  ])("%s, has the logits of transformers", async (_, path) => {
    const model = await load(path);
    for (const i of [0, 1, 2]) {
      const ids = toNumbers(expected.get(`input_ids.${i}`)!);
      expect(distance(logitsOf(model, ids), toNumbers(expected.get(`logits.${i}`)!))).toBeLessThan(1e-4);
    }
    model.dispose();
  });
});

describe("a quantized checkpoint", () => {
  it.each(["nf4", "fp4", "int8"])("of %s loads as it is, and is saved byte for byte", async (variant) => {
    const model = await load(llama(variant));
    const kinds = model.modules().flatMap((module) => (module instanceof Linear ? [module.constructor.name] : []));
    expect(new Set(kinds.slice(0, -1))).toEqual(new Set([variant === "int8" ? "Linear8bitLt" : "Linear4bit"]));
    expect(kinds.at(-1)).toBe("Linear"); // the head
    if (variant !== "int8") {
      const expected = readSafetensors("models/llama/expected.safetensors");
      const ids = toNumbers(expected.get("input_ids")!).subarray(0, 24);
      const want = toNumbers(expected.get(`${variant}.logits`)!).subarray(0, 24 * 512);
      expect(distance(logitsOf(model, ids), want)).toBeLessThan(1e-4);
    }
    const copy = newFolder();
    await savePretrained(model, copy);
    model.dispose();
    expect(readdirSync(copy).sort()).toEqual(["config.json", "generation_config.json", "model.safetensors"]);
    for (const file of readdirSync(copy)) {
      expect([file, readFileSync(join(copy, file)).equals(readFileSync(join(llama(variant), file)))]).toEqual([
        file,
        true,
      ]);
    }
  });

  it("takes from a config what files do not hold", async () => {
    const quantizationConfig = new BitsAndBytesConfig({ loadIn8bit: true, llmInt8Threshold: 2.5 });
    const model = await load(llama("int8"), { quantizationConfig });
    const layer = model.model.layers.at(0).selfAttn.qProj as Linear8bitLt;
    expect([layer.threshold, layer.isQuantized]).toEqual([2.5, true]);
    const copy = newFolder();
    await savePretrained(model, copy);
    model.dispose();
    const [before, after] = [llama("int8"), copy].map((at) => readFileSync(join(at, "config.json"), "utf8"));
    expect(after).toBe(before!.replace('"llm_int8_threshold": 6.0', '"llm_int8_threshold": 2.5'));
  });

  it("refuses a config that says otherwise", async () => {
    const other = new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "fp4", bnb4bitUseDoubleQuant: true });
    await expect(load(llama("nf4"), { quantizationConfig: other })).rejects.toThrow(
      "quantizationConfig: bnb4bitQuantType must be nf4, as the checkpoint is quantized already, got fp4",
    );
    const lying = edited(llama("nf4"), (config) => {
      Object.assign(config["quantization_config"] as object, { load_in_4bit: false, load_in_8bit: true });
    });
    await expect(load(lying)).rejects.toThrow(
      "model.safetensors: the weight of model.layers.0.self_attn.q_proj is nf4, and the quantization config says int8",
    );
  });

  it("never becomes floats", async () => {
    // Without their statistics, codes are integers of the wrong shape; with them, in the place of what is no Linear.
    const tensors = await tensorsOf(llama("int8"));
    const folder = edited(llama("int8"), (config) => delete config["quantization_config"]);
    const name = "model.layers.0.self_attn.q_proj";
    tensors.delete(`${name}.SCB`);
    tensors.delete(`${name}.weight_format`);
    await saveCheckpoint(folder, tensors);
    await expect(load(folder)).rejects.toThrow(
      `loadCheckpoint: the checkpoint must fit the model, got: "${name}.weight" must be float32, float16 or bfloat16, got int8`,
    );
    const norm = await tensorsOf(llama("nf4"));
    norm.set("model.norm.SCB", passing(tensor([1])));
    await saveCheckpoint(folder, norm);
    await expect(load(folder)).rejects.toThrow(
      'model.safetensors: tensor "model.norm.SCB" belongs to a quantized weight, and the model has no linear layer there',
    );
  });
});

describe("quantizing while loading", () => {
  const nf4 = new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4", bnb4bitUseDoubleQuant: true });

  it("gives the tensors and the config that transformers saves", async () => {
    const model = await load(llama("fp32"), { quantizationConfig: nf4 });
    const copy = newFolder();
    await savePretrained(model, copy);
    model.dispose();
    expect(readFileSync(join(copy, "config.json"), "utf8")).toBe(
      readFileSync(join(llama("nf4"), "config.json"), "utf8"),
    );
    const [got, want] = [copy, llama("nf4")].map((at) => readSafetensors(join(at, "model.safetensors")));
    expect([...got!.keys()]).toEqual([...want!.keys()]);
    for (const [name, { dtype, shape, bytes }] of want!) {
      const mine = got!.get(name)!;
      if (name.includes("quant_state")) {
        // The mean of the scales may differ in its last bit, and with it a few codes of the scales.
        const [a, b] = [mine.bytes, bytes].map((json) => JSON.parse(Buffer.from(json).toString()));
        expect(a).toEqual({ ...b, nested_offset: expect.closeTo(b.nested_offset, 6) });
        continue;
      }
      expect([name, mine.dtype, mine.shape]).toEqual([name, dtype, shape]);
      if (!name.includes("absmax")) expect([name, Buffer.from(mine.bytes).equals(bytes)]).toEqual([name, true]);
    }
  });

  it("in 8 bit gives the codes that transformers saves", async () => {
    const model = await load(llama("fp32"), { quantizationConfig: new BitsAndBytesConfig({ loadIn8bit: true }) });
    const got = model.stateDict();
    for (const [name, { dtype, values }] of readSafetensors("models/llama/int8/model.safetensors")) {
      const mine = got.get(name)!;
      expect([name, mine.dtype]).toEqual([name, dtype]);
      if (dtype !== "int8") continue;
      // Weights are rounded to float16 there before they are quantized: a code may be its neighbour.
      const [a, b] = [mine.dataSync(), values as Int8Array];
      expect(b.every((code, i) => Math.abs(code - a[i]!) <= 1)).toBe(true);
      expect(b.filter((code, i) => code !== a[i]).length / b.length).toBeLessThan(0.02);
    }
    model.dispose();
  });

  it("skips what the config names, and warns of a pattern that names nothing", async () => {
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    const skip = new BitsAndBytesConfig({
      loadIn4bit: true,
      llmInt8SkipModules: ["down_proj", "model.layers.0", "gone"],
    });
    const model = await load(llama("fp32"), { quantizationConfig: skip });
    const quantized = model.namedModules().flatMap(([path, module]) => (module instanceof Linear4bit ? [path] : []));
    expect(
      quantized.every(
        (path) => path === "lm_head" || (path.startsWith("model.layers.1") && !path.endsWith("down_proj")),
      ),
    ).toBe(true);
    expect(quantized).toHaveLength(7);
    expect(warn).toHaveBeenCalledExactlyOnceWith('llmInt8SkipModules: no module matches "gone"', {
      type: "BnbWarning",
      code: "BNB_UNMATCHED_PATTERN",
    });
    model.dispose();
  });

  it("needs no more than the model and its two largest tensors", async () => {
    const largest = 512 * 128 * 4;
    const { tensors, liveBytes } = memory();
    let most = 0;
    const measure = () => {
      most = Math.max(most, memory().liveBytes - liveBytes);
    };
    const model = await load(llama("fp32"), { quantizationConfig: nf4, onProgress: measure });
    const own = memory().liveBytes - liveBytes;
    expect(most).toBeLessThanOrEqual(own + 2 * largest);
    expect(own).toBeLessThan(800_000); // the floats have 1.6 MB
    model.dispose();
    expect(memory().tensors).toBe(tensors);
  });

  it("leaves nothing when it fails half way or is aborted", async () => {
    const broken = newFolder();
    const weights = await tensorsOf(llama("fp32"));
    const bad = new Float32Array(352 * 128);
    bad[77] = Number.NaN;
    weights.set("model.layers.1.mlp.up_proj.weight", passing(tensor(bad, { shape: [352, 128] })));
    await saveCheckpoint(broken, weights);
    cpSync(join(llama("fp32"), "config.json"), join(broken, "config.json"));
    const { tensors } = memory();
    await expect(load(broken, { quantizationConfig: nf4 })).rejects.toThrow(
      '"model.layers.1.mlp.up_proj.weight" must be finite, got NaN at 77',
    );
    const abort = new AbortController();
    const onProgress = (progress: FromPretrainedProgress) => {
      if (progress.stage === "load" && progress.tensors === 3) abort.abort();
    };
    const aborted = load(llama("fp32"), { onProgress, signal: abort.signal });
    await expect(aborted).rejects.toMatchObject({ code: "ERR_BNB_ABORTED" });
    expect(memory().tensors).toBe(tensors);
  });
});

describe("ties", () => {
  const tied = async (head: ((embedding: Tensor) => Tensor) | null, keepEmbedding = true) => {
    const folder = edited(fixturePath("families/llama-plain/fp32"), (config) => {
      config["tie_word_embeddings"] = true;
    });
    const tensors = await tensorsOf(folder);
    const embedding = tensors.get("model.embed_tokens.weight")!;
    if (head) tensors.set("lm_head.weight", head(embedding));
    else tensors.delete("lm_head.weight");
    if (!keepEmbedding) tensors.delete("model.embed_tokens.weight");
    await saveCheckpoint(folder, tensors);
    return folder;
  };

  it("stay ties, whether the file has one end, the other, or both", async () => {
    const results = [];
    for (const folder of [await tied(null), await tied((t) => t), await tied((t) => t, false)]) {
      const model = await load(folder);
      expect(model.lmHead).toBeNull();
      expect(model.stateDict().has("lm_head.weight")).toBe(false);
      results.push(logitsOf(model, [1, 2, 3]));
      model.dispose();
    }
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
  });

  it("that do not agree are refused", async () => {
    const folder = await tied((t) =>
      passing(
        tensor(
          t.floatsSync().map((x, i) => (i === 100 ? x + 1 : x)),
          { shape: t.shape },
        ),
      ),
    );
    await expect(load(folder)).rejects.toThrow(
      'tensors "lm_head.weight" and "model.embed_tokens.weight" must agree, as the config ties them',
    );
  });
});

describe("dtype", () => {
  it("is what config.json says, or what is asked for, and is saved", async () => {
    const model = await load(llama("fp32"), { dtype: "bfloat16" });
    expect(new Set(model.parameters().map(({ dtype }) => dtype))).toEqual(new Set(["bfloat16"]));
    const copy = newFolder();
    await savePretrained(model, copy, { maxShardSize: 200_000 });
    model.dispose();
    expect(readFileSync(join(copy, "config.json"), "utf8")).toBe(
      readFileSync(join(llama("fp32"), "config.json"), "utf8").replace('"dtype": "float32"', '"dtype": "bfloat16"'),
    );
    const again = await load(copy);
    expect(again.dtype).toBe("bfloat16");
    again.dispose();
    const index = JSON.parse(readFileSync(join(copy, "model.safetensors.index.json"), "utf8"));
    expect(index.metadata).toEqual({ total_parameters: 500_352, total_size: 1_000_704 });
  });
});

describe("what cannot be opened", () => {
  const folder = newFolder();
  mkdirSync(folder);
  const withConfig = (config: unknown) => {
    writeFileSync(join(folder, "config.json"), typeof config === "string" ? config : JSON.stringify(config));
    return load(folder);
  };

  it("goes where deviceMap says", async () => {
    const path = fixturePath("families/llama-plain/fp32");
    for (const [deviceMap, device] of [
      ["cpu", devices()[0]],
      ["auto", devices()[1] ?? devices()[0]],
    ] as const) {
      const model = await AutoModelForCausalLM.fromPretrained(path, { deviceMap });
      expect(model.parameters().every((parameter) => parameter.device === device)).toBe(true);
      model.dispose();
    }
    await expect(AutoModelForCausalLM.fromPretrained(path, { deviceMap: "balanced_low_0" })).rejects.toThrow(
      "balanced_low_0",
    );
  });

  it("says what is missing or unknown", async () => {
    await expect(load(folder)).rejects.toThrow("its config.json could not be read: ENOENT");
    await expect(withConfig("{")).rejects.toThrow("config.json: is not JSON");
    await expect(withConfig([1])).rejects.toThrow("config.json: must hold an object");
    await expect(withConfig({ model_type: "mamba" })).rejects.toThrow(
      /^config\.json: model_type must be one of llama.*, got "mamba"$/,
    );
    await expect(withConfig({ model_type: "__proto__" })).rejects.toMatchObject({ code: "ERR_BNB_UNSUPPORTED" });
    const quantized = { model_type: "llama", quantization_config: { quant_method: "gptq" } };
    await expect(withConfig(quantized)).rejects.toThrow(
      'quantization_config: quant_method must be bitsandbytes, got "gptq"',
    );
    await expect(withConfig({ model_type: "llama", dtype: "float8" })).rejects.toThrow(
      'config.json: dtype must be float32, float16 or bfloat16, got "float8"',
    );
  });

  it("names weights that are missing, and warns of those that it has no use for", async () => {
    const source = fixturePath("families/llama-plain/fp32");
    const copy = edited(source, () => undefined);
    const tensors = await tensorsOf(copy);
    tensors.delete("model.norm.weight");
    await saveCheckpoint(copy, tensors);
    await expect(load(copy)).rejects.toThrow('loadCheckpoint: the checkpoint lacks "model.norm.weight"');
    const all = await tensorsOf(source);
    all.set("model.extra.weight", passing(tensor([1])));
    all.set("model.layers.0.self_attn.rotary_emb.inv_freq", passing(tensor([1])));
    await saveCheckpoint(copy, all);
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    (await load(copy)).dispose();
    expect(warn).toHaveBeenCalledExactlyOnceWith(
      "fromPretrained: the model has no use for model.extra.weight",
      expect.objectContaining({ code: "BNB_UNUSED_TENSORS" }),
    );
  });
});

describe("a Llama made in code", () => {
  const sizes = { vocabSize: 32, hiddenSize: 16, intermediateSize: 24, numHiddenLayers: 1, numAttentionHeads: 2 };

  it("is saved with its config, and opens as it was", async () => {
    const config = {
      ...sizes,
      numKeyValueHeads: 1,
      ropeTheta: 500,
      tieWordEmbeddings: true,
      mlpBias: true,
      headDim: 12,
    };
    const model = new LlamaForCausalLM(config, { dtype: "bfloat16" }).eval();
    const folder = newFolder();
    await savePretrained(model, folder);
    const loaded = await load(folder);
    expect(loaded.config).toEqual(model.config);
    expect(loaded.dtype).toBe("bfloat16");
    expect(logitsOf(loaded, [1, 2, 3])).toEqual(logitsOf(model, [1, 2, 3]));
    loaded.dispose();
    model.dispose();
  });

  it("must be of floats, and of plain positions", async () => {
    const folder = newFolder();
    const quantized = new LlamaForCausalLM(sizes);
    nn.replaceLinear(quantized, (inputs, outputs, bias) => new nn.LinearNF4(inputs, outputs, { bias }), {});
    await expect(savePretrained(quantized, folder)).rejects.toThrow(
      "savePretrained: model must come from fromPretrained or fromConfig, or be a float Llama",
    );
    const stretched = await load(fixturePath("families/llama-linear/fp32"));
    expect(() => stretched.config.toJSON()).toThrow(
      "LlamaConfig.toJSON: positions must not be scaled, got linear; load the model by fromPretrained",
    );
    // It has the config.json that it came with.
    await savePretrained(stretched, folder);
    quantized.dispose();
    stretched.dispose();
  });

  it("or in any family by fromConfig: weights are normal, seeded, and saved beside the config", async () => {
    const json = { model_type: "qwen2", vocab_size: 64, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1 };
    const config = { ...json, num_attention_heads: 2, initializer_range: 0.5 };
    const model = AutoModelForCausalLM.fromConfig(config, { generator: new Generator(1) });
    const weight = model.stateDict().get("model.embed_tokens.weight")!.floatsSync();
    const deviation = Math.sqrt(weight.reduce((sum, x) => sum + x * x, 0) / weight.length);
    expect(deviation).toBeGreaterThan(0.47); // 2048 draws: within 4 of their 0.008
    expect(deviation).toBeLessThan(0.53);
    const folder = newFolder();
    await savePretrained(model, folder);
    expect(JSON.parse(readFileSync(join(folder, "config.json"), "utf8"))).toEqual({ ...config, dtype: "float32" });
    expect(() => AutoModelForCausalLM.fromConfig({ model_type: "bort" })).toThrow("model_type must be one of llama");
    model.dispose();
  });
});

describe("activationQuant", () => {
  const ids = [1, 5, 9, 13, 2, 7, 3, 11];

  it("is what every 4-bit layer of the model has, and costs what it promises", async () => {
    const exact = await load(llama("nf4"));
    const want = Float64Array.from(logitsOf(exact, ids));
    exact.dispose();
    // Errors of the layers add up; that of one is at most 2e-4 or 1.5e-2.
    for (const [activationQuant, limit] of [
      ["int16", 2e-3],
      ["int8", 0.1],
    ] as const) {
      const model = await load(llama("nf4"), { activationQuant });
      const layers = model.modules().filter((layer) => layer instanceof Linear4bit);
      expect(new Set(layers.map((layer) => layer.activationQuant))).toEqual(new Set([activationQuant]));
      expect(distance(logitsOf(model, ids), want)).toBeLessThan(limit);
      model.dispose();
    }
  });

  it("needs 4-bit layers, and leaves nothing behind where there are none", async () => {
    const before = memory().tensors;
    await expect(load(llama("fp32"), { activationQuant: "int8" })).rejects.toThrow(
      "setActivationQuant: the module must have a 4-bit layer (Linear4bit), it has none",
    );
    expect(memory().tensors).toBe(before);
    await expect(load(llama("nf4"), { activationQuant: "int4" as "int8" })).rejects.toThrow(
      'fromPretrained: activationQuant must be one of none, int16, int8, got "int4"',
    );
  });
});
