// Texts of several adapters in one engine: each is what PeftModel makes of it with that adapter alone.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { EngineOptions } from "../../src/generation/index.js";
import { Engine, generate } from "../../src/generation/index.js";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { Linear4bit, LinearNF4, replaceLinear } from "../../src/nn/index.js";
import { Generator } from "../../src/ops/index.js";
import type { LoraConfigOptions } from "../../src/peft/index.js";
import { AdapterSet, getPeftModel, LoraConfig, PeftModel } from "../../src/peft/index.js";
import { toDevice } from "../../src/tensor/device.js";
import { memory } from "../../src/tensor/scope.js";
import { testDevices } from "../helpers/devices.js";
import { integers } from "../helpers/random.js";

const vocabSize = 61;
const root = mkdtempSync(join(tmpdir(), "bnb-adapters-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const folder = (name: string) => join(root, name);

/** Wide logits, so that the rounding of another batch decides between no two. */
function tiny(device: string, dtype: "float32" | "bfloat16" = "float32"): LlamaForCausalLM {
  const sizes = { hiddenSize: 64, intermediateSize: 96, numHiddenLayers: 2, numAttentionHeads: 4, numKeyValueHeads: 2 };
  const config = { vocabSize, ...sizes, maxPositionEmbeddings: 96, initializerRange: 0.3 };
  return new LlamaForCausalLM(config, { device: toDevice(device), dtype, generator: new Generator(5) }).eval();
}

/** Adapters of different ranks, scales and targets. */
const configs: Record<string, LoraConfigOptions> = {
  style: { r: 4, loraAlpha: 8, targetModules: ["q_proj", "v_proj", "down_proj"] },
  facts: { r: 20, loraAlpha: 10, targetModules: "all-linear", useRslora: true },
  other: { r: 3, loraAlpha: 6, targetModules: ["gate_proj", "o_proj"], rankPattern: { "layers.1.*o_proj": 5 } },
};

async function save(model: LlamaForCausalLM, name: string, options: LoraConfigOptions, seed: number): Promise<void> {
  const config = new LoraConfig({ ...options, initLoraWeights: false });
  const peft = getPeftModel(model, config, { generator: new Generator(seed) });
  await peft.savePretrained(folder(name));
  peft.unload();
}

async function take(tokens: AsyncIterable<number>): Promise<number[]> {
  const made: number[] = [];
  for await (const token of tokens) made.push(token);
  return made;
}

describe.each(testDevices())("on %s", (device) => {
  let model: LlamaForCausalLM;
  const maxNewTokens = device === "cpu" ? 12 : 4;
  const prompts = [20, 3, 33].map((length, i) => [...integers(length, vocabSize, 100 + i)]);
  /** What PeftModel makes of the prompts with one adapter, or the base without. */
  const alone = new Map<string | undefined, number[][]>();
  const each = (which: LlamaForCausalLM) =>
    Promise.all(prompts.map((prompt) => take(generate(which, prompt, { maxNewTokens }))));

  beforeAll(async () => {
    model = tiny(device);
    for (const [i, [name, options]] of Object.entries(configs).entries()) await save(model, name, options, 10 + i);
    alone.set(undefined, await each(model));
    for (const name of Object.keys(configs)) {
      const peft = await PeftModel.fromPretrained(model, folder(name), { adapterName: name });
      peft.setAdapter(name, { inferenceMode: true });
      alone.set(name, await each(model));
      peft.unload();
    }
  });
  afterAll(() => model.dispose());

  async function set(...names: string[]): Promise<AdapterSet> {
    const adapters = new AdapterSet(model);
    for (const name of names) await adapters.load(name, folder(name));
    return adapters;
  }
  type Text = [prompt: number, adapter: string | undefined];
  const submit = (engine: Engine, [prompt, adapter]: Text): Promise<number[]> =>
    take(engine.submit(prompts[prompt]!, { maxNewTokens, ...(adapter !== undefined && { adapter }) }));
  const expected = ([prompt, adapter]: Text) => alone.get(adapter)![prompt];
  const names = [undefined, "style", "facts", "other"];
  const all = names.flatMap((name) => prompts.map((_, i): Text => [i, name]));

  it("the adapters change what the model says", () => {
    for (const [a, b] of [
      [0, 1],
      [0, 2],
      [1, 2],
      [2, 3],
    ] as const)
      expect(alone.get(names[a])).not.toEqual(alone.get(names[b]));
  });

  const ways: [string, EngineOptions][] = [
    ["with room for all", { kvTokens: 2000 }],
    ["as graphs", { kvTokens: 2000, graph: true }],
    ["three at a time", { kvTokens: 2000, maxSequences: 3 }],
    ["in small parts, where some must go", { kvTokens: 192, stepTokens: 64 }],
    ["one by one", { kvTokens: 2000, deterministic: true }],
  ];
  it.each(ways)("texts of all are what each is alone: %s", async (_, options) => {
    using adapters = await set("style", "facts", "other");
    using engine = new Engine(model, { ...options, adapters });
    // From two orders, so that neighbours differ.
    for (const texts of [all, [...all].reverse()]) {
      expect(await Promise.all(texts.map((text) => submit(engine, text)))).toEqual(texts.map(expected));
    }
    expect(engine.size).toBe(0);
    expect(engine.freePages).toBe(engine.stats.pages);
  });

  it("do not share what has been computed with another adapter, but with their own", async () => {
    using adapters = await set("style", "facts");
    using engine = new Engine(model, { kvTokens: 2000, adapters });
    const hits: number[] = [];
    for (const name of [undefined, "style", "facts", "style", undefined]) {
      const before = engine.stats.prefixHits;
      expect(await submit(engine, [2, name])).toEqual(expected([2, name]));
      hits.push(engine.stats.prefixHits - before);
    }
    expect(hits).toEqual([0, 0, 0, 32, 32]);
  });

  it("come and go while others run; what has begun ends with what it began with", async () => {
    using adapters = await set("style");
    using engine = new Engine(model, { kvTokens: 2000, adapters, graph: true });
    const running = engine.submit(prompts[2]!, { maxNewTokens, adapter: "style" });
    const made = [(await running.next()).value as number];
    const others = submit(engine, [0, undefined]);
    await adapters.load("facts", folder("facts"));
    const later = submit(engine, [0, "facts"]);
    made.push((await running.next()).value as number);
    adapters.unload("style");
    expect(() => engine.open([1], { adapter: "style" })).toThrow(
      "generate: the adapter must be one of facts, got style",
    );
    // Its name is free again, for another.
    await adapters.load("style", folder("other"));
    expect(adapters.size).toBe(3);
    const renamed = submit(engine, [2, "style"]);
    made.push(...(await take(running)));
    expect(made).toEqual(expected([2, "style"]));
    expect(await others).toEqual(expected([0, undefined]));
    expect(await later).toEqual(expected([0, "facts"]));
    expect(await renamed).toEqual(expected([2, "other"]));
    expect(adapters.size).toBe(2);
    adapters.unload("facts");
    adapters.unload("style");
    expect([adapters.size, adapters.nbytes]).toEqual([0, 0]);
    expect(await submit(engine, [2, undefined])).toEqual(expected([2, undefined]));
  });

  it("stay with a text that is forked", async () => {
    using adapters = await set("facts");
    using engine = new Engine(model, { kvTokens: 400, adapters });
    const branch = engine.open(prompts[0]!, { adapter: "facts" });
    const [first] = expected([0, "facts"])!;
    expect((await branch.next())[0]!.id).toBe(first);
    const other = branch.fork();
    adapters.unload("facts");
    branch.dispose();
    expect(adapters.size).toBe(1);
    expect((await other.next())[0]!.id).toBe(first);
    other.dispose();
    expect(adapters.size).toBe(0);
  });

  it("leave the model as it was, and nothing behind", async () => {
    const keys = [...model.stateDict().keys()];
    const before = memory().tensors;
    const adapters = await set("style", "facts");
    const engine = new Engine(model, { kvTokens: 400, adapters });
    await submit(engine, [0, "facts"]);
    expect([...model.stateDict().keys()]).toEqual(keys);
    // A second engine over the same adapters, at the same time.
    const second = new Engine(model, { kvTokens: 400, adapters });
    expect(await Promise.all([submit(engine, [1, "style"]), submit(second, [1, "facts"])])).toEqual([
      expected([1, "style"]),
      expected([1, "facts"]),
    ]);
    engine.dispose();
    second.dispose();
    adapters.dispose();
    expect(memory().tensors).toBe(before);
    expect(await each(model)).toEqual(alone.get(undefined));
  });

  it("are added in the dtype of the model, up to its rounding", async () => {
    using base = tiny(device, "bfloat16");
    const all = { logprobs: true, best: 0, all: true };
    const logprobs = async (adapter?: string, adapters?: AdapterSet) => {
      using engine = new Engine(base, { kvTokens: 64, ...(adapters && { adapters }) });
      using branch = engine.open(prompts[0]!, { telling: all, ...(adapter !== undefined && { adapter }) });
      return [...(await branch.next())[0]!.all!];
    };
    const distance = (a: number[], b: number[]) =>
      Math.max(...a.map((v, i) => Math.abs(Math.exp(v) - Math.exp(b[i]!))));
    const plain = await logprobs();
    const peft = await PeftModel.fromPretrained(base, folder("facts"));
    const want = await logprobs();
    peft.unload();
    using adapters = new AdapterSet(base);
    await adapters.load("facts", folder("facts"));
    const got = await logprobs("facts", adapters);
    expect(distance(want, plain)).toBeGreaterThan(0.2);
    expect(distance(want, got)).toBeLessThan(0.05);
    expect(await logprobs()).toEqual(plain);
  });

  it("are added to a base of 4 bits, whose fused products come back without them", async () => {
    using base = tiny(device);
    replaceLinear(base, (k, n, bias) => new LinearNF4(k, n, { bias, device }));
    const plain = await each(base);
    const peft = await PeftModel.fromPretrained(base, folder("facts"));
    const want = await each(base);
    peft.unload();
    expect(want).not.toEqual(plain);
    using adapters = new AdapterSet(base);
    await adapters.load("facts", folder("facts"));
    using engine = new Engine(base, { kvTokens: 2000, adapters });
    const texts = await Promise.all(
      prompts.flatMap((prompt) => [
        take(engine.submit(prompt, { maxNewTokens, adapter: "facts" })),
        take(engine.submit(prompt, { maxNewTokens })),
      ]),
    );
    expect(texts.filter((_, i) => i % 2 === 0)).toEqual(want);
    expect(texts.filter((_, i) => i % 2 === 1)).toEqual(plain);
    const layers = base.modules().filter((module) => module instanceof Linear4bit);
    expect(layers.every(({ forward }) => forward === Linear4bit.prototype.forward)).toBe(true);
  });
});

describe("what is refused", () => {
  const model = tiny("cpu");
  const adapters = new AdapterSet(model);
  afterAll(() => {
    adapters.dispose();
    model.dispose();
  });
  const rule = "an adapter beside others must be LoRA on linear layers alone, got one with";
  it.each([
    ["dora", { useDora: true }, `${rule} DoRA (use_dora); merge it into a model of its own`],
    ["lora-bias", { loraBias: true }, `${rule} biases of its own (lora_bias)`],
    ["whole", { modulesToSave: ["lm_head"] }, `${rule} whole modules (modules_to_save: lm_head)`],
    ["rows", { trainableTokenIndices: [1, 2] }, `${rule} rows of embeddings (trainable_token_indices)`],
    ["olora", { initLoraWeights: "olora" }, `${rule} a part of the base's weight (init_lora_weights: olora)`],
    [
      "embedding",
      { targetModules: ["embed_tokens"] },
      "must be for linear layers below the head, got model.embed_tokens",
    ],
    ["head", { targetModules: ["lm_head"] }, "must be for linear layers below the head, got lm_head"],
  ] as [string, LoraConfigOptions, string][])("%s", async (name, options, message) => {
    const peft = getPeftModel(model, new LoraConfig({ r: 4, targetModules: ["q_proj"], ...options }));
    await peft.savePretrained(folder(name));
    peft.unload();
    const before = memory().tensors;
    await expect(adapters.load("x", folder(name))).rejects.toThrow(message);
    expect(memory().tensors).toBe(before);
    expect(adapters.names).toEqual([]);
  });

  it("an adapter of another model, another rank or nothing at all", async () => {
    await save(model, "small", { r: 4, targetModules: ["q_proj"] }, 1);
    cpSync(folder("small"), folder("ranked"), { recursive: true });
    const file = join(folder("ranked"), "adapter_config.json");
    writeFileSync(file, readFileSync(file, "utf8").replace('"r": 4', '"r": 5'));
    const before = memory().tensors;
    await expect(adapters.load("x", folder("ranked"))).rejects.toThrow(
      "the adapter must be for a model and a rank like these, but base_model.model.model.layers.0.self_attn.q_proj.lora_A",
    );
    await expect(adapters.load("x", folder("nothing"))).rejects.toThrow("its adapter_config.json could not be read");
    expect(memory().tensors).toBe(before);
  });

  it("names that are taken or unknown, engines without adapters, models that have some", async () => {
    await adapters.load("a", folder("small"));
    await expect(adapters.load("a", folder("small"))).rejects.toThrow(
      "AdapterSet.load: name must be new, got a, which exists",
    );
    expect(() => adapters.unload("b")).toThrow("AdapterSet.unload: the adapter must be one of a, got b");
    adapters.unload("a");
    expect(() => adapters.use("generate", "a")).toThrow("generate: the adapter must be one of none, got a");
    using engine = new Engine(model, { kvTokens: 64 });
    expect(() => engine.open([1], { adapter: "a" })).toThrow(
      "generate: the engine must have been given adapters, got adapter a",
    );
    const peft = getPeftModel(model, new LoraConfig({ targetModules: ["q_proj"] }));
    await expect(adapters.load("a", folder("small"))).rejects.toThrow(
      "AdapterSet.load: the model must have no adapters of its own, got one with some",
    );
    peft.unload();
  });

  it("use after dispose", async () => {
    const own = new AdapterSet(model);
    await own.load("a", folder("small"));
    using engine = new Engine(model, { kvTokens: 64, adapters: own });
    const branch = engine.open([1, 2], { adapter: "a" });
    own.dispose();
    await expect(branch.next()).rejects.toThrow("generate: the adapters of the engine were disposed");
    await expect(own.load("b", folder("small"))).rejects.toThrow("AdapterSet.load: the adapters were disposed");
  });
});
