// What an adapter may have beside A and B: biases, whole heads of classifiers, tables of embeddings; and merges that fail.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import { generate } from "../../src/generation/index.js";
import { openSafetensors } from "../../src/hub/safetensors.js";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM, AutoModelForSequenceClassification } from "../../src/models/index.js";
import { Linear, Module } from "../../src/nn/index.js";
import { copyInto, crossEntropy, Generator, randn } from "../../src/ops/index.js";
import { AdamW } from "../../src/optim/index.js";
import type { LoraConfigOptions, LoraLinear } from "../../src/peft/index.js";
import { getPeftModel, LoraConfig, PeftModel } from "../../src/peft/index.js";
import { tensor } from "../../src/tensor/create.js";
import { tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { expectClose } from "../helpers/expect-close.js";
import { own } from "../helpers/owned.js";

const scratch = mkdtempSync(join(tmpdir(), "bnb-peft-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const family = (name: string) => `test/fixtures/families/${name}/fp32`;
const load = async (name: string): Promise<CausalLM> => own(await AutoModelForCausalLM.fromPretrained(family(name)));
const ids = tensor([[1, 5, 17, 40, 3]], { dtype: "int32" });
afterAll(() => ids.dispose());
const logitsOf = (model: { forward(ids: Tensor): Tensor }): number[] =>
  noGrad(() => tidy(() => Array.from(model.forward(ids).floatsSync())));

async function keysIn(folder: string): Promise<string[]> {
  const source = await openSafetensors(join(folder, "adapter_model.safetensors"));
  const names = [...source.names()].map((name) => name.replace("base_model.model.", ""));
  await source.close();
  return names;
}
/** Moves every parameter that learns away from where it began. */
function shake(peft: PeftModel<Module>, seed = 9): void {
  const generator = new Generator(seed);
  noGrad(() =>
    tidy(() => {
      for (const parameter of peft.parameters().filter(({ requiresGrad }) => requiresGrad)) {
        copyInto(parameter, parameter.add(randn(parameter.shape, { generator, std: 0.1 })));
      }
    }),
  );
}

// The names are those that peft 0.21 writes for the same settings of the same model.
describe("names in the file", () => {
  const q = "model.layers.0.self_attn.q_proj";
  it.each<[string, LoraConfigOptions, string[]]>([
    [
      "lora_only",
      { targetModules: ["q_proj"], layersToTransform: [0], bias: "lora_only" },
      [`${q}.base_layer.bias`, `${q}.lora_A.weight`, `${q}.lora_B.weight`],
    ],
    [
      "all biases",
      { targetModules: ["q_proj"], layersToTransform: [0], bias: "all" },
      [
        "model.layers.0.self_attn.k_proj.bias",
        `${q}.base_layer.bias`,
        `${q}.lora_A.weight`,
        `${q}.lora_B.weight`,
        "model.layers.0.self_attn.v_proj.bias",
        "model.layers.1.self_attn.k_proj.bias",
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.1.self_attn.v_proj.bias",
      ],
    ],
    [
      "a bias of B",
      { targetModules: ["q_proj"], layersToTransform: [0], loraBias: true },
      [`${q}.lora_A.weight`, `${q}.lora_B.bias`, `${q}.lora_B.weight`],
    ],
    [
      "an embedding",
      { targetModules: ["embed_tokens"] },
      ["base_layer.weight", "lora_embedding_A", "lora_embedding_B"].map((n) => `model.embed_tokens.${n}`),
    ],
    [
      "an embedding with DoRA",
      { targetModules: ["embed_tokens"], useDora: true },
      ["base_layer.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"].map(
        (n) => `model.embed_tokens.${n}`,
      ),
    ],
  ])("of %s", async (name, options, want) => {
    const model = await load("qwen2");
    const before = logitsOf(model);
    const peft = getPeftModel(model, new LoraConfig({ r: 2, ...options }));
    shake(peft);
    const trained = logitsOf(model);
    expect(trained).not.toEqual(before);
    const folder = join(scratch, name);
    await peft.savePretrained(folder);
    expect(await keysIn(folder)).toEqual(want);
    const again = await load("qwen2");
    const loaded = await PeftModel.fromPretrained(again, folder);
    expect(logitsOf(again)).toEqual(trained);
    // A head that shares the table takes the adapter only when it is in the table.
    if (!options.targetModules?.includes("embed_tokens")) {
      expectClose(logitsOf(loaded.mergeAndUnload()), trained, { atol: 1e-4, rtol: 0 });
    }
  });

  it("saves tables of embeddings on request, which loading takes", async () => {
    const peft = getPeftModel(await load("llama-plain"), new LoraConfig({ targetModules: ["q_proj"] }));
    const folder = join(scratch, "tables");
    await peft.savePretrained(folder, { saveEmbeddingLayers: true });
    expect((await keysIn(folder)).filter((key) => !key.includes("lora"))).toEqual([
      "lm_head.weight",
      "model.embed_tokens.weight",
    ]);
    await PeftModel.fromPretrained(await load("llama-plain"), folder);
    await peft.savePretrained(folder, { saveEmbeddingLayers: false });
    expect((await keysIn(folder)).every((key) => key.includes("lora"))).toBe(true);
  });
});

describe("whole modules", () => {
  it("a classifier's head learns and is saved with SEQ_CLS, and is given back", async () => {
    const open = async () =>
      own(await AutoModelForSequenceClassification.fromPretrained(family("llama-sequence-classification")));
    const model = await open();
    const before = logitsOf(model);
    const config = new LoraConfig({ r: 2, targetModules: "all-linear", taskType: "SEQ_CLS" });
    const peft = getPeftModel(model, config);
    expect([...peft.layers.keys()].some((path) => path.includes("score"))).toBe(false);
    expect(peft.namedParameters().filter(([path, p]) => p.requiresGrad && path.includes("score"))).toHaveLength(1);
    shake(peft);
    const trained = logitsOf(model);
    const folder = join(scratch, "classifier");
    await peft.savePretrained(folder);
    expect(await keysIn(folder)).toContain("score.weight");
    const again = await open();
    const loaded = await PeftModel.fromPretrained(again, folder);
    expect(logitsOf(again)).toEqual(trained);
    expectClose(logitsOf(loaded.mergeAndUnload()), trained, { atol: 1e-5, rtol: 0 });
    expectClose(
      peft.withoutAdapters(() => logitsOf(model)),
      before,
      { atol: 0, rtol: 0 },
    );
    expect(logitsOf(peft.unload())).toEqual(before);
  });

  it("a tied table learns for the head, too, and each adapter has its own", async () => {
    const model = await load("qwen3");
    const before = logitsOf(model);
    const whole = { r: 2, targetModules: ["v_proj"], modulesToSave: ["embed_tokens"] };
    const peft = getPeftModel(model, new LoraConfig(whole));
    shake(peft);
    const first = logitsOf(model);
    peft.addAdapter("second", new LoraConfig(whole), { generator: new Generator(3) });
    peft.setAdapter("second");
    expectClose(logitsOf(model), before, { atol: 1e-6, rtol: 0 });
    peft.setAdapter("default");
    expect(logitsOf(model)).toEqual(first);
    const folder = join(scratch, "tied");
    await peft.savePretrained(folder, { selectedAdapters: ["default"] });
    const again = await load("qwen3");
    await PeftModel.fromPretrained(again, folder);
    expect(logitsOf(again)).toEqual(first);
  });
});

describe.each(["bfloat16", "float16"] as const)("whole modules of a model in %s", (dtype) => {
  const open = async (): Promise<CausalLM> =>
    own(await AutoModelForCausalLM.fromPretrained(family("llama-plain"), { dtype }));

  it("compute, learn, generate, merge and come back in its dtype", async () => {
    const model = await open();
    const before = logitsOf(model);
    const whole = { r: 2, targetModules: ["v_proj"], modulesToSave: ["lm_head", "embed_tokens", "norm"] };
    const peft = getPeftModel(model, new LoraConfig(whole));
    expect(model.dtype).toBe(dtype);
    // A copy of the same bits.
    expect(logitsOf(model)).toEqual(before);
    const targets = own(tensor([5, 17, 40, 3, 1], { dtype: "int32" }));
    const lossOf = () => crossEntropy(model.forward(ids).reshape([5, -1]), targets);
    const first = tidy(() => {
      const loss = lossOf();
      loss.backward();
      return loss.itemSync();
    });
    const learning = peft.parametersOf("default");
    expect(learning.filter(({ dtype: own }) => own === dtype)).toHaveLength(3);
    using optimizer = new AdamW(learning, { lr: 1e-2 });
    optimizer.step();
    optimizer.zeroGrad();
    expect(tidy(() => noGrad(lossOf).itemSync())).toBeLessThan(first - 0.1);
    const trained = logitsOf(model);
    const written: number[] = [];
    for await (const token of generate(model, [1, 5, 17, 40, 3], { maxNewTokens: 1, doSample: false }))
      written.push(token);
    const last = trained.slice(4 * (trained.length / 5));
    expect(written).toEqual([last.indexOf(Math.max(...last))]);

    const folder = join(scratch, dtype);
    await peft.savePretrained(folder);
    const again = await open();
    await PeftModel.fromPretrained(again, folder);
    expect(logitsOf(again)).toEqual(trained);
    const merged = peft.mergeAndUnload();
    expect([...new Set(merged.parameters().map((parameter) => parameter.dtype))]).toEqual([dtype]);
    expectClose(logitsOf(merged), trained, { atol: 0.1, rtol: 0 });
  });
});

describe("names of a file that match nothing", () => {
  it("are passed over, as the tensors say what there is; a new adapter has none", async () => {
    const family = "test/fixtures/families/llama-sequence-classification/fp32";
    const open = async () => own(await AutoModelForSequenceClassification.fromPretrained(family));
    const model = await open();
    const settings = { r: 2, targetModules: ["q_proj"], taskType: "SEQ_CLS" };
    const peft = getPeftModel(model, new LoraConfig(settings));
    shake(peft);
    const trained = logitsOf(model);
    const folder = join(scratch, "names");
    await peft.savePretrained(folder);
    const path = join(folder, "adapter_config.json");
    const json = JSON.parse(readFileSync(path, "utf8"));
    // What PEFT writes for the task; a name of other models; a list that says nothing.
    const changes = {
      modules_to_save: ["classifier", "score"],
      target_modules: ["q_proj", "query_key_value"],
      layers_to_transform: [],
    };
    writeFileSync(path, JSON.stringify({ ...json, ...changes }));
    const again = await open();
    await PeftModel.fromPretrained(again, folder);
    expect(logitsOf(again)).toEqual(trained);
    for (const [more, message] of [
      [{ modulesToSave: ["classifier"] }, "each of modulesToSave must name modules of the model, got classifier"],
      [{ targetModules: ["q_proj", "query"] }, "each of targetModules must name layers of the model, got query"],
    ] as const) {
      const other = await open();
      expect(() => getPeftModel(other, new LoraConfig({ ...settings, ...more }))).toThrow(message);
    }
    writeFileSync(path, JSON.stringify({ ...json, target_modules: ["q_proj", "v_proj"] }));
    await expect(PeftModel.fromPretrained(await open(), folder)).rejects.toThrow(
      /it lacks base_model\.model\.model\.layers\.0\.self_attn\.v_proj\.lora_A\.weight, /,
    );
  });
});

describe("merged adapters", () => {
  it("are unmerged where the base is asked for", async () => {
    const model = await load("llama-plain");
    const before = logitsOf(model);
    const peft = getPeftModel(model, new LoraConfig({ r: 2, targetModules: "all-linear", modulesToSave: ["lm_head"] }));
    shake(peft);
    const adapted = logitsOf(model);
    peft.mergeAdapter();
    expect(peft.withoutAdapters(() => logitsOf(model))).toEqual(before);
    expect(logitsOf(model)).toEqual(adapted);
    peft.mergeAdapter();
    peft.disableAdapters();
    expect(logitsOf(model)).toEqual(before);
    expect(() => peft.mergeAdapter()).toThrow("mergeAdapter: the adapters must be enabled");
    peft.enableAdapters();
    expect(logitsOf(model)).toEqual(adapted);
  });

  it("that are not the active ones leave them as they were", async () => {
    const model = await load("llama-plain");
    const whole = { r: 2, targetModules: ["q_proj"], modulesToSave: ["lm_head"] };
    const peft = getPeftModel(model, new LoraConfig(whole), { adapterName: "a" });
    shake(peft);
    const a = logitsOf(model);
    peft.addAdapter("b", new LoraConfig(whole));
    peft.setAdapter("b");
    shake(peft, 10);
    const b = logitsOf(model);
    peft.setAdapter("a");
    peft.mergeAdapter({ adapterNames: ["b"] });
    expectClose(logitsOf(model), b, { atol: 1e-4, rtol: 0 });
    peft.unmergeAdapter();
    expect(logitsOf(model)).toEqual(a);
  });
});

it("an adapter made of some for different layers has the layers of all", async () => {
  const model = await load("llama-plain");
  const of = (layer: number) => new LoraConfig({ r: 2, targetModules: ["v_proj"], layersToTransform: [layer] });
  const peft = getPeftModel(model, of(0), { adapterName: "a" });
  peft.addAdapter("b", of(1));
  peft.setAdapter(["a", "b"]);
  shake(peft);
  const both = logitsOf(model);
  peft.addWeightedAdapter(["a", "b"], [1, 1], "both", { combinationType: "cat" });
  peft.setAdapter("both");
  expectClose(logitsOf(model), both, { atol: 1e-5, rtol: 0 });
});

describe("an adapter made of some that name their layers", () => {
  const saved = async (targetModules: string | string[], more: string[] = []) => {
    const peft = getPeftModel(await load("llama-plain"), new LoraConfig({ r: 2, targetModules }));
    shake(peft);
    const folder = mkdtempSync(join(scratch, "named-"));
    await peft.savePretrained(folder);
    const path = join(folder, "adapter_config.json");
    const json = JSON.parse(readFileSync(path, "utf8"));
    if (more.length > 0) writeFileSync(path, JSON.stringify({ ...json, target_modules: [...targetModules, ...more] }));
    return { folder, peft };
  };
  /** The sum of "default" and "b" beside the adapter that is made of them. */
  function expectSum(peft: PeftModel<CausalLM>, targets: number): void {
    peft.setAdapter(["default", "b"]);
    const both = logitsOf(peft.model);
    peft.addWeightedAdapter(["default", "b"], [1, 1], "sum", { combinationType: "cat" });
    peft.setAdapter("sum");
    expectClose(logitsOf(peft.model), both, { atol: 1e-5, rtol: 0 });
    expect([...peft.layers.values()].filter(({ adapters }) => adapters.has("sum"))).toHaveLength(targets);
  }

  it("by a name of other models, and another adapter with the same settings", async () => {
    const { folder } = await saved(["q_proj", "v_proj"], ["query_key_value"]);
    const peft = await PeftModel.fromPretrained(await load("llama-plain"), folder);
    await peft.loadAdapter(folder, "b");
    expectSum(peft, 4);
    const own = peft.peftConfig.get("b") as LoraConfig;
    peft.addAdapter("again", own);
    const again = [...peft.layers].filter(([, { adapters }]) => adapters.has("again")).map(([path]) => path);
    expect(again).toEqual([...peft.layers].filter(([, { adapters }]) => adapters.has("b")).map(([path]) => path));
    expect(again).toHaveLength(4);
  });

  it('by "all-linear", and by the paths that a file has of it', async () => {
    const { folder, peft } = await saved("all-linear");
    await peft.loadAdapter(folder, "b");
    expectSum(peft, 14);
  });

  it("by a list, and by a pattern", async () => {
    const { peft } = await saved(["q_proj"]);
    peft.addAdapter("b", new LoraConfig({ r: 4, targetModules: ".*[.]0[.].*v_proj", initLoraWeights: false }));
    expectSum(peft, 3);
  });
});

it("biases that learned with an adapter are frozen when it goes", async () => {
  for (const bias of ["all", "lora_only"] as const) {
    const model = await load("qwen2");
    const learning = () => model.parameters().filter(({ requiresGrad }) => requiresGrad).length;
    const peft = getPeftModel(model, new LoraConfig({ r: 2, targetModules: ["q_proj"], bias }));
    peft.addAdapter("other", new LoraConfig({ r: 2, targetModules: ["q_proj"] }));
    expect(learning()).toBeGreaterThan(4);
    peft.deleteAdapter("default");
    // A and B of the two layers of the other one.
    expect(learning()).toBe(4);
    peft.deleteAdapter("other");
    peft.addAdapter("again", new LoraConfig({ r: 2, targetModules: ["q_proj"], bias }));
    peft.unload();
    expect(learning()).toBe(0);
  }
});

it('"all-linear" is saved as the layers that it stood for', async () => {
  const model = await load("llama-plain");
  const peft = getPeftModel(model, new LoraConfig({ r: 2, targetModules: "all-linear", excludeModules: ["up_proj"] }));
  shake(peft);
  const trained = logitsOf(model);
  const folder = join(scratch, "all-linear");
  await peft.savePretrained(folder);
  const { target_modules } = JSON.parse(readFileSync(join(folder, "adapter_config.json"), "utf8"));
  expect(target_modules).toHaveLength(12);
  expect(target_modules).toContain("model.layers.1.mlp.down_proj");
  const again = await load("llama-plain");
  await PeftModel.fromPretrained(again, folder);
  expect(logitsOf(again)).toEqual(trained);
});

class Wrapped extends Module {
  inner = new Linear(4, 4, { bias: false });
  forward(x: Tensor): Tensor {
    return this.inner.forward(x);
  }
}

describe("refused", () => {
  it("a merge that would not be finite changes nothing, with safeMerge", async () => {
    const model = await load("llama-plain");
    const before = logitsOf(model);
    const peft = getPeftModel(model, new LoraConfig({ r: 2, targetModules: ["q_proj"] }));
    const last = [...peft.layers.values()].at(-1) as LoraLinear;
    const bad = own(tensor(new Float32Array(last.outFeatures * 2).fill(Infinity), { shape: [last.outFeatures, 2] }));
    last.loadStateDict({ "default.lora_B": bad }, { strict: false });
    const message = "merge: the merged weight of model.layers.1.self_attn.q_proj must be finite, got ";
    for (const merge of [() => peft.mergeAdapter(), () => peft.mergeAndUnload({ safeMerge: true })]) {
      expect(merge).toThrow(
        expect.objectContaining({ code: "ERR_BNB_NONFINITE", message: expect.stringContaining(message) }),
      );
      expect(peft.withoutAdapters(() => logitsOf(model))).toEqual(before);
    }
  });

  it("a bias of B without a bias to merge it into", () => {
    const peft = own(getPeftModel(new Wrapped(), new LoraConfig({ targetModules: ["inner"], loraBias: true })));
    expect(() => peft.mergeAdapter()).toThrow(
      "merge: an adapter with loraBias needs a base with a bias, got none at inner",
    );
  });

  it("parameters as targets, and changes while adapters are merged", () => {
    const model = own(new Wrapped());
    expect(() => getPeftModel(model, new LoraConfig({ targetParameters: ["inner.weight"] }))).toThrow(
      expect.objectContaining({ code: "ERR_BNB_UNSUPPORTED" }),
    );
    const peft = getPeftModel(model, new LoraConfig({ targetModules: ["inner"] }));
    peft.mergeAdapter();
    expect(() => peft.addAdapter("b", new LoraConfig({ targetModules: ["inner"] }))).toThrow(
      "addAdapter: no adapter must be merged, got default; unmergeAdapter() first",
    );
  });
});
