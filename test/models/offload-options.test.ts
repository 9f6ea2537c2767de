// Maps and limits that fromPretrained takes: what each comes to, every family with all of it on disk, what an offloaded
// model refuses, and what is wrong with wrong ones.
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import {
  AutoModel,
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  BitsAndBytesConfig,
  complete,
  dequantizeModel,
  emptyCache,
  memory,
  mul,
  noGrad,
  sum,
  synchronize,
  tensor,
  tidy,
} from "../../src/index.js";
import type { FromPretrainedOptions } from "../../src/models/index.js";
import { Linear8bitLt } from "../../src/nn/index.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";
import { fixturePath } from "../helpers/safetensors.js";

const root = mkdtempSync(join(tmpdir(), "bnb-offload-"));
const offloadFolder = join(root, "offload");
afterAll(() => rmSync(root, { recursive: true }));

const family = (name: string) => fixturePath(`families/${name}/fp32`);
const encoders = ["bert", "xlm-roberta", "distilbert", "nomic-bert"];
const isCausal = (name: string): boolean => !name.includes("classification") && !encoders.includes(name);
const causal = readdirSync(fixturePath("families")).filter(isCausal);
const idsOf = (...ids: number[]) => tensor(Int32Array.from(ids), { shape: [1, ids.length], device: "cpu" });
const onDisk = { deviceMap: { "": "disk" }, offloadFolder };
const llama = fixturePath("models/llama/fp32");
const load = (options: FromPretrainedOptions, path = llama) => AutoModelForCausalLM.fromPretrained(path, options);

interface Model extends Disposable {
  forward(ids: Tensor): Tensor;
}

async function outputOf(model: Model): Promise<number[]> {
  const y = tidy(() => noGrad(() => model.forward(idsOf(3, 1, 4, 1, 5, 9, 2, 6))));
  const values = [...(await y.floats())];
  y.dispose();
  return values;
}

/** Loads twice, in memory and on disk: the same numbers, and nothing left. */
async function expectSame(open: (options: FromPretrainedOptions) => Promise<Model>): Promise<void> {
  await synchronize();
  emptyCache();
  const before = memory();
  const whole = await open({ deviceMap: "cpu" });
  const expected = await outputOf(whole);
  whole[Symbol.dispose]();
  const model = await open(onDisk);
  expect(await outputOf(model)).toEqual(expected);
  expect(await outputOf(model)).toEqual(expected);
  model[Symbol.dispose]();
  await synchronize();
  expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
}

// A run for a GPU leaves the CPU to the run without one.
describe.runIf(testDevices().includes("cpu"))("all on disk", () => {
  it.each(causal)("%s", (name) => expectSame((options) => AutoModelForCausalLM.fromPretrained(family(name), options)));
  it.each(encoders)("%s", (name) => expectSame((options) => AutoModel.fromPretrained(family(name), options)));
  it.each(["bert", "roberta", "distilbert", "llama"])("%s with a head of labels", (name) =>
    expectSame((options) =>
      AutoModelForSequenceClassification.fromPretrained(family(`${name}-sequence-classification`), options),
    ),
  );
  it.each(["nf4", "fp4", "int8"])("weights that the file holds in %s", (name) =>
    expectSame((options) => load(options, fixturePath(`models/llama/${name}`))),
  );
});

describe("deviceMap", () => {
  it.each<[FromPretrainedOptions, object]>([
    [{ deviceMap: "cpu" }, { "": "cpu" }],
    [{ deviceMap: { "": "cpu" } }, { "": "cpu" }],
    [{ deviceMap: { model: "cpu", lm_head: "cpu" } }, { "": "cpu" }],
    [{ deviceMap: "cpu", maxMemory: { cpu: "1GiB" } }, { "": "cpu" }],
    [onDisk, { "": "disk" }],
    [
      { deviceMap: { "": "cpu", "model.layers.1": "disk" }, offloadFolder },
      {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        lm_head: "cpu",
      },
    ],
  ])("%j", async (options, expected) => {
    using model = await load(options);
    expect(model.deviceMap).toEqual(expected);
    expect(model.isWhole).toBe(Object.values(model.deviceMap).join() === "cpu");
  });

  it("tells where a tied head is", async () => {
    using model = await load({ deviceMap: { "": "cpu", "transformer.h.0": "disk" }, offloadFolder }, family("gpt2"));
    expect(model.deviceMap).toMatchObject({ "transformer.wte": "cpu", "transformer.h.0": "disk", lm_head: "cpu" });
  });
});

it("leaves layers on disk unquantized where llmInt8EnableFp32CpuOffload says so", async () => {
  const map = { deviceMap: { "": "cpu", "model.layers.1": "disk" }, offloadFolder };
  const config = (llmInt8EnableFp32CpuOffload: boolean) =>
    new BitsAndBytesConfig({ loadIn8bit: true, llmInt8EnableFp32CpuOffload });
  const int8Paths = (model: Awaited<ReturnType<typeof load>>) =>
    model.namedModules().flatMap(([path, module]) => (module instanceof Linear8bitLt ? [path.split(".")[2]] : []));
  using quantized = await load({ ...map, quantizationConfig: config(false) });
  expect(new Set(int8Paths(quantized))).toEqual(new Set(["0", "1"]));
  using float = await load({ ...map, dtype: "bfloat16", quantizationConfig: config(true) });
  expect(new Set(int8Paths(float))).toEqual(new Set(["0"]));
  const dtypes = new Map(float.namedParameters().map(([path, { dtype }]) => [path, dtype]));
  expect(dtypes.get("model.layers.1.mlp.up_proj.weight")).toBe("float32");
  expect(dtypes.get("model.layers.0.input_layernorm.weight")).toBe("bfloat16");
  expect(float.dtype).toBe("bfloat16");
  expect((await outputOf(float)).every(Number.isFinite)).toBe(true);
  const found = await complete(float, [[1, 2]], { maxNewTokens: 3, eosTokenId: [] });
  expect(found.flat().map(({ tokens }) => tokens.length)).toEqual([3]);
  // The same by another way: what is left out of quantization, in memory.
  const llmInt8SkipModules = ["lm_head", "model\\.layers\\.1\\."];
  const skipping = new BitsAndBytesConfig({ loadIn8bit: true, llmInt8SkipModules });
  using whole = await load({ deviceMap: "cpu", quantizationConfig: skipping });
  using same = await load({ ...map, quantizationConfig: config(true) });
  expect(await outputOf(same)).toEqual(await outputOf(whole));
});

describe("an offloaded model", () => {
  it("computes no gradients", async () => {
    using model = await load(onDisk);
    expect(model.parameters().some(({ requiresGrad }) => requiresGrad)).toBe(false);
    expect(tidy(() => model.forward(idsOf(1, 2)).requiresGrad)).toBe(false);
    model.requiresGrad_();
    expect(() => tidy(() => model.forward(idsOf(1, 2)))).toThrow(
      "forward: gradients must not be wanted from model.embed_tokens, whose weights are offloaded; compute inside of noGrad, or load the model to where all of it has room",
    );
    expect(tidy(() => noGrad(() => model.forward(idsOf(1, 2)).ndim))).toBe(3);
  });

  it("does not move, and is not dequantized", async () => {
    using model = await load(onDisk, fixturePath("models/llama/nf4"));
    const spread = "the model must be in memory on one device, got one whose deviceMap spreads it";
    expect(() => model.to("cpu")).toThrow(`to: ${spread}; load it with another deviceMap instead`);
    const printed = String(model);
    expect(printed).toContain("Linear4bit(in_features=128");
    const advice = "load it without a deviceMap to dequantize it";
    expect(() => dequantizeModel(model)).toThrow(`dequantizeModel: ${spread}; ${advice}`);
    expect(() => dequantizeModel(model.children()[0]!)).toThrow("it is offloaded"); // the body alone
    expect(() => model.quantizeHead("int8")).toThrow(`quantizeHead: ${spread}; give it more memory`);
    expect(String(model)).toBe(printed);
    const weight = model.parameters().find(({ size }) => size > 1000)!;
    expect(() => mul(weight, 2)).toThrow("tensor: it is offloaded, and in memory only while its layer computes");
    await expect((async () => weight.data())()).rejects.toThrow("it is offloaded");
    expect(() => tidy(() => sum(weight))).toThrow("it is offloaded");
  });
});

describe("what is wrong", () => {
  const file = join(root, "file");
  writeFileSync(file, "");
  it.each<[string, FromPretrainedOptions, string]>([
    [
      "a module that is not there",
      { deviceMap: { "": "cpu", "model.layers.7": "disk" } },
      "deviceMap: keys must be paths of modules, got model.layers.7 (did you mean model.layers.0?)",
    ],
    [
      "modules without a place",
      { deviceMap: { model: "cpu" } },
      "deviceMap: it must have a place for every module, got none for lm_head",
    ],
    ["a device that is not there", { deviceMap: { "": "cuda:9" } }, "device: "],
    ["a name that is none", { deviceMap: { "": "gpu" } }, "device: must be one of"],
    ["another strategy", { deviceMap: "balanced_low_0" }, "deviceMap: must be one of auto, balanced, sequential, cpu"],
    [
      "a list",
      { deviceMap: ["cpu"] as never },
      `fromPretrained: deviceMap must be "auto", "balanced", "sequential", a Device or the name of one, or an object of places by module, got ['cpu']`,
    ],
    ["a place of no kind", { deviceMap: { "": null } as never }, 'fromPretrained: deviceMap must be "auto"'],
    [
      "a split layer",
      { deviceMap: { "": "cpu", "model.layers.0.mlp": "disk" } },
      "deviceMap: model.layers.0 must be in one place as a whole, got cpu and disk",
    ],
    [
      "no offloadFolder",
      { deviceMap: { "": "disk" } },
      "must wait on disk, as cpu has no room for them: give offloadFolder, a folder for them, or more maxMemory",
    ],
    [
      "an offloadFolder that is a file",
      { ...onDisk, offloadFolder: file },
      `offloadFolder: no file could be made in ${file}: `,
    ],
    [
      "an offloadFolder below one that refuses it",
      { ...onDisk, offloadFolder: join(file, "a", "b") },
      `offloadFolder: no file could be made in ${join(file, "a", "b")}: `,
    ],
    ["no memory at all", { maxMemory: { cpu: 0 } }, "maxMemory: it must give some device more than 0 bytes, got none"],
    ["no device with memory", { maxMemory: {} }, "maxMemory: it must give some device more than 0 bytes, got none"],
    [
      "too little memory",
      { maxMemory: { cpu: 1000 }, offloadFolder },
      "deviceMap: cpu must have room for two of the layers that are brought to it, ",
    ],
    [
      "a size of no kind",
      { maxMemory: { cpu: "10 apples" } },
      'maxMemory: "cpu" must be bytes or a text such as "10GiB", "10GB" or "500MB", got "10 apples"',
    ],
    ["memory of an unknown device", { maxMemory: { tpu: 1 } }, "device: must be one of"],
    [
      "a map beyond the memory",
      { deviceMap: { "": "cpu" }, maxMemory: { cpu: "100KB" } },
      "on cpu, and maxMemory allows 100000 bytes: ",
    ],
  ])("%s", async (_, options, message) => {
    await synchronize();
    const before = memory();
    await expect(load(options)).rejects.toThrow(message);
    await synchronize();
    expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
  });

  it("a map that parts a tied pair", async () => {
    const map = { "": "cpu", "transformer.wte": "disk", lm_head: "cpu" };
    await expect(load({ deviceMap: map, offloadFolder }, family("gpt2"))).rejects.toThrow(
      "deviceMap: lm_head and transformer.wte share their weight and must be in one place, got cpu and disk",
    );
  });

  it.skipIf(process.getuid?.() === 0)("a folder that may not be written (not as root, who may)", async () => {
    const closed = join(root, "closed");
    mkdirSync(closed);
    chmodSync(closed, 0o500);
    await expect(load({ ...onDisk, offloadFolder: closed })).rejects.toThrow("offloadFolder: no file could be made in");
  });

  it("leaves nothing of a load that is aborted half way", async () => {
    await synchronize();
    const before = memory();
    const controller = new AbortController();
    const onProgress = ({ stage, ...done }: { stage: string; tensors?: number }) => {
      if (stage === "load" && done.tensors === 9) controller.abort();
    };
    await expect(load({ ...onDisk, onProgress, signal: controller.signal })).rejects.toThrow("aborted by its signal");
    await synchronize();
    expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
    expect(readdirSync(offloadFolder)).toEqual([]);
  });
});
