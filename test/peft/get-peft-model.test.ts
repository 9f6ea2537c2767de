// getPeftModel: which modules of a model get an adapter by every form of a config, what learns, and what is refused.
import { afterEach, describe, expect, it, vi } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { Linear } from "../../src/nn/index.js";
import { Generator } from "../../src/ops/index.js";
import type { LoraConfigOptions } from "../../src/peft/index.js";
import { getPeftModel, LoraConfig, LoraLinear, prepareModelForKbitTraining } from "../../src/peft/index.js";
import { tensor } from "../../src/tensor/create.js";
import { memory, tidy } from "../../src/tensor/scope.js";

const owned: { dispose(): void }[] = [];
afterEach(() => {
  for (const value of owned.splice(0)) value.dispose();
});
const sizes = { vocabSize: 16, hiddenSize: 16, intermediateSize: 24, numHiddenLayers: 3, numAttentionHeads: 2 };
function newModel(dtype?: "bfloat16"): LlamaForCausalLM {
  const model = new LlamaForCausalLM(sizes, { generator: new Generator(1), ...(dtype && { dtype }) });
  owned.push(model);
  return model;
}
const option = (message: string) => expect.objectContaining({ code: "ERR_BNB_OPTION", message });

function targetsOf(config: LoraConfigOptions): string[] {
  const peft = getPeftModel(newModel(), new LoraConfig(config));
  return [...peft.layers.keys()].map((path) => path.replace("model.layers.", ""));
}
const inLayer = (i: number) => [
  ...["q", "k", "v", "o"].map((name) => `${i}.self_attn.${name}_proj`),
  ...["gate", "up", "down"].map((name) => `${i}.mlp.${name}_proj`),
];

describe("targets", () => {
  it.each<[string, LoraConfigOptions, string[]]>([
    [
      "a list",
      { targetModules: ["q_proj", "1.mlp.up_proj"] },
      ["0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj", "2.self_attn.q_proj"],
    ],
    [
      "a pattern of the whole path",
      { targetModules: ".*\\.[12]\\.mlp\\.(up|down)_proj" },
      ["1.mlp.up_proj", "1.mlp.down_proj", "2.mlp.up_proj", "2.mlp.down_proj"],
    ],
    ["all-linear, without the head", { targetModules: "all-linear" }, [0, 1, 2].flatMap(inLayer)],
    [
      "all but what is excluded",
      { targetModules: "all-linear", excludeModules: ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"] },
      [0, 1, 2].flatMap((i) => [`${i}.mlp.gate_proj`, `${i}.mlp.up_proj`]),
    ],
    [
      "all but a pattern",
      { targetModules: "all-linear", excludeModules: ".*\\.(mlp|self_attn)\\.[^qk].*" },
      [0, 1, 2].flatMap((i) => [`${i}.self_attn.q_proj`, `${i}.self_attn.k_proj`]),
    ],
    [
      "some layers",
      { targetModules: ["q_proj"], layersToTransform: [0, 2] },
      ["0.self_attn.q_proj", "2.self_attn.q_proj"],
    ],
    [
      "one layer, behind a name",
      { targetModules: ["q_proj"], layersToTransform: 1, layersPattern: "layers" },
      ["1.self_attn.q_proj"],
    ],
    ["a head that is named", { targetModules: ["lm_head"] }, ["lm_head"]],
  ])("%s", (_, config, want) => {
    expect(targetsOf(config)).toEqual(want);
  });

  it("leaves out what is saved whole", () => {
    const found = targetsOf({ targetModules: "all-linear", modulesToSave: ["mlp"] });
    expect(found.filter((path) => path.includes("mlp"))).toEqual([]);
    expect(found).toHaveLength(12);
  });

  it.each<[string, LoraConfigOptions, string]>([
    [
      "a list that matches nothing",
      { targetModules: ["q_prj"] },
      "getPeftModel: targetModules must name layers of the model, got [q_prj (did you mean q_proj?)]",
    ],
    [
      "one item that matches nothing",
      { targetModules: ["v_proj", "qproj"] },
      "getPeftModel: each of targetModules must name layers of the model, got qproj (did you mean q_proj?)",
    ],
    [
      "a pattern that matches nothing",
      { targetModules: "q_proj" },
      'getPeftModel: targetModules must name layers of the model, got "q_proj"',
    ],
    [
      "layers that there are not",
      { targetModules: ["q_proj"], layersToTransform: [7] },
      "getPeftModel: targetModules must name layers of the model, got [q_proj] in layers [7]",
    ],
    [
      "all excluded",
      { targetModules: ["q_proj"], excludeModules: ["q_proj"] },
      "getPeftModel: targetModules must name layers of the model, got [q_proj], and all that it names are excluded or saved whole",
    ],
    [
      "what is no linear layer",
      { targetModules: ["mlp"] },
      "getPeftModel: a target must be a linear layer or an embedding, got GatedMlp at model.layers.0.mlp",
    ],
    [
      "a module to save that there is not",
      { targetModules: ["q_proj"], modulesToSave: ["lmhead"] },
      "getPeftModel: each of modulesToSave must name modules of the model, got lmhead (did you mean lm_head?)",
    ],
    [
      "nothing",
      {},
      "getPeftModel: the config must name something that learns: targetModules, modulesToSave or trainableTokenIndices, got none",
    ],
  ])("refuses %s, and changes nothing", (_, config, message) => {
    const model = newModel();
    const state = [...model.stateDict().keys()];
    expect(() => getPeftModel(model, new LoraConfig(config))).toThrow(option(message));
    expect([...model.stateDict().keys()]).toEqual(state);
    expect(model.parameters().every(({ requiresGrad }) => requiresGrad)).toBe(true);
    getPeftModel(model, new LoraConfig({ targetModules: ["q_proj"] }));
  });
});

describe("ranks and scales", () => {
  it("follow the first pattern that matches the path", () => {
    const config = new LoraConfig({
      ...{ r: 4, loraAlpha: 6, targetModules: ["q_proj", "up_proj"] },
      rankPattern: { "layers\\.1\\..*q_proj": 2, q_proj: 3 },
      alphaPattern: { up_proj: 1 },
    });
    const peft = getPeftModel(newModel(), config);
    const found = [...peft.layers.values()].map((layer) => {
      const { r, scaling, loraA, loraB } = (layer as LoraLinear).adapters.get("default")!;
      expect([loraA.shape, loraB.shape]).toEqual([
        [r, 16],
        [(layer as LoraLinear).outFeatures, r],
      ]);
      return [r, scaling];
    });
    expect(found).toEqual([
      [3, 2],
      [4, 0.25],
      [2, 3],
      [4, 0.25],
      [3, 2],
      [4, 0.25],
    ]);
  });

  it("divide by the root of the rank with useRslora", () => {
    const peft = getPeftModel(
      newModel(),
      new LoraConfig({ r: 4, loraAlpha: 6, useRslora: true, targetModules: ["q_proj"] }),
    );
    for (const layer of peft.layers.values()) expect((layer as LoraLinear).adapters.get("default")!.scaling).toBe(3);
  });
});

describe("start", () => {
  it.each([{}, { useDora: true }, { initLoraWeights: "gaussian" as const }, { loraBias: true }])(
    "changes no logit: %o",
    (more) => {
      const model = newModel();
      const ids = tensor([[1, 2, 3, 4]], { dtype: "int32" });
      owned.push(ids);
      const logits = () => noGrad(() => tidy(() => Array.from(model.forward(ids).floatsSync())));
      const before = logits();
      getPeftModel(model, new LoraConfig({ targetModules: "all-linear", ...more }));
      const after = logits();
      expect(Math.max(...after.map((v, i) => Math.abs(v - before[i]!)))).toBeLessThan(1e-6);
    },
  );

  it("is random with initLoraWeights false, normal of deviation 1 / r with gaussian", () => {
    const make = (initLoraWeights: false | "gaussian") => {
      const layer = new LoraLinear(new Linear(400, 30), { r: 10, initLoraWeights, generator: new Generator(3) });
      owned.push(layer);
      return layer.adapters.get("default")!;
    };
    expect(new Set(make(false).loraB.floatsSync()).size).toBeGreaterThan(250);
    expect(Math.max(...make(false).loraB.floatsSync().map(Math.abs))).toBeLessThanOrEqual(1 / Math.sqrt(10));
    const a = make("gaussian").loraA.floatsSync();
    expect(Math.sqrt(a.reduce((sum, v) => sum + v * v, 0) / a.length)).toBeCloseTo(0.1, 2);
    expect(new Set(make("gaussian").loraB.floatsSync())).toEqual(new Set([0]));
  });
});

describe("what learns", () => {
  it("is the adapter alone, and printTrainableParameters says how much that is", () => {
    const model = newModel();
    const all = model.parameters().reduce((sum, { size }) => sum + size, 0);
    const peft = getPeftModel(model, new LoraConfig({ r: 2, targetModules: ["q_proj"] }));
    const learning = peft.namedParameters().filter(([, { requiresGrad }]) => requiresGrad);
    expect(learning.map(([, parameter]) => parameter)).toEqual(peft.parametersOf("default"));
    const count = { trainable: 3 * 2 * 32, all: all + 192, percent: (100 * 192) / (all + 192) };
    expect(peft.trainableParameters()).toEqual(count);
    const log = vi.spyOn(console, "log").mockImplementation(() => {});
    peft.printTrainableParameters();
    const shown = `trainable params: 192 || all params: ${(all + 192).toLocaleString("en-US")} || trainable%: ${count.percent.toFixed(4)}`;
    expect(log.mock.calls).toEqual([[shown]]);
    log.mockRestore();
  });

  it("a second getPeftModel is refused, and leaves the first learning", () => {
    const model = newModel();
    const peft = getPeftModel(model, new LoraConfig({ targetModules: ["q_proj"] }));
    const message =
      "PeftModel: model must have no adapters yet, got one with some; addAdapter of its PeftModel adds another";
    for (const again of [model, peft]) {
      expect(() => getPeftModel(again, new LoraConfig({ targetModules: ["k_proj"] }))).toThrow(option(message));
    }
    expect(peft.parametersOf("default").every(({ requiresGrad }) => requiresGrad)).toBe(true);
  });

  it("is float32 in a 16-bit model that prepareModelForKbitTraining widened", () => {
    const model = newModel("bfloat16");
    const before = Array.from(model.model.embedTokens.weight.floatsSync());
    expect(prepareModelForKbitTraining(model)).toBe(model);
    expect(new Set(model.parameters().map(({ dtype }) => dtype))).toEqual(new Set(["float32"]));
    expect(model.parameters().some(({ requiresGrad }) => requiresGrad)).toBe(false);
    expect(Array.from(model.model.embedTokens.weight.floatsSync())).toEqual(before);
  });

  it("ends with the PeftModel", () => {
    const before = memory().tensors;
    const model = new LlamaForCausalLM(sizes);
    const peft = getPeftModel(
      model,
      new LoraConfig({ targetModules: "all-linear", modulesToSave: ["lm_head"], useDora: true }),
    );
    peft.dispose();
    expect(memory().tensors).toBe(before);
  });
});

describe("LoraConfig", () => {
  it.each<[object, string]>([
    [{ lora_alpha: 3 }, "got lora_alpha (did you mean loraAlpha?)"],
    [{ r: 0 }, "LoraConfig: r must be an integer of at least 1, got 0"],
    [{ loraDropout: 2 }, "LoraConfig: loraDropout must be a number from 0 to 1, got 2"],
    [
      { initLoraWeights: "eva" },
      "LoraConfig: initLoraWeights must be one of true, false, gaussian, pissa, olora, loftq",
    ],
    [
      { targetModules: "(a)\\1" },
      'LoraConfig: the pattern "(a)\\\\1" must look ahead only where it begins, not back, nor repeat',
    ],
    [{ targetModules: "(" }, 'LoraConfig: the pattern "(" must be a regular expression'],
    [{ useDora: true, loraBias: true }, "LoraConfig: useDora and loraBias must not be given together, got both"],
    [
      { targetModules: "x", layersToTransform: 1 },
      'LoraConfig: layersToTransform needs a list of targetModules, got "x"',
    ],
    [{ rankPattern: { q: 0 } }, "LoraConfig: rankPattern must be an object of integers of at least 1"],
  ])("refuses %o", (options, message) => {
    expect(() => new LoraConfig(options as LoraConfigOptions)).toThrow(message);
  });
});
