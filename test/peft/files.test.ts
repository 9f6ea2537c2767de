// Adapters as Python's peft saves them: its logits, its merged weights, its bytes, and what is wrong with a file.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it, vi } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import { saveSafetensors } from "../../src/hub/index.js";
import { openSafetensors } from "../../src/hub/safetensors.js";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import { getPeftModel, LoraConfig, PeftModel } from "../../src/peft/index.js";
import { memory, tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { expectClose } from "../helpers/expect-close.js";
import { HubServer } from "../helpers/hub-server.js";
import { own } from "../helpers/owned.js";

const fixtures = "test/fixtures/adapters";
const scratch = mkdtempSync(join(tmpdir(), "bnb-peft-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const plain = "test/fixtures/families/llama-plain/fp32";
const tied = "test/fixtures/families/qwen3/fp32";
const load = async (folder: string): Promise<CausalLM> => own(await AutoModelForCausalLM.fromPretrained(folder));
const expected = await openSafetensors(`${fixtures}/expected.safetensors`);
const forQuantized = await openSafetensors("test/fixtures/peft/expected.safetensors");
afterAll(() => Promise.all([expected.close(), forQuantized.close()]));
const values = (t: Tensor) => Array.from(t.floatsSync());
async function wanted(name: string, source = expected): Promise<number[]> {
  const t = await source.load(name, { device: "cpu" });
  const found = values(t);
  t.dispose();
  return found;
}
async function logitsOf(model: CausalLM, source = expected): Promise<number[]> {
  const ids = await source.load("input_ids");
  const found = noGrad(() => tidy(() => values(model.forward(ids))));
  ids.dispose();
  return found;
}
const close = { atol: 3e-4, rtol: 0 };
const distance = (a: number[], b: number[]) => a.reduce((sum, v, i) => sum + Math.abs(v - b[i]!), 0) / a.length;

const cases: [adapter: string, base: string][] = [
  ["dora", plain],
  ["dora-rslora", plain],
  ["layers-to-transform", plain],
  ["modules-to-save", plain],
  ["trainable-tokens", plain],
  ["trainable-tokens-tied", tied],
];

describe.each(cases)("%s", (name, base) => {
  it("gives peft's logits, and the base's again while it is disabled", async () => {
    const model = await load(base);
    const before = await logitsOf(model);
    const peft = await PeftModel.fromPretrained(model, `${fixtures}/${name}`);
    expectClose(await logitsOf(model), await wanted(`${name}.logits`), close);
    expect(await peft.withoutAdapters(() => logitsOf(model))).toEqual(before);
    expect(peft.parameters().some(({ requiresGrad }) => requiresGrad)).toBe(false);
  });

  it("merges to peft's logits and weights, and unmerges to the bit", async () => {
    const model = await load(base);
    const before = await logitsOf(model);
    const peft = await PeftModel.fromPretrained(model, `${fixtures}/${name}`);
    const unmerged = await logitsOf(model);
    peft.mergeAdapter();
    expectClose(await logitsOf(model), await wanted(`${name}.merged.logits`), close);
    peft.unmergeAdapter();
    expect(await logitsOf(model)).toEqual(unmerged);
    expect(peft.mergeAndUnload()).toBe(model);
    expectClose(await logitsOf(model), await wanted(`${name}.merged.logits`), close);
    const state = model.stateDict();
    const prefix = `${name}.merged.`;
    const weights = [...expected.names()].filter((key) => key.startsWith(prefix) && key.endsWith(".weight"));
    expect(weights.length).toBeGreaterThan(0);
    for (const key of weights) {
      const own = key.slice(prefix.length);
      const found = state.get(own) ?? state.get("model.embed_tokens.weight"); // a tied head
      expectClose(values(found as Tensor), await wanted(key), { atol: 1e-5, rtol: 0 });
    }
    expect(before).not.toEqual(unmerged);
  });

  it("is saved as the bytes that were loaded, and again after its copy was loaded", async () => {
    const peft = await PeftModel.fromPretrained(await load(base), `${fixtures}/${name}`);
    const folder = join(scratch, name);
    await peft.savePretrained(folder);
    for (const file of ["adapter_config.json", "adapter_model.safetensors"]) {
      expect(readFileSync(join(folder, file)).equals(readFileSync(join(fixtures, name, file)))).toBe(true);
    }
  });

  it("leaves the base alone when it is unloaded", async () => {
    const model = await load(base);
    const before = await logitsOf(model);
    const tensors = memory().tensors;
    (await PeftModel.fromPretrained(model, `${fixtures}/${name}`)).unload();
    expect(await logitsOf(model)).toEqual(before);
    expect(memory().tensors).toBe(tensors);
  });
});

describe("over quantized bases", () => {
  it.each(["lora-attn", "lora-all-rslora"])("%s gives peft's logits, merged into floats, too", async (name) => {
    const llama = (format: string) => load(`test/fixtures/models/llama/${format}`);
    const adapter = `test/fixtures/peft/${name}`;
    const nf4 = await llama("nf4");
    await PeftModel.fromPretrained(nf4, adapter);
    expectClose(await logitsOf(nf4, forQuantized), await wanted(`${name}.nf4.logits`, forQuantized), {
      atol: 1e-3,
      rtol: 0,
    });
    const int8 = await llama("int8");
    await PeftModel.fromPretrained(int8, adapter);
    const want = await wanted(`${name}.int8.logits`, forQuantized);
    expect(distance(await logitsOf(int8, forQuantized), want)).toBeLessThan(0.04);
    const float = await llama("fp32");
    const merged = (await PeftModel.fromPretrained(float, adapter)).mergeAndUnload();
    const floats = await wanted(`${name}.fp32merged.logits`, forQuantized);
    expectClose(await logitsOf(merged, forQuantized), floats, { atol: 1e-3, rtol: 0 });
    const key = "model.layers.1.self_attn.k_proj.weight";
    const weight = merged.stateDict().get(key) as Tensor;
    expectClose(values(weight), await wanted(`${name}.fp32merged.${key}`, forQuantized), { atol: 1e-6, rtol: 0 });
  });

  it.each(["nf4", "int8"])(
    "merges into %s in its format, says what that lost, and unmerges to the bit",
    async (format) => {
      const model = await load(`test/fixtures/models/llama/${format}`);
      const keys = [...model.stateDict().keys()];
      const peft = await PeftModel.fromPretrained(model, "test/fixtures/peft/lora-attn");
      const unmerged = await logitsOf(model, forQuantized);
      const losses: { name: string; format: string; relative: number }[] = [];
      peft.mergeAdapter({ onMerged: (loss) => losses.push(loss) });
      expect(losses.map((loss) => loss.format)).toEqual(Array(losses.length).fill(format));
      expect(losses.map((loss) => loss.name)).toEqual([...peft.layers.keys()]);
      const [low, high] = format === "nf4" ? [0.02, 0.15] : [0.001, 0.02];
      for (const { relative } of losses) {
        expect(relative).toBeGreaterThan(low);
        expect(relative).toBeLessThan(high);
      }
      const merged = await logitsOf(model, forQuantized);
      expect(distance(merged, unmerged)).toBeLessThan(format === "nf4" ? 0.6 : 0.08);
      peft.unmergeAdapter();
      expect(await logitsOf(model, forQuantized)).toEqual(unmerged);
      peft.mergeAndUnload();
      expect(await logitsOf(model, forQuantized)).toEqual(merged);
      expect([...model.stateDict().keys()]).toEqual(keys);
    },
  );
});

describe("several adapters", () => {
  const parts = ["a", "b", "c", "d"];
  async function together(): Promise<PeftModel<CausalLM>> {
    const peft = await PeftModel.fromPretrained(await load(plain), `${fixtures}/part-a`, { adapterName: "a" });
    for (const part of parts.slice(1)) await peft.loadAdapter(`${fixtures}/part-${part}`, part);
    return peft;
  }

  it("switch, add up, and go", async () => {
    const peft = await together();
    expect(peft.activeAdapters).toEqual(["a"]);
    for (const part of parts) {
      peft.setAdapter(part);
      expectClose(await logitsOf(peft.model), await wanted(`switch.${part}.logits`), close);
    }
    peft.setAdapter(["a", "c"]);
    expectClose(await logitsOf(peft.model), await wanted("switch.a+c.logits"), close);
    peft.deleteAdapter("c");
    expect(peft.activeAdapters).toEqual(["a"]);
    expectClose(await logitsOf(peft.model), await wanted("switch.a.logits"), close);
    expect(() => peft.setAdapter("c")).toThrow("setAdapter: the adapter must be one of a, b, d, got c");
    await peft.savePretrained(join(scratch, "several"));
    for (const part of ["a", "b", "d"]) {
      const file = "adapter_model.safetensors";
      const saved = readFileSync(join(scratch, "several", part, file));
      expect(saved.equals(readFileSync(`${fixtures}/part-${part}/${file}`))).toBe(true);
    }
  });

  const weighted = JSON.parse(readFileSync(`${fixtures}/expected.json`, "utf8")).weighted as Record<
    string,
    { adapters: string[]; weights: number[]; combination_type: "linear" | "cat" | "svd"; svd_rank?: number; r: number }
  >;
  it.each(Object.entries(weighted))("combine as peft does: %s", async (name, how) => {
    const peft = await together();
    const { adapters, weights, combination_type: combinationType, svd_rank: svdRank } = how;
    peft.addWeightedAdapter(adapters, weights, "sum", { combinationType, ...(svdRank && { svdRank }) });
    expect(peft.peftConfig.get("sum")?.r).toBe(how.r);
    peft.setAdapter("sum");
    expectClose(await logitsOf(peft.model), await wanted(`weighted.${name}.logits`), close);
    const prefix = `weighted.${name}.delta.`;
    const deltas = [...expected.names()].filter((key) => key.startsWith(prefix));
    expect(deltas.length).toBeGreaterThan(2);
    const before = new Map(
      [...peft.layers].map(([path, layer]) => [path, values(layer.baseLayer.stateDict().get("weight")!)]),
    );
    peft.mergeAndUnload();
    const state = peft.model.stateDict();
    for (const key of deltas) {
      const path = key.slice(prefix.length).replace(/\.weight$/, "");
      const delta = values(state.get(`${path}.weight`)!).map((v, i) => v - before.get(path)![i]!);
      expectClose(delta, await wanted(key), { atol: combinationType === "svd" ? 1e-4 : 1e-5, rtol: 0 });
    }
  });

  it("refuse different ranks where A and B are summed apart", async () => {
    const peft = await together();
    expect(() => peft.addWeightedAdapter(["a", "c"], [1, 1], "sum", { combinationType: "linear" })).toThrow(
      'addWeightedAdapter: "linear" needs adapters of one rank, got 4, 2; "cat" and "svd" take any',
    );
    expect([...peft.peftConfig.keys()]).toEqual(parts);
  });
});

describe("a new adapter", () => {
  it.each([
    { targetModules: ["q_proj", "embed_tokens"], r: 2 },
    { targetModules: "all-linear", useDora: true, modulesToSave: ["lm_head"], rankPattern: { up_proj: 3 } },
    { targetModules: ["q_proj"], trainableTokenIndices: [3, 1], useRslora: true },
  ])("is saved and loaded to equal logits: %o", async (options) => {
    const model = await load(plain);
    const peft = getPeftModel(model, new LoraConfig({ ...options, initLoraWeights: false }));
    const folder = join(scratch, "new");
    await peft.savePretrained(folder);
    const again = await load(plain);
    await PeftModel.fromPretrained(again, folder);
    expect(await logitsOf(again)).toEqual(await logitsOf(model));
    expect(await logitsOf(again)).not.toEqual(await logitsOf(await load(plain)));
  });

  it("has peft's keys, in its order, in the config", async () => {
    const peft = getPeftModel(await load(plain), new LoraConfig({ targetModules: ["q_proj"], loraAlpha: 16 }));
    await peft.savePretrained(join(scratch, "config"));
    const text = readFileSync(join(scratch, "config", "adapter_config.json"), "utf8");
    const theirs = JSON.parse(readFileSync("test/fixtures/peft/lora-attn/adapter_config.json", "utf8"));
    const changed = { base_model_name_or_path: null, target_modules: ["q_proj"], task_type: null };
    expect(text).toBe(
      JSON.stringify({ ...theirs, ...changed }, null, 2).replace('"lora_dropout": 0,', '"lora_dropout": 0.0,'),
    );
  });
});

describe("bad files", () => {
  const from = `${fixtures}/part-a`;
  const changedConfig = (changes: object): string => {
    const folder = mkdtempSync(join(scratch, "bad-"));
    cpSync(from, folder, { recursive: true });
    const config = JSON.parse(readFileSync(join(from, "adapter_config.json"), "utf8"));
    writeFileSync(join(folder, "adapter_config.json"), JSON.stringify({ ...config, ...changes }));
    return folder;
  };
  async function changedTensors(change: (name: string) => string | null): Promise<string> {
    const folder = changedConfig({});
    const source = await openSafetensors(join(from, "adapter_model.safetensors"));
    const tensors = new Map<string, Tensor>();
    for (const name of source.names()) {
      const next = change(name);
      if (next !== null) tensors.set(next, own(await source.load(name)));
    }
    await source.close();
    await saveSafetensors(join(folder, "adapter_model.safetensors"), tensors);
    return folder;
  }
  const first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
  const failure = async (folder: string, base = plain) => {
    const model = await load(base);
    const state = [...model.stateDict().keys()];
    const error = await PeftModel.fromPretrained(model, folder).catch((e: unknown) => e as Error);
    expect([...model.stateDict().keys()]).toEqual(state);
    return error;
  };
  const code = (name: string, message: string) =>
    expect.objectContaining({ code: name, message: expect.stringContaining(message) });

  it("a renamed prefix", async () => {
    const folder = await changedTensors((name) => name.replace("base_model.model.", ""));
    const want = `it lacks ${first}, `;
    expect(await failure(folder)).toEqual(code("ERR_BNB_FORMAT", want));
    expect(await failure(folder)).toEqual(code("ERR_BNB_FORMAT", "the model has no use for model.layers."));
  });

  it("a missing layer", async () => {
    const folder = await changedTensors((name) => (name === first ? null : name));
    expect(await failure(folder)).toEqual(code("ERR_BNB_FORMAT", `this model, but it lacks ${first}`));
  });

  it("another rank", async () => {
    const want = `${first} is [4, 32], the model has [2, 32]; `;
    expect(await failure(changedConfig({ r: 2 }))).toEqual(code("ERR_BNB_SHAPE", want));
  });

  it("another base", async () => {
    const found = await failure(from, "test/fixtures/models/llama/fp32");
    expect(found).toEqual(code("ERR_BNB_SHAPE", `${first} is [4, 32], the model has [4, 128]`));
  });

  it.each<[object, string, string]>([
    [{ peft_type: "IA3" }, "ERR_BNB_UNSUPPORTED", 'peft_type must be LORA, got "IA3"'],
    [{ layer_replication: [[0, 1]] }, "ERR_BNB_UNSUPPORTED", '"layer_replication" is not supported, got [[0,1]]'],
    [{ new_thing: 3 }, "ERR_BNB_UNSUPPORTED", '"new_thing" is not supported, got 3'],
    [{ r: "many" }, "ERR_BNB_FORMAT", "r must be an integer of at least 1"],
    // A matcher that tries would try for ever: these match in linear time, and nothing.
    ...["(a+)+", "(\\w|\\w|\\.)*!", `(?!x)${".?".repeat(60)}X`, "(?!x)((.)|(.))*X", `(?!x)${".{0,99}".repeat(5)}X`].map(
      (pattern): [object, string, string] => [
        { target_modules: pattern },
        "ERR_BNB_OPTION",
        "targetModules must name layers of the model",
      ],
    ),
    [
      { target_modules: ["q_proj"], layers_to_transform: [0], layers_pattern: `${".?".repeat(60)}X` },
      "ERR_BNB_OPTION",
      "in layers [0]",
    ],
    [{ target_modules: `.*${"x{500}".repeat(3)}` }, "ERR_BNB_FORMAT", "nor repeat thousands of times"],
    [{ target_modules: ".*(?<=q)_proj" }, "ERR_BNB_FORMAT", "must look ahead only where it begins, not back"],
    [{ rank_pattern: { "(?!q).*proj": 2 } }, "ERR_BNB_FORMAT", "must not look around or back"],
    [{ target_modules: ["w_q"] }, "ERR_BNB_OPTION", "targetModules must name layers of the model, got [w_q]"],
  ])("settings such as %o", async (changes, name, message) => {
    expect(await failure(changedConfig(changes))).toEqual(code(name, message));
  });

  it("a key that is not known and does nothing warns", async () => {
    const warned = new Promise<Error>((resolve) => process.once("warning", resolve));
    const peft = await PeftModel.fromPretrained(await load(plain), changedConfig({ new_thing: null, newer: {} }));
    expect((await warned).message).toContain("unknown keys are ignored: new_thing, newer");
    expectClose(await logitsOf(peft.model), await wanted("switch.a.logits"), close);
  });

  it("a pickle file, and nothing", async () => {
    const folder = changedConfig({});
    rmSync(join(folder, "adapter_model.safetensors"));
    expect(await failure(folder)).toEqual(code("ERR_BNB_FILE", "adapter_model.safetensors"));
    writeFileSync(join(folder, "adapter_model.bin"), "");
    expect(await failure(folder)).toEqual(
      code("ERR_BNB_UNSUPPORTED", "adapter_model.bin is a pickle file, which is not read"),
    );
    expect(await failure(scratch)).toEqual(code("ERR_BNB_FILE", "its adapter_config.json could not be read"));
  });
});

describe("an adapter of the hub", () => {
  it("comes by its id, once, and gives the logits that its folder gives", async () => {
    const hub = await HubServer.start();
    vi.stubEnv("HF_HOME", join(scratch, "hub"));
    vi.stubEnv("HF_ENDPOINT", hub.endpoint);
    vi.stubEnv("HF_HUB_CACHE", undefined);
    vi.stubEnv("HF_HUB_OFFLINE", undefined);
    const both = ["adapter_config.json", "adapter_model.safetensors"];
    try {
      hub.files.set("README.md", Buffer.from("about it"));
      hub.files.set(both[0] as string, readFileSync(`${fixtures}/dora/${both[0]}`));
      const base = await load(plain);
      await expect(PeftModel.fromPretrained(base, hub.id)).rejects.toThrow(
        "org/model: must hold adapter_config.json and adapter_model.safetensors of an adapter, has no adapter_model.safetensors",
      );
      hub.files.set(both[1] as string, readFileSync(`${fixtures}/dora/${both[1]}`));
      hub.takeSeen();
      await PeftModel.fromPretrained(base, hub.id);
      expectClose(await logitsOf(base), await wanted("dora.logits"), close);
      const asked = hub.takeSeen();
      for (const name of both)
        expect(asked.filter((line) => line === `HEAD /${hub.id}/resolve/${hub.commit}/${name}`)).toHaveLength(1);
      expect(asked.some((line) => line.includes("README"))).toBe(false);
      const other = await load(plain);
      await (await PeftModel.fromPretrained(other, hub.id, { revision: "main" })).loadAdapter(hub.id, "again");
      expect(hub.takeSeen()).toEqual([]);
      // What begins as a path is one.
      await expect(PeftModel.fromPretrained(await load(plain), "./org/model")).rejects.toThrow(
        "./org/model: its adapter_config.json could not be read: ENOENT",
      );
    } finally {
      vi.unstubAllEnvs();
      await hub.stop();
    }
  });
});
