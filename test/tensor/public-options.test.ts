// Every public function and class, in two tables: those that take options, each with a call, and those that take none.
// An unknown key, or something else in place of the object, is refused by each of the first; a new export that is in no
// table fails.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import * as bnb from "../../src/index.js";
import { functional, hub, nn, optim, train } from "../../src/index.js";

type Options = Record<string, unknown>;
interface Entry {
  /** Calls with the options given: whatever comes. */
  call: (options: never) => unknown;
  /** What must be given. */
  needs?: Options;
}

const folder = mkdtempSync(join(tmpdir(), "bnb-options-"));
const keep = bnb.keep;
const x = keep(bnb.rand([2, 64]));
const ids = keep(bnb.tensor([[0, 1]], { dtype: "int32" }));
const heads = keep(bnb.rand([1, 2, 1, 4]));
const pages = keep(bnb.zeros([1, 1, 16, 4]));
const kv = { keys: pages, values: pages };
const table = {
  starts: keep(bnb.tensor([0, 2], { dtype: "int32" })),
  lengths: keep(bnb.tensor([2], { dtype: "int32" })),
  pages: keep(bnb.tensor([[0]], { dtype: "int32" })),
};
const [packed, state] = bnb.quantize4bit(x);
const [codes, state8] = bnb.quantizeBlockwise(x);
const rows = bnb.int8VectorwiseQuant(x);
const product = bnb.int8LinearMatmul(rows.codes, rows.codes);
const config = { vocabSize: 8, hiddenSize: 4, intermediateSize: 4, numHiddenLayers: 1, numAttentionHeads: 1 };
const model = new bnb.LlamaForCausalLM(config);
const qProj = new bnb.LoraConfig({ targetModules: ["q_proj"] });
const newPeft = () => bnb.getPeftModel(new bnb.LlamaForCausalLM(config), qProj);
const plainText = readFileSync("test/fixtures/families/llama-plain/fp32/config.json", "utf8");
const plainLlama = () => new bnb.LlamaForCausalLM(bnb.LlamaConfig.fromJSON(JSON.parse(plainText)));
const llama = model.config;
const llamaFixture = bnb.LlamaConfig.fromJSON(
  JSON.parse(readFileSync("test/fixtures/models/llama/nf4/config.json", "utf8")),
);
const source = await hub.openCheckpoint("test/fixtures/models/llama/nf4");
const tokenizerFolder = "test/fixtures/models/tokenizer";
const tokenizer = await bnb.AutoTokenizer.fromPretrained(tokenizerFolder);
const parameter = () => [new nn.Parameter(bnb.rand([4]))];
const bytes = new Uint8Array(64);
const adapted = bnb.getPeftModel(new bnb.LlamaForCausalLM(config), new bnb.LoraConfig({ targetModules: ["q_proj"] }));
const sample = { ids: Int32Array.of(1, 2), labels: Int32Array.of(1, 2) };
const batch = { batchSize: 1, sequenceLength: 4 };
const zeros = (dtype: "float32" | "uint8") => bnb.zeros(dtype === "uint8" ? [4] : [1], { dtype });

afterAll(async () => {
  await source.close();
  tokenizer.dispose();
  rmSync(folder, { recursive: true });
  const plan = Object.values(table);
  for (const used of [x, ids, heads, pages, packed, state, codes, state8, rows, product, model, ...plan])
    used.dispose();
});

const ofShape = (make: unknown): Entry => ({ call: (o) => (make as (s: number[], o: Options) => unknown)([2, 2], o) });
const layer = (Layer: unknown): Entry => ({
  call: (o) => new (Layer as new (i: number, o: number, options: Options) => unknown)(64, 64, o),
});
const optimizer = (Optimizer: unknown, needs?: Options): Entry => ({
  call: (o) => new (Optimizer as new (p: Tensor[], o: Options) => unknown)(parameter(), o),
  ...(needs && { needs }),
});
const optimizers = Object.entries(optim).filter(([, value]) => value?.prototype instanceof optim.Optimizer8bit);
const rates = { paramGroups: [{ lr: 1 }] };
const rowOf = (value: number) => bnb.full([2], value);
const samplingRows = {
  ...{ temperature: rowOf(0), topP: rowOf(1), minP: rowOf(0), typicalP: rowOf(1) },
  ...{ repetition: rowOf(1), presence: rowOf(0), frequency: rowOf(0) },
  topK: bnb.zeros([2], { dtype: "int32" }),
  seed: bnb.zeros([2, 2], { dtype: "int32" }),
  step: bnb.zeros([2], { dtype: "int32" }),
};
const update = { beta1: 0.9, beta2: 0.9, eps: 1e-8, step: 1, lr: 0.1 };

const withOptions: Record<string, Entry> = {
  // biome-ignore format: one line each
  ...{
    arange: { call: (o) => bnb.arange(3, undefined, 1, o) },
    empty: ofShape(bnb.empty), ones: ofShape(bnb.ones), zeros: ofShape(bnb.zeros),
    rand: ofShape(bnb.rand), randn: ofShape(bnb.randn),
    randint: { ...ofShape(bnb.randint), needs: { high: 4 } },
    full: { call: (o) => bnb.full([2], 1, o) },
    tensor: { call: (o) => bnb.tensor([1], o) },
    fromBytes: { call: (o) => bnb.fromBytes(bytes, o), needs: { dtype: "uint8", shape: [64] } },
    capture: { call: (o) => bnb.capture(() => bnb.add(x, 1), o) },
    matmul: { call: (o) => bnb.matmul(x, x, o), needs: { transposeB: true } },
    attention: { call: (o) => bnb.attention(heads, heads, heads, o) },
    pagedAttention: { call: (o) => bnb.pagedAttention(heads.reshape([2, 1, 4]), kv, table, o) },
    chooseExperts: { call: (o) => bnb.chooseExperts(x, 1, o) },
    crossEntropy: { call: (o) => bnb.crossEntropy(bnb.rand([2, 4]), bnb.tensor([0, 1], { dtype: "int32" }), o) },
    dropout: { call: (o) => bnb.dropout(x, 0.5, o) },
    embedding: { call: (o) => bnb.embedding(ids, x, o) },
    sum: { call: (o) => bnb.sum(x, o) }, mean: { call: (o) => bnb.mean(x, o) },
    max: { call: (o) => bnb.max(x, o) }, min: { call: (o) => bnb.min(x, o) },
    argmax: { call: (o) => bnb.argmax(x, o) },
    sampleToken: { call: (o) => bnb.sampleToken(x, o) },
    copyInto: { call: (o) => bnb.copyInto(bnb.zeros([2, 64]), x, o) },
    createDynamicMap: { call: (o) => bnb.createDynamicMap(true, 7, 8, o) },
    createLinearMap: { call: (o) => bnb.createLinearMap(true, 8, true, o) },
    createFp8Map: { call: (o) => bnb.createFp8Map(true, 5, 2, 8, o) },
    createNormalMap: { call: (o) => bnb.createNormalMap(0.96, true, o) },
    get4bitType: { call: (o) => bnb.get4bitType("nf4", o) },
    quantize4bit: { call: (o) => bnb.quantize4bit(x, o) },
    quantizeNf4: { call: (o) => bnb.quantizeNf4(x, o) }, quantizeFp4: { call: (o) => bnb.quantizeFp4(x, o) },
    dequantize4bit: { call: (o) => bnb.dequantize4bit(packed, o), needs: { quantState: state } },
    dequantizeFp4: { call: (o) => bnb.dequantizeFp4(packed, o), needs: { quantState: state } },
    dequantizeNf4: { call: (o) => bnb.dequantizeNf4(bnb.quantizeNf4(x)[0], o), needs: { quantState: bnb.quantizeNf4(x)[1] } },
    quantizeBlockwise: { call: (o) => bnb.quantizeBlockwise(x, o) },
    dequantizeBlockwise: { call: (o) => bnb.dequantizeBlockwise(codes, o), needs: { quantState: state8 } },
    matmul4bit: { call: (o) => bnb.matmul4bit(bnb.rand([1, 64]), packed, state, o) },
    gemv4bit: { call: (o) => bnb.gemv4bit(bnb.rand([1, 64]), packed, state, o) },
    int8VectorwiseQuant: { call: (o) => bnb.int8VectorwiseQuant(x, o) },
    int8LinearMatmul: { call: (o) => bnb.int8LinearMatmul(rows.codes, rows.codes, o) },
    int8MmDequant: { call: (o) => bnb.int8MmDequant(product, rows.stats, rows.stats, o) },
    matmul8bit: { call: (o) => bnb.matmul8bit(x, rows.codes, rows.stats, o) },
    QuantState: {
      call: (o) => new bnb.QuantState(o),
      needs: { absmax: bnb.ones([2]), blocksize: 64, dtype: "float32", shape: [2, 64], quantType: "nf4" },
    },
    applyLora: { call: (o) => bnb.applyLora(new bnb.LlamaForCausalLM(config), o), needs: { targetModules: ["q_proj"] } },
    LoraLinear: { call: (o) => new bnb.LoraLinear(new nn.Linear(4, 4), o) },
    LoraConfig: { call: (o) => new bnb.LoraConfig(o) },
    getPeftModel: { call: (o) => bnb.getPeftModel(new bnb.LlamaForCausalLM(config), qProj, o) },
    "PeftModel.addAdapter": { call: (o) => newPeft().addAdapter("b", qProj, o) },
    "PeftModel.setAdapter": { call: (o) => newPeft().setAdapter("default", o) },
    "PeftModel.addWeightedAdapter": { call: (o) => newPeft().addWeightedAdapter(["default"], [1], "b", o) },
    "PeftModel.savePretrained": { call: (o) => newPeft().savePretrained(`${folder}/adapter`, o) },
    "PeftModel.loadAdapter": { call: (o) => bnb.getPeftModel(plainLlama(), qProj).loadAdapter("test/fixtures/adapters/part-a", "b", o) },
    "PeftModel.fromPretrained": { call: (o) => bnb.PeftModel.fromPretrained(plainLlama(), "test/fixtures/adapters/part-a", o) },
    "PeftModel.mergeAdapter": { call: (o) => newPeft().mergeAdapter(o) },
    "PeftModel.mergeAndUnload": { call: (o) => newPeft().mergeAndUnload(o) },
    generate: { call: (o) => bnb.generate(model, [1], o), needs: { maxNewTokens: 1 } },
    complete: { call: (o) => bnb.complete(model, [1], o), needs: { maxNewTokens: 1 } },
    score: { call: (o) => bnb.score(model, [1, 2], o) },
    embed: { call: async (o) => (await bnb.embed(model, [1, 2], o)).dispose() },
    KvPages: { call: (o) => new bnb.KvPages(model.kvLayout(), o), needs: { pages: 1 } },
    Engine: { call: (o) => new bnb.Engine(model, o) },
    "Engine.submit": { call: (o) => new bnb.Engine(model).submit([1], o), needs: { maxNewTokens: 1 } },
    "Engine.open": { call: (o) => new bnb.Engine(model).open([1], o) },
    beamSearch: { call: (o) => bnb.beamSearch(new bnb.Engine(model), [1], o), needs: { maxNewTokens: 1 } },
    sampleTokens: { call: (o) => bnb.sampleTokens(x, samplingRows, o) },
    LlamaConfig: { call: (o) => new bnb.LlamaConfig(o), needs: config },
    LlamaForCausalLM: { call: (o) => new bnb.LlamaForCausalLM(llama, o as never) },
    "nn.Linear": layer(nn.Linear), "nn.Linear8bitLt": layer(nn.Linear8bitLt), "nn.Linear4bit": layer(nn.Linear4bit),
    "nn.LinearNF4": layer(nn.LinearNF4), "nn.LinearFP4": layer(nn.LinearFP4),
    "nn.Embedding": layer(nn.Embedding), "nn.StableEmbedding": layer(nn.StableEmbedding),
    "nn.Embedding8bit": layer(nn.Embedding8bit), "nn.Embedding4bit": layer(nn.Embedding4bit),
    "nn.EmbeddingNF4": layer(nn.EmbeddingNF4), "nn.EmbeddingFP4": layer(nn.EmbeddingFP4),
    int8DoubleQuant: { call: (o) => bnb.int8DoubleQuant(x, o) },
    packDictToTensor: { call: (o) => bnb.packDictToTensor({ a: 1 }, o) },
    "functional.matmul": { call: (o) => functional.matmul(x, bnb.rand([2, 64]), o) },
    "nn.Int8Params": { call: (o) => new nn.Int8Params(bnb.rand([2, 64]), o) },
    "nn.OutlierAwareLinear": layer(nn.OutlierAwareLinear),
    "nn.findOutlierDims": { call: (o) => nn.findOutlierDims(bnb.rand([4, 4]), o) },
    "nn.replaceParameter4bit": { call: (o) => nn.replaceParameter4bit(new nn.Linear(64, 2), "weight", o) },
    "nn.LayerNorm": { call: (o) => new nn.LayerNorm(4, o) }, "nn.RMSNorm": { call: (o) => new nn.RMSNorm(4, o) },
    "nn.Dropout": { call: (o) => new nn.Dropout(0.5, o) }, "nn.GELU": { call: (o) => new nn.GELU(o) },
    mseLoss: { call: (o) => bnb.mseLoss(x, x, o) }, l1Loss: { call: (o) => bnb.l1Loss(x, x, o) },
    bceWithLogitsLoss: { call: (o) => bnb.bceWithLogitsLoss(x, x, o) },
    "nn.Parameter": { call: (o) => new nn.Parameter(bnb.rand([2]), o) },
    "nn.Params4bit": { call: (o) => new nn.Params4bit(bnb.rand([2, 64]), o) },
    "nn.replaceLinear": { call: (o) => nn.replaceLinear(new nn.Sequential(new nn.Linear(2, 2)), (i, k) => new nn.Linear(i, k), o) },
    "nn.init.uniform": { call: (o) => nn.init.uniform([2], 0, 1, o) },
    "nn.init.normal": { call: (o) => nn.init.normal([2], 0, 1, o) },
    "nn.init.kaimingUniform": ofShape(nn.init.kaimingUniform), "nn.init.xavierUniform": ofShape(nn.init.xavierUniform),
    "optim.clipGradNorm": { call: (o) => optim.clipGradNorm(parameter(), 1, o) },
    "optim.constantSchedule": { call: (o) => optim.constantSchedule(rates, o) },
    "optim.linearSchedule": { call: (o) => optim.linearSchedule(rates, o), needs: { totalSteps: 2 } },
    "optim.cosineSchedule": { call: (o) => optim.cosineSchedule(rates, o), needs: { totalSteps: 2 } },
    "optim.optimizerUpdate32bit": {
      call: (o) => optim.optimizerUpdate32bit("lion", bnb.ones([4]), bnb.ones([4]), bnb.ones([4]), o), needs: update,
    },
    "optim.optimizerUpdate8bitBlockwise": {
      call: (o) => optim.optimizerUpdate8bitBlockwise("lion", bnb.ones([4]), bnb.ones([4]), zeros("uint8"), null, o),
      needs: { ...update, qmap1: bnb.createDynamicMap(), absmax1: zeros("float32") },
    },
    "train.splitBytes": { call: (o) => train.splitBytes(bytes, o) },
    "train.randomBatches": { call: (o) => train.randomBatches(bytes, o).next(), needs: { ...batch, seed: 1 } },
    "train.evenBatches": { call: (o) => train.evenBatches(bytes, o).next(), needs: { ...batch, count: 1 } },
    "train.train": {
      call: (o) => train.train(o),
      needs: { model, optimizer: new optim.Adam(model.parameters()), parameters: [], batches: [].values(), steps: 0 },
    },
    "train.loadDataset": { call: (o) => train.loadDataset([{ text: "a b" }], o), needs: { tokenizer, maxLength: 8 } },
    "train.loadPreferences": {
      call: (o) => train.loadPreferences([{ prompt: "a", chosen: "b", rejected: "c" }], o), needs: { tokenizer, maxLength: 8 },
    },
    "train.storeDataset": {
      call: (o) => train.storeDataset([{ text: "a b" }], join(folder, "samples"), o), needs: { tokenizer, maxLength: 8 },
    },
    "train.storePreferences": {
      call: (o) => train.storePreferences([{ prompt: "a", chosen: "b", rejected: "c" }], join(folder, "pairs"), o), needs: { tokenizer, maxLength: 8 },
    },
    "train.Trainer": {
      call: (o) => new train.Trainer(o), needs: { model, args: { outputDir: folder }, trainDataset: [sample] },
    },
    "train.DPOTrainer": {
      call: (o) => new train.DPOTrainer(o), needs: { model: adapted, args: { outputDir: folder }, trainDataset: [{ chosen: sample, rejected: sample }] },
    },
    "train.Trainer args": {
      call: (o) => new train.Trainer({ model, args: o, trainDataset: [sample] }), needs: { outputDir: folder },
    },
    "hub.saveSafetensors": { call: (o) => hub.saveSafetensors(`${folder}/x.safetensors`, { x }, o) },
    "hub.saveCheckpoint": { call: (o) => hub.saveCheckpoint(folder, { x }, o) },
    "hub.loadCheckpoint": {
      call: (o) => hub.loadCheckpoint(new bnb.LlamaForCausalLM(llamaFixture), source, o),
    },
    BitsAndBytesConfig: { call: (o) => new bnb.BitsAndBytesConfig(o) },
    "hub.BitsAndBytesConfig": { call: (o) => new hub.BitsAndBytesConfig(o) },
    "AutoModelForCausalLM.fromPretrained": { call: (o) => bnb.AutoModelForCausalLM.fromPretrained("test/fixtures/models/llama/nf4", o) },
    dequantizeModel: { call: (o) => bnb.dequantizeModel(new nn.Sequential(new nn.Linear(2, 2)), o) },
    savePretrained: {
      call: async (o) => bnb.savePretrained(await bnb.AutoModelForCausalLM.fromPretrained("test/fixtures/models/llama/nf4"), folder, o),
    },
    "AutoTokenizer.fromPretrained": { call: async (o) => (await bnb.AutoTokenizer.fromPretrained(tokenizerFolder, o)).dispose() },
    // Methods.
    "Tokenizer.encode": { call: (o) => tokenizer.encode("a", o) },
    "Tokenizer.decode": { call: (o) => tokenizer.decode([1], o) },
    "Tokenizer.applyChatTemplate": { call: (o) => tokenizer.applyChatTemplate([{ role: "user", content: "" }], o) },
    "TensorSource.load": { call: (o) => source.load("model.norm.weight", o) },
    "x.sum": { call: (o) => x.sum(o) }, "x.mean": { call: (o) => x.mean(o) }, "x.max": { call: (o) => x.max(o) },
    "x.min": { call: (o) => x.min(o) }, "x.argmax": { call: (o) => x.argmax(o) },
    "x.matmul": { call: (o) => x.matmul(x, o), needs: { transposeB: true } },
    "Module.loadStateDict": { call: (o) => model.loadStateDict(model.stateDict(), o) },
    "LlamaForCausalLM.forward": { call: (o) => model.forward(ids, o) },
    "LlamaForCausalLM.generate": { call: (o) => model.generate([1], o), needs: { maxNewTokens: 1 } },
    "LlamaForCausalLM.hiddenStates": { call: (o) => model.hiddenStates(ids, o) },
    "LlamaForCausalLM.complete": { call: (o) => model.complete([1], o), needs: { maxNewTokens: 1 } },
    "LlamaForCausalLM.score": { call: (o) => model.score([1, 2], o) },
    "LlamaForCausalLM.embed": { call: async (o) => (await model.embed([1, 2], o)).dispose() },
    "QuantState.asDict": { call: (o) => state.asDict(o) },
    "Params4bit.fromPrequantized": {
      call: (o) => { const [data, s] = bnb.quantizeNf4(x); return nn.Params4bit.fromPrequantized(data, s.asDict({ packed: true }), o); },
    },
  } satisfies Record<string, Entry>,
  ...Object.fromEntries(
    optimizers
      .filter(([name]) => !/^Optimizer\d/.test(name))
      .map(([name, value]) => [
        `optim.${name}`,
        optimizer(value, /SGD|LARS/.test(name) ? { lr: 0.1, momentum: 0.9 } : undefined),
      ]),
  ),
};

const withoutOptions = new Set(
  `abs add backward cast clamp clone concat broadcastTo defineOp defaultDevice devices div embedding4bit embedding8bit
  embeddingRenorm emptyCache exp expandAbsmax fmaPeak gelu geluTanh getNumThreads gpuStatus int8VectorwiseDequant Int8Rows isGradEnabled keep
  kvAppend loraRows AdapterSet
  layerNorm linear linear4bit linear4bitEach linear4bitSwiglu log logSoftmax manualSeed maximum memory minimum mul neg noGrad
  permute pow reciprocal relu reshape rmsNorm rope rsqrt seededRandom setDefaultDevice setNumThreads sigmoid sign silu slice
  softmax softplus MatmulLtState Int8DoubleQuant unpackTensorToDict sqrt square sub swiglu synchronize tanh tidy to transpose BnbError Device Generator Graph ExpertWeights expertWeights expertsSwiglu Quantized4Bit Tensor
  PeftModel prepareModelForKbitTraining CausalLM Encoder SequenceClassifier TextModel
  linear4bitPlan linear4bitGpuPlan linear4bitGroupGpuPlan matmulGpuPlan
  nn.OutlierTracer nn.Bnb4bitParametrization nn.replaceParameter4bitPrequantized
  nn.Module nn.ReLU nn.SiLU nn.Tanh nn.Sigmoid nn.Softmax nn.Flatten nn.ModuleList nn.Sequential nn.snakeCase nn.uninitialized nn.linearEach nn.linearResidual nn.linearSwiglu nn.setActivationQuant
  optim.GlobalOptimManager optim.LambdaLR optim.clipGradValue optim.Optimizer8bit optim.Optimizer1State
  optim.Optimizer2State train.evaluate hub.openCheckpoint`.split(/\s+/),
);

const spaces: [prefix: string, names: object][] = [
  ["", bnb],
  ["nn.", nn],
  ["nn.init.", nn.init],
  ["optim.", optim],
  ["train.", train],
  ["hub.", hub],
];
const exported = spaces.flatMap(([prefix, names]) =>
  Object.entries(names).flatMap(([name, value]) => (typeof value === "function" ? [`${prefix}${name}`] : [])),
);

/** Runs a call to the end, however it gives its result. */
async function settled(call: () => unknown): Promise<unknown> {
  const result = call();
  const isIterator = typeof result === "object" && result !== null && Symbol.asyncIterator in result;
  return isIterator ? (result as AsyncGenerator).next() : result;
}

describe("public options", () => {
  it("has every export in one of its tables", () => {
    expect(exported.filter((name) => !(name in withOptions) && !withoutOptions.has(name))).toEqual([]);
    expect(exported.filter((name) => name in withOptions && withoutOptions.has(name))).toEqual([]);
  });

  it("has what bitsandbytes-node/functional exports among them", () => {
    const known = new Set<unknown>([...Object.values(bnb), ...Object.values(optim)]);
    const others = Object.entries(functional).filter(([, value]) => !known.has(value));
    expect(others.filter(([name]) => !(`functional.${name}` in withOptions))).toEqual([]);
  });

  it.each(Object.entries(withOptions))("%s", async (_name, { call, needs = {} }) => {
    const wanted = (message: string) => expect.objectContaining({ name: "BnbError", code: "ERR_BNB_OPTION", message });
    const failure = async (options: unknown) => {
      try {
        await settled(() => call(options as never));
      } catch (error) {
        return error;
      }
      return "no error";
    };
    expect(await failure({ ...needs, made_up: 1 })).toEqual(
      wanted(
        expect.stringMatching(
          /^\S+: options must be among .*, got made_up$|^\S+: options must be among \w+, got made_up$/,
        ),
      ),
    );
    for (const wrong of [6, false, "nf4", null, [1]]) {
      expect(await failure(wrong)).toEqual(wanted(expect.stringMatching(/: options must be an object/)));
    }
    expect(await failure({ ...needs })).toBe("no error");
  });
});
