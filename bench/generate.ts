// Generation on the CPU by a model of TinyLlama's shape (1.1 billion weights) in NF4, head and activations in bfloat16, against
// what the machine could do in the same run: bytes of a token by the bandwidth of reading, multiply-adds of a prompt by their
// peak. Weights are random: speed does not depend on them. "int8" lets activations be rounded to 8 bits; the peak is the one of
// float32 all the same.
import type { ActivationQuant } from "bitsandbytes-node";
import { Engine, LlamaForCausalLM, memory, nn, randn } from "bitsandbytes-node";
import type { Result } from "./timing.js";
import { fmaGigaflops, quantile, readGigabytes, record } from "./timing.js";

const config = {
  vocabSize: 32_000,
  hiddenSize: 2048,
  intermediateSize: 5632,
  numHiddenLayers: 22,
  numAttentionHeads: 32,
  numKeyValueHeads: 4,
  maxPositionEmbeddings: 2048,
};

/** Quantized layer by layer: the floats of the whole model would take 4.4 GB. */
function makeModel(): LlamaForCausalLM {
  const dtype = "bfloat16";
  const model = nn.uninitialized(() => new LlamaForCausalLM(config, { dtype }));
  nn.replaceLinear(model, (k, n) => new nn.LinearNF4(k, n, { bias: false, dtype }).quantize());
  const rest = new Map(
    model
      .namedParameters()
      .filter(([, parameter]) => !(parameter instanceof nn.Params4bit))
      .map(([name, { shape }]) => [name, randn(shape, { dtype }).mul(0.02)] as const),
  );
  model.loadStateDict(rest, { strict: false });
  for (const tensor of rest.values()) tensor.dispose();
  return model.eval();
}

const of = (activations: ActivationQuant): string => (activations === "none" ? "" : `, activations in ${activations}`);

const prompt = (length: number, seed: number): number[] =>
  Array.from({ length }, (_, i) => (i * 7919 + seed * 104_729) % config.vocabSize);

/** Milliseconds to each token of `texts` texts that are made together, without the first, which has its prompt. */
async function decode(model: LlamaForCausalLM, texts: number, tokens: number): Promise<number[]> {
  using engine = new Engine(model, { kvTokens: texts * 256, maxSequences: texts, maxLength: 256 });
  const times: number[] = [];
  await Promise.all(
    Array.from({ length: texts }, async (_, i) => {
      let last = 0;
      for await (const _token of engine.submit(prompt(16, i + 1), { maxNewTokens: tokens })) {
        const now = performance.now();
        if (i === 0 && last > 0) times.push(now - last);
        last = now;
      }
    }),
  );
  return times;
}

const model = makeModel();
const linears = model.modules().filter((module) => module instanceof nn.Linear4bit);
const weights = linears.reduce((count, { inFeatures, outFeatures }) => count + inFeatures * outFeatures, 0);
const results: Result[] = [];
const bandwidth = 1e9 * (await readGigabytes());
const fmas = 0.5e9 * (await fmaGigaflops());

// What a token reads: all but the embedding, of which it takes a row.
const bytes = model.memoryFootprint() - 2 * config.vocabSize * config.hiddenSize;
let alone = 0;
for (const [texts, head, activations] of [
  [1, null, "none"],
  [1, "int8", "none"],
  [1, "nf4", "none"],
  [1, null, "int8"],
  [8, null, "none"],
  [8, null, "int8"],
] as const) {
  nn.setActivationQuant(model, activations);
  const footprint = model.memoryFootprint();
  model.quantizeHead(head);
  const headBytes = head === null ? 0 : model.memoryFootprint() - footprint - 2 * config.vocabSize * config.hiddenSize;
  const ms = quantile(await decode(model, texts, 24), 0.5);
  const perSecond = (1000 / ms) * texts;
  if (alone === 0) alone = perSecond;
  results.push({
    case: `decode, ${texts} text${texts > 1 ? "s" : ""}${head ? `, head in ${head}` : ""}${of(activations)}`,
    msPerStep: ms,
    tokensPerSecond: perSecond,
    ofBandwidth: (bytes + headBytes) / (ms / 1000) / bandwidth,
    timesOne: perSecond / alone,
  });
  model.quantizeHead(null);
}
for (const [length, activations] of [
  [128, "none"],
  [512, "none"],
  [128, "int8"],
  [512, "int8"],
] as const) {
  nn.setActivationQuant(model, activations);
  using engine = new Engine(model, { maxLength: 1024, maxSequences: 1, stepTokens: 1024, sharePrefixes: false });
  const times: number[] = [];
  for (let i = 0; i < 3; i++) {
    const start = performance.now();
    for await (const _token of engine.submit(prompt(length, i), { maxNewTokens: 1 }))
      times.push(performance.now() - start);
  }
  const ms = quantile(times, 0.5);
  results.push({
    case: `prompt of ${length}${of(activations)}`,
    msPerStep: ms,
    tokensPerSecond: (1000 * length) / ms,
    ofPeak: (weights * length) / (ms / 1000) / fmas,
  });
}
model.dispose();

// What 1,000 generations leave behind.
const small = new LlamaForCausalLM({
  ...config,
  vocabSize: 64,
  hiddenSize: 64,
  intermediateSize: 64,
  numHiddenLayers: 2,
});
const generations = async (count: number): Promise<void> => {
  for (let i = 0; i < count; i++) for await (const _token of small.generate([1, 2, 3], { maxNewTokens: 4 }));
};
await generations(100);
const before = { ...memory(), rss: process.memoryUsage().rss };
await generations(1000);
const after = { ...memory(), rss: process.memoryUsage().rss };
results.push({
  case: "1,000 generations of a small model",
  tensorsLeft: after.tensors - before.tensors,
  bytesLeft: after.liveBytes - before.liveBytes,
  rssGrowth: after.rss / before.rss,
});

const machine = { readGBs: bandwidth / 1e9, peakGFLOPs: (2 * fmas) / 1e9, bytesPerToken: bytes };
record("generate", results, machine);
