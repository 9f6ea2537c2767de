// Training on the CPU: a step of the demo's model beside @tensorflow/tfjs, what LoRA adds to a step over a frozen NF4 base,
// packed beside padded batches, the optimizer's step for many small tensors, and a QLoRA layer beside the FMA peak.
// --quick takes small sizes, to see that it runs.
import type { Tensor } from "bitsandbytes-node";
import {
  AutoModelForCausalLM,
  backward,
  crossEntropy,
  getPeftModel,
  LlamaConfig,
  LlamaForCausalLM,
  LoraConfig,
  nn,
  randn,
  synchronize,
  tensor,
  tidy,
} from "bitsandbytes-node";
import { AdamW, AdamW8bit } from "bitsandbytes-node/optim";
import { loadTfjs, TfjsLlama } from "./peers/tfjs-llama.js";
import type { Result } from "./timing.js";
import { compare, fmaGigaflops, record, time } from "./timing.js";

const quick = process.argv.includes("--quick");
const pairs = quick ? 2 : 15;
const results: Result[] = [];
const ids = (count: number, vocab: number, factor: number): Int32Array =>
  Int32Array.from({ length: count }, (_, i) => (i * factor + (i >> 5)) % vocab);
const matrix = (values: Int32Array, rows: number): Tensor => tensor(values, { shape: [rows, values.length / rows] });

/** Forward, backward, and the gradients thrown away. */
function gradients(model: nn.Module, loss: () => Tensor): void {
  tidy(() => backward(loss()));
  for (const parameter of model.parameters()) {
    parameter.grad?.dispose();
    parameter.grad = null;
  }
}

// 1. The model of `bnb demo`, 2 x 256 tokens, AdamW.
async function demoStep(): Promise<void> {
  const [batch, length, vocabSize] = [2, quick ? 32 : 256, 256];
  const config = new LlamaConfig({
    ...{ vocabSize, hiddenSize: 128, intermediateSize: 384, numHiddenLayers: 4, numAttentionHeads: 4 },
    ...{ numKeyValueHeads: 2, maxPositionEmbeddings: 512, tieWordEmbeddings: true, initializerRange: 0.08 },
  });
  const model = new LlamaForCausalLM(config);
  const [x, y] = [ids(batch * length, vocabSize, 7919), ids(batch * length, vocabSize, 7907)];
  const [input, targets] = [matrix(x, batch), matrix(y, batch)];
  const optimizer = new AdamW(model.parameters(), { lr: 1e-4, weightDecay: 0 });
  const step = (): Tensor => {
    const loss = crossEntropy(model.forward(input), targets);
    loss.backward();
    optimizer.step();
    optimizer.zeroGrad();
    return loss;
  };
  const tf = await loadTfjs();
  const label = `demo model, ${batch} x ${length} tokens, a step of AdamW`;
  if (!tf) {
    const ms = await time(() => void step());
    results.push({ case: label, ms, tokensPerSecond: (1000 * batch * length) / ms.median, peer: "not installed" });
    return;
  }
  const weights = [...model.stateDict()].map(
    ([name, value]) => [name, { values: value.floatsSync(), shape: value.shape }] as const,
  );
  const sizes = { vocabSize, hiddenSize: 128, layers: 4, heads: 4, kvHeads: 2, theta: 10000, eps: config.rmsNormEps };
  const peer = new TfjsLlama(tf, sizes, weights, 1e-4);
  // Both must compute the same thing.
  for (let i = 0; i < 2; i++) {
    const [own, theirs] = [tidy(() => step().itemSync()), await peer.step(x, y, batch)];
    if (!(Math.abs(own / theirs - 1) < 1e-3)) throw new Error(`tfjs: the loss is ${theirs}, ours is ${own}`);
  }
  const {
    ours,
    peer: others,
    ratio,
  } = await compare(
    () => void step(),
    () => peer.step(x, y, batch),
    pairs,
  );
  results.push({
    case: `${label} vs tfjs ${tf.version.tfjs}, ${tf.getBackend()}`,
    ms: ours,
    peerMs: others,
    timesFaster: ratio,
    tokensPerSecond: (1000 * batch * length) / ours.median,
  });
}

// 2. Adapters on and off over the same NF4 base; the way back goes through all layers in both cases.
async function loraShare(hidden: number, dtype: "float32" | "bfloat16", loraDropout: number): Promise<void> {
  const [layers, length, r] = [quick ? 1 : 2, quick ? 32 : 512, 16];
  const model = AutoModelForCausalLM.fromConfig(
    {
      ...{ model_type: "llama", hidden_size: hidden, intermediate_size: 2.75 * hidden, num_hidden_layers: layers },
      ...{ num_attention_heads: hidden / 64, num_key_value_heads: hidden / 256, vocab_size: 512 },
      max_position_embeddings: 2048,
    },
    { dtype },
  );
  nn.replaceLinear(model, (k, n, bias) => new nn.LinearNF4(k, n, { bias, dtype }), { copyWeights: true });
  const targetModules = "all-linear";
  const peft = getPeftModel(model, new LoraConfig({ r, loraAlpha: 32, loraDropout, targetModules }));
  for (const [name, parameter] of model.namedParameters()) {
    if (name.includes("embed_tokens")) parameter.requiresGrad = true;
  }
  const [input, targets] = [matrix(ids(length, 512, 7919), 1), matrix(ids(length, 512, 7907), 1)];
  model.train();
  const step = (): void => gradients(model, () => crossEntropy(model.forward(input), targets));
  const { ours, peer, ratio } = await compare(() => peft.withoutAdapters(step), step, pairs);
  results.push({
    case: `LoRA r=${r}, ${layers} layers of ${hidden}, ${length} tokens, ${dtype}, dropout ${loraDropout}`,
    msWithout: ours,
    msWith: peer,
    loraAdds: ratio.median - 1,
    ofMinima: peer.min / ours.min - 1,
  });
  model.dispose();
}

// 3. Samples with log-normal lengths: one behind the other, or each as long as the longest of its batch.
async function packedStep(): Promise<void> {
  const [count, vocab] = [quick ? 4 : 16, 512];
  // exp of a normal with deviation 0.8 about 64 tokens, at 16 even quantiles.
  const normal = [-1.86, -1.32, -1.01, -0.78, -0.58, -0.4, -0.24, -0.08, 0.08, 0.24, 0.4, 0.58, 0.78, 1.01, 1.32, 1.86];
  const lengths = normal.slice(-count).map((z) => Math.round(64 * Math.exp(0.8 * z)));
  const [total, longest] = [lengths.reduce((sum, n) => sum + n, 0), Math.max(...lengths)];
  const model = AutoModelForCausalLM.fromConfig({
    ...{ model_type: "llama", hidden_size: 256, intermediate_size: 704, num_hidden_layers: quick ? 1 : 4 },
    ...{ num_attention_heads: 4, num_key_value_heads: 2, vocab_size: vocab, max_position_embeddings: 2048 },
  });
  const bounds = Int32Array.from([0, ...lengths.map((_, i) => lengths.slice(0, i + 1).reduce((a, b) => a + b, 0))]);
  const packed = matrix(ids(total, vocab, 7919), 1);
  const starts = tensor(bounds);
  const padded = matrix(ids(count * longest, vocab, 7919), count);
  const packedTargets = matrix(ids(total, vocab, 7907), 1);
  const paddedTargets = matrix(
    ids(count * longest, vocab, 7907).map((id, i) =>
      i % longest < (lengths[Math.floor(i / longest)] as number) ? id : -100,
    ),
    count,
  );
  const { ours, peer, ratio } = await compare(
    () => gradients(model, () => crossEntropy(model.forward(packed, { starts }), packedTargets)),
    () => gradients(model, () => crossEntropy(model.forward(padded), paddedTargets)),
    pairs,
  );
  results.push({
    case: `packed, ${total} tokens of ${count} samples, vs padded to ${longest}`,
    ms: ours,
    peerMs: peer,
    timesFaster: ratio,
    tokensPerSecond: (1000 * total) / ours.median,
  });
  model.dispose();
}

// 4. AdamW8bit over the tensors of rank 16 of a model with 32 layers, and over one tensor of as many elements.
async function optimizerStep(): Promise<void> {
  const [tensors, size] = [448, quick ? 16 * 64 : 16 * 2048];
  const make = (count: number, elements: number): nn.Parameter[] =>
    Array.from({ length: count }, () => {
      const parameter = new nn.Parameter(randn([elements]));
      parameter.grad = randn([elements]);
      return parameter;
    });
  const many = new AdamW8bit(make(tensors, size));
  const one = new AdamW8bit(make(1, tensors * size));
  const { ours, peer, ratio } = await compare(
    () => many.step(),
    () => one.step(),
    pairs,
  );
  results.push({
    case: `AdamW8bit, ${tensors} tensors of ${size} vs one of ${tensors * size}`,
    ms: ours,
    peerMs: peer,
    timesOfOne: 1 / ratio.median,
  });
}

// 5. Forward and backward of one layer with an adapter.
async function qloraLayer(): Promise<void> {
  const [m, n, k, r] = quick ? [32, 256, 256, 8] : [512, 4096, 4096, 16];
  const before = await fmaGigaflops(quick ? 20_000 : undefined);
  const model = new nn.Sequential(new nn.LinearNF4(k, n, { bias: false }).quantize());
  getPeftModel(model, new LoraConfig({ r, loraAlpha: 32, targetModules: ["0"] }));
  const x = randn([m, k]);
  x.requiresGrad = true;
  const dy = randn([m, n]);
  const ms = await time(
    () => {
      tidy(() => backward(model.forward(x), dy));
      for (const one of [x, ...model.parameters()]) {
        one.grad?.dispose();
        one.grad = null;
      }
    },
    quick ? 2 : 10,
  );
  // What the adapter multiplies counts as work, too.
  const gigaflop = (4 * m * n * k + 6 * m * r * (n + k)) / 1e9;
  const after = await fmaGigaflops(quick ? 20_000 : undefined);
  results.push({
    case: `QLoRA layer M=${m} ${n}x${k} r=${r}, forward + backward`,
    ms,
    GFLOPs: (1000 * gigaflop) / ms.median,
    ofPeak: (1000 * gigaflop) / ms.median / Math.max(before, after),
    fmaGFLOPs: [before, after],
  });
}

await demoStep();
for (const hidden of quick ? [256] : [1024, 2048]) {
  for (const dtype of ["float32", "bfloat16"] as const) await loraShare(hidden, dtype, 0);
  await loraShare(hidden, "bfloat16", 0.05);
}
await packedStep();
await optimizerStep();
await qloraLayer();
await synchronize();
if (quick) console.log(JSON.stringify(results, null, 1));
else record("train", results);
