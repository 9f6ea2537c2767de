// Saving a model of which parts wait on disk or in host memory: the files of the model in memory, to the byte, with one
// of the parts in memory at a time, whatever else happens meanwhile and wherever they go.
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import {
  AutoModel,
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  BitsAndBytesConfig,
  complete,
  emptyCache,
  Generator,
  memory,
  savePretrained,
  synchronize,
} from "../../src/index.js";
import type { CausalLM, FromPretrainedOptions } from "../../src/models/index.js";
import type { TextModel } from "../../src/models/text-model.js";
import { OffloadedTensors } from "../../src/tensor/offloaded.js";
import { testDevices } from "../helpers/devices.js";
import { fixturePath } from "../helpers/safetensors.js";
import { sixLayers } from "../helpers/six-layers.js";

const root = mkdtempSync(join(tmpdir(), "bnb-offload-save-"));
const offloadFolder = join(root, "offload");
afterAll(() => rmSync(root, { recursive: true }));
afterEach(() => vi.restoreAllMocks());
let count = 0;
const newFolder = () => join(root, String(count++));

const device = testDevices()[0] as string;
const onDisk = { deviceMap: { "": "disk" }, offloadFolder };
const family = (name: string) => fixturePath(`families/${name}/fp32`);
const llama = (variant: string) => fixturePath(`models/llama/${variant}`);
const greedy = { maxNewTokens: 8, minNewTokens: 8, eosTokenId: [] };
const tokensOf = async (model: CausalLM) =>
  (await complete(model, [[1, 2, 3], [44]], greedy)).flat().map(({ tokens }) => [...tokens]);

/** The files of a folder by their names. */
const filesIn = (folder: string) =>
  new Map(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name))]));

function expectSameFiles(folder: string, wanted: string): void {
  const [got, want] = [filesIn(folder), filesIn(wanted)];
  expect([...got.keys()]).toEqual([...want.keys()]);
  for (const [name, bytes] of want) expect(got.get(name)?.equals(bytes), name).toBe(true);
}

type Open = (path: string, options: FromPretrainedOptions) => Promise<TextModel>;
const openCausal: Open = (path, options) => AutoModelForCausalLM.fromPretrained(path, options);
const openEncoder: Open = (path, options) => AutoModel.fromPretrained(path, options);
const openClassifier: Open = (path, options) => AutoModelForSequenceClassification.fromPretrained(path, options);

/** Saves a checkpoint loaded as a whole and loaded by a map; nothing stays in memory. Answers the second folder. */
async function expectSameSaved(open: Open, path: string, options: FromPretrainedOptions): Promise<string> {
  await synchronize();
  const before = memory();
  const folders: [string, string] = [newFolder(), newFolder()];
  for (const [i, place] of [{ deviceMap: device }, onDisk].entries()) {
    using model = await open(path, { ...options, ...place });
    expect(model.isOffloaded).toBe(i === 1);
    await savePretrained(model, folders[i]!);
  }
  expectSameFiles(folders[1], folders[0]);
  await synchronize();
  expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
  return folders[1];
}

// Units on disk are brought to the CPU, unless a map names a GPU.
describe.runIf(device === "cpu")("all on disk", () => {
  it.each([
    ["gpt2", openCausal], // matrices that turn, a tied head
    ["gemma3", openCausal], // of a model with images
    ["mixtral", openCausal],
    ["falcon", openCausal],
    ["bert", openEncoder],
    ["nomic-bert", openEncoder],
    ["roberta-sequence-classification", openClassifier],
    ["llama-sequence-classification", openClassifier],
  ])("%s", async (name, open) => {
    await expectSameSaved(open, family(name), {});
  });

  it.each(["gpt2", "mixtral"])("%s, quantized as it is loaded", async (name) => {
    await expectSameSaved(openCausal, family(name), {
      quantizationConfig: new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitUseDoubleQuant: true }),
    });
  });

  it.each(["fp32", "nf4", "fp4", "int8"])("the weights of transformers in %s", async (variant) => {
    const folder = await expectSameSaved(openCausal, llama(variant), {});
    const name = "model.safetensors";
    expect(readFileSync(join(folder, name)).equals(readFileSync(join(llama(variant), name)))).toBe(true);
  });
});

const config = sixLayers("bfloat16");
const source = join(root, "model");
beforeAll(async () => {
  using model = AutoModelForCausalLM.fromConfig(config, { generator: new Generator(7), device: "cpu" });
  await savePretrained(model, source);
});
const load = (options: FromPretrainedOptions, folder = source) => AutoModelForCausalLM.fromPretrained(folder, options);
const nf4 = new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4", bnb4bitUseDoubleQuant: true });

/** Some layers in memory, others elsewhere: on a GPU some of them in host memory. */
const partly: FromPretrainedOptions = {
  deviceMap: {
    "": device,
    "model.layers.2": device === "cpu" ? "disk" : "cpu",
    "model.layers.3": "disk",
    "model.layers.4": "disk",
    lm_head: "disk",
  },
  offloadFolder,
};

describe(`partly on ${device}`, () => {
  it.each<[string, BitsAndBytesConfig | null]>([
    ["bfloat16", null],
    ["nf4", new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" })],
    ["nf4 with nested scales", nf4],
    ["int8", new BitsAndBytesConfig({ loadIn8bit: true })],
    ["int8 that is not quantized yet", new BitsAndBytesConfig({ loadIn8bit: true, llmInt8HasFp16Weight: true })],
  ])("%s, in one file and in shards", async (_, quantizationConfig) => {
    const options = { quantizationConfig };
    for (const maxShardSize of [5e9, 100_000]) {
      const folders: [string, string] = [newFolder(), newFolder()];
      for (const [i, place] of [{ deviceMap: device }, partly].entries()) {
        using model = await load({ ...options, ...place });
        await savePretrained(model, folders[i]!, { maxShardSize });
      }
      expectSameFiles(folders[1], folders[0]);
      expect(readdirSync(folders[1]).length > 3).toBe(maxShardSize < 1e6);
    }
  });

  it("is printed and counted as in memory, before and after its parts were used", async () => {
    using whole = await load({ quantizationConfig: nf4, deviceMap: device });
    using model = await load({ quantizationConfig: nf4, ...partly });
    const said = [String(whole), whole.memoryFootprint()];
    expect(said[0]).toContain("(0-5): 6 x PreNormLayer(");
    // A layer's 147456 codes, their 2304 scales, 10 scales of those and 7 means; embedding, head and norms beside.
    expect(said[1]).toBe(6 * (73_728 + 2304 + 40 + 28) + 2 * (2 * 128 * 128 + 13 * 128));
    expect([String(model), model.memoryFootprint()]).toEqual(said);
    await tokensOf(model);
    expect([String(model), model.memoryFootprint()]).toEqual(said);
    await savePretrained(model, newFolder());
    expect([String(model), model.memoryFootprint()]).toEqual(said);
  });

  it("brings each part twice, one at a time", async () => {
    using model = await load({ quantizationConfig: nf4, ...partly });
    await synchronize();
    emptyCache();
    const { liveBytes } = memory().devices[device]!;
    const drop = vi.spyOn(OffloadedTensors.prototype, "drop");
    const steps: string[] = [];
    await savePretrained(model, newFolder(), {
      onProgress: ({ name, tensors, bytes, totalTensors, totalBytes }) => {
        steps.push(name);
        expect(tensors).toBe(steps.length);
        expect(bytes === totalBytes).toBe(tensors === totalTensors);
      },
    });
    expect(new Set(steps).size).toBe(steps.length);
    await synchronize();
    // Four parts, for the checks of their scales and for the writing.
    expect(drop).toHaveBeenCalledTimes(8);
    const now = memory().devices[device]!;
    // The largest is a layer of 147456 weights, 4.13 bits each; small new tensors say how they are quantized.
    const small = 7 * 4 * 1024;
    expect(now.liveBytes - liveBytes).toBeLessThan(small);
    expect(now.peakBytes - liveBytes).toBeLessThan(147_456 * 0.6 + small);
    expect(now.peakBytes - liveBytes).toBeGreaterThan(147_456 / 2);
  });

  it("generates the same while it is saved", async () => {
    using whole = await load({ quantizationConfig: nf4, deviceMap: device });
    const [expected, folders] = [await tokensOf(whole), [newFolder(), newFolder(), newFolder()] as const];
    await savePretrained(whole, folders[0]);
    using model = await load({ quantizationConfig: nf4, ...partly });
    const texts = tokensOf(model);
    const saves = folders.slice(1).map((folder) => savePretrained(model, folder));
    expect(await texts).toEqual(expected);
    await Promise.all(saves);
    expectSameFiles(folders[1], folders[0]);
    expectSameFiles(folders[2], folders[0]);
    expect(await tokensOf(model)).toEqual(expected);
  });
});

describe("where it is saved", () => {
  it("may be the folder that it came from, and the one in which it waits", async () => {
    const own = newFolder();
    cpSync(source, own, { recursive: true });
    using whole = await load({ quantizationConfig: nf4, deviceMap: device });
    const [expected, wanted] = [await tokensOf(whole), newFolder()];
    await savePretrained(whole, wanted);
    using model = await load({ quantizationConfig: nf4, ...partly, offloadFolder: own }, own);
    await savePretrained(model, own);
    expectSameFiles(own, wanted);
    expect(await tokensOf(model)).toEqual(expected);
    await savePretrained(model, own, { maxShardSize: 100_000 });
    await savePretrained(model, own);
    expectSameFiles(own, wanted);
    using again = await load({ ...partly, offloadFolder: own }, own);
    expect(await tokensOf(again)).toEqual(expected);
  });
});

describe("what cannot be saved", () => {
  const other = "model.layers.3 and 1 more in float32";
  it("layers that wait as floats beside others in int8", async () => {
    const quantizationConfig = new BitsAndBytesConfig({ loadIn8bit: true, llmInt8EnableFp32CpuOffload: true });
    const deviceMap = { "": device, "model.layers.3": "disk", "model.layers.4": "disk" };
    using model = await load({ quantizationConfig, deviceMap, offloadFolder });
    const folder = newFolder();
    await expect(savePretrained(model, folder)).rejects.toThrow(
      `savePretrained: all layers must be quantized as the config says, got ${other} by llmInt8EnableFp32CpuOffload; load the model without it, and layers wait in 8 bits`,
    );
    expect(statSync(folder, { throwIfNoEntry: false })).toBe(undefined);
  });

  it.each<[string, number, (controller: AbortController, model: CausalLM) => void, string]>([
    ["aborted before", 0, () => undefined, "saveCheckpoint: aborted by its signal"],
    ["aborted half way", 9, (controller) => controller.abort(), "saveCheckpoint: aborted by its signal"],
    ["disposed half way", 9, (_, model) => model.dispose(), "was disposed"],
  ])("a model whose saving is %s", async (_, at, stop, message) => {
    await synchronize();
    const before = memory();
    const model = await load({ quantizationConfig: nf4, ...partly });
    const controller = new AbortController();
    if (at === 0) controller.abort();
    const onProgress = ({ tensors }: { tensors: number }) => {
      if (tensors === at) stop(controller, model);
    };
    const folder = newFolder();
    const { signal } = controller;
    await expect(savePretrained(model, folder, { signal, onProgress })).rejects.toThrow(message);
    expect(statSync(folder, { throwIfNoEntry: false })).toBe(undefined);
    model.dispose();
    await synchronize();
    expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
  });
});
