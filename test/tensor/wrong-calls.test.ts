// Every public function, class and method called with what it does not take: whatever it throws is a BnbError, which says
// what must hold, and never an error from inside.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import * as bnb from "../../src/index.js";
import { BnbError, hub, nn, optim, train } from "../../src/index.js";

const x = bnb.keep(bnb.ones([2, 3]));
const layer = new nn.Linear(3, 2);
const junk: unknown[] = [undefined, null, 5, 2.5, "no", [], [1], {}, () => 1, layer, x, Symbol("s"), 3n, true];
const someLists: unknown[][] = [
  [],
  ...junk.flatMap((a) => [[a], [a, a], [x, a], [x, x, a], [2, 3, a]]),
  ...junk.flatMap((a) => junk.map((b) => [x, a, b])),
];

// Some calls write a file by the name that came.
const before = process.cwd();
const folder = mkdtempSync(join(tmpdir(), "bnb-wrong-calls-"));
beforeAll(() => process.chdir(folder));
afterAll(() => {
  process.chdir(before);
  rmSync(folder, { recursive: true });
});

/** The faults found: which call threw something else. */
const faults = new Set<string>();

async function tryCall(name: string, call: () => unknown): Promise<void> {
  try {
    const result = call();
    // Generators check at their first step.
    const isGenerator = Object.prototype.toString.call(result).endsWith("Generator]");
    await (isGenerator ? (result as AsyncGenerator).next() : result);
  } catch (error) {
    if (!(error instanceof BnbError)) faults.add(`${name}: ${String(error)}`);
  }
}

type Callable = (...args: unknown[]) => unknown;
type Class = new (...args: unknown[]) => unknown;

it("public functions and classes", async () => {
  const spaces = { "": bnb, "nn.": nn, "nn.init.": nn.init, "optim.": optim, "train.": train, "hub.": hub };
  // Abstract classes, and what only bug reports and benchmarks call.
  const others = /^optim\.Optimizer|Plan$|^BnbError$|^Device$|^Graph$|^nn\.Module$/;
  for (const [prefix, names] of Object.entries(spaces)) {
    for (const [name, value] of Object.entries(names)) {
      if (typeof value !== "function" || others.test(prefix + name)) continue;
      const isClass = /^class\s/.test(Function.prototype.toString.call(value));
      for (const list of someLists) {
        await tryCall(prefix + name, () => (isClass ? new (value as Class)(...list) : (value as Callable)(...list)));
        bnb.setDefaultDevice("cpu");
      }
    }
  }
  expect([...faults]).toEqual([]);
}, 60_000);

it("methods", async () => {
  const inner = [
    "constructor",
    "dispose",
    "takeHandle",
    "escape",
    "alias",
    "isHeldBy",
    "replaceHandle",
    "backward",
    "held",
    "buffer",
    "single",
    "checkGradient",
  ];
  const methods = (prototype: object, ...without: string[]) =>
    Object.entries(Object.getOwnPropertyDescriptors(prototype)).flatMap(([name, { value }]) =>
      typeof value === "function" && !without.includes(name) ? [name] : [],
    );
  const model = new bnb.LlamaForCausalLM({
    vocabSize: 8,
    hiddenSize: 4,
    intermediateSize: 4,
    numHiddenLayers: 1,
    numAttentionHeads: 1,
  });
  const ofModules = ["forward", "loadStateDict", "to", "train", "requiresGrad_", "namedModules", "replaceMember"];
  const targets: [target: object, names: string[]][] = [
    [bnb.keep(bnb.ones([2, 3])), methods(bnb.Tensor.prototype, ...inner)],
    [bnb.quantize4bit(bnb.ones([64]))[1], ["to", "asDict", "equals", "quantized"]],
    [new optim.Adam8bit(layer.parameters()), ["loadStateDict", "addParamGroup", "step"]],
    [model, [...ofModules, "generate", "complete", "score", "embed"]],
    ...[
      layer,
      new nn.LinearNF4(3, 2),
      new nn.Linear8bitLt(3, 2),
      new nn.Embedding(3, 2),
      new nn.EmbeddingNF4(3, 2),
      new nn.Embedding8bit(3, 2),
      new nn.StableEmbedding(3, 2),
      new nn.RMSNorm(3),
      new nn.LayerNorm(3),
      new nn.Dropout(),
      new nn.Sequential(new nn.Linear(3, 2)),
      new bnb.LoraLinear(new nn.Linear(3, 2)),
      bnb.getPeftModel(new nn.Sequential(new nn.Linear(3, 2)), new bnb.LoraConfig({ targetModules: ["0"] })),
    ].map((module): [object, string[]] => [module, ofModules]),
    [
      bnb.getPeftModel(new nn.Sequential(new nn.Linear(3, 2)), new bnb.LoraConfig({ targetModules: ["0"] })),
      [
        "addAdapter",
        "setAdapter",
        "withoutAdapters",
        "deleteAdapter",
        "parametersOf",
        "mergeAdapter",
        "mergeAndUnload",
        "addWeightedAdapter",
        "loadAdapter",
      ],
    ],
    [bnb.PeftModel, ["fromPretrained"]],
    [new bnb.AdapterSet(model), ["load", "unload", "has"]],
    [bnb.QuantState, ["fromDict"]],
    [bnb.LlamaConfig, ["fromJSON"]],
    [bnb.BitsAndBytesConfig, ["fromJSON"]],
    [bnb.AutoTokenizer, ["fromPretrained"]],
    [
      await bnb.AutoTokenizer.fromPretrained(join(before, "test/fixtures/models/tokenizer")),
      ["encode", "decode", "tokenToId", "idToToken", "applyChatTemplate"],
    ],
    [bnb.AutoModelForCausalLM, ["fromPretrained"]],
    [nn.Params4bit, ["fromPrequantized"]],
    [await hub.openCheckpoint(join(before, "test/fixtures/models/llama/nf4")), ["info", "load", "bytes"]],
  ];
  const lists = junk.flatMap((a) => [[a], [a, a], [x, a], [0, a]]);
  for (const [target, names] of targets) {
    for (const name of names) {
      for (const list of lists) {
        const method = Reflect.get(target, name) as Callable;
        await tryCall(`${target.constructor.name}.${name}`, () => method.apply(target, list));
      }
    }
  }
  expect([...faults]).toEqual([]);
}, 60_000);
