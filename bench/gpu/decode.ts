// Group 6: a whole token of synthetic Llama-3 models in NF4, from its id to the next one, op by op and as a graph. The
// floor is that of reading every weight and the keys and values once.
import type { LlamaConfigOptions, StepPlan, Tensor } from "bitsandbytes-node";
import {
  capture,
  copyInto,
  KvPages,
  LlamaForCausalLM,
  noGrad,
  reshape,
  sampleToken,
  tensor,
  tidy,
} from "bitsandbytes-node";
import type { Module } from "bitsandbytes-node/nn";
import { Linear4bit, replaceLinear } from "bitsandbytes-node/nn";
import type { Check, Context } from "./context.js";
import { weightBytes } from "./linear.js";
import { relativeError } from "./report.js";

interface Model {
  name: string;
  config: LlamaConfigOptions;
  contexts: number[];
  batches: number[];
}

const llama8b: LlamaConfigOptions = {
  vocabSize: 128256,
  hiddenSize: 4096,
  intermediateSize: 14336,
  numHiddenLayers: 32,
  numAttentionHeads: 32,
  numKeyValueHeads: 8,
  maxPositionEmbeddings: 8192,
  ropeTheta: 500000,
};
const models: Model[] = [
  { name: "Llama-3-8B", config: llama8b, contexts: [128, 4096], batches: [1, 8, 32] },
  {
    name: "Llama-3-70B",
    config: {
      ...llama8b,
      hiddenSize: 8192,
      intermediateSize: 28672,
      numHiddenLayers: 80,
      numAttentionHeads: 64,
    },
    contexts: [128, 4096],
    batches: [1, 8],
  },
];
const few: Model[] = [{ name: "Llama-3-8B", config: llama8b, contexts: [128, 4096], batches: [1] }];
const small: Model[] = [
  {
    name: "tiny",
    config: {
      vocabSize: 96,
      hiddenSize: 64,
      intermediateSize: 128,
      numHiddenLayers: 2,
      numAttentionHeads: 2,
      numKeyValueHeads: 1,
      maxPositionEmbeddings: 32,
    },
    contexts: [8],
    batches: [1, 2],
  },
];

const quantize = <M extends Module>(module: M): M =>
  replaceLinear(module, (k, n, bias, linear) =>
    new Linear4bit(k, n, {
      bias,
      quantType: "nf4",
      dtype: "bfloat16",
      computeDtype: "bfloat16",
      device: linear.weight.device,
    }).quantize(),
  );

function build(context: Context, config: LlamaConfigOptions): LlamaForCausalLM {
  return quantize(new LlamaForCausalLM(config, { dtype: "bfloat16", device: context.device })).eval();
}

function requiredBytes({ config }: Model, batch: number, length: number): number {
  const { hiddenSize: h, intermediateSize: m, numHiddenLayers: layers, vocabSize } = config;
  const kv = (h / config.numAttentionHeads) * (config.numKeyValueHeads as number);
  const format = { dtype: "bfloat16", quantType: "nf4", blocksize: 64, nested: false } as const;
  const weights = [
    [h, h],
    [kv, h],
    [kv, h],
    [h, h],
    [m, h],
    [m, h],
    [h, m],
  ].reduce((sum, [n, k]) => sum + weightBytes(n as number, k as number, format), 0);
  return layers * (weights + 2 * batch * length * kv * 2) + 2 * vocabSize * h;
}

function operations({ config }: Model, batch: number): number {
  const { hiddenSize: h, intermediateSize: m, numHiddenLayers: layers, vocabSize } = config;
  const kv = (h / config.numAttentionHeads) * (config.numKeyValueHeads as number);
  return 2 * batch * (layers * (2 * h * h + 2 * kv * h + 3 * m * h) + vocabSize * h);
}

async function timeToken(context: Context, what: Model, model: LlamaForCausalLM, batch: number, length: number) {
  const { device } = context;
  const {
    numHiddenLayers: layers,
    numKeyValueHeads: kvHeads,
    headDim,
  } = {
    ...model.config,
    numHiddenLayers: what.config.numHiddenLayers,
  };
  const width = Math.ceil((length + 1) / 16);
  const layout = Array.from({ length: layers }, () => ({ kvHeads, headDim }));
  const kv = new KvPages(layout, { pages: batch * width, dtype: "bfloat16", device });
  tidy(() => {
    for (let i = 0; i < layers; i++) {
      const { keys, values } = kv.layer(i);
      for (const block of [keys, values]) copyInto(block, context.random(block.shape, "bfloat16"));
    }
  });
  const ints = (values: (sequence: number) => number, count = batch) =>
    tensor(
      Int32Array.from({ length: count }, (_, i) => values(i)),
      { device },
    );
  const token = ints(() => 0);
  // The same position again and again: what it writes there is the same, too.
  const plan: StepPlan = {
    ids: token,
    positions: ints(() => length),
    slots: ints((i) => (i * width + Math.floor(length / 16)) * 16 + (length % 16)),
    starts: ints((i) => i, batch + 1),
    lengths: ints(() => length + 1),
    pages: reshape(
      ints((i) => i, batch * width),
      [batch, width],
    ),
    logitRows: null,
    longest: null,
  };
  const step = (): Tensor =>
    noGrad(() => {
      const logits = model.step(plan, kv);
      copyInto(token, sampleToken(logits));
      return logits;
    });
  const start = tensor(
    Array.from({ length: batch }, (_, i) => i),
    { dtype: "int32", device },
  );
  const logitsOf = async (run: () => Tensor): Promise<Float32Array> => {
    copyInto(token, start);
    const logits = tidy(run);
    const values = await logits.floats();
    return values;
  };
  const eager = await logitsOf(step);
  const graph = capture(step, { device });
  const check: Check = {
    limit: 0,
    error: async () => {
      const replayed = await logitsOf(() => {
        graph.replay();
        return graph.outputs;
      });
      return relativeError(replayed, eager);
    },
  };
  await context.measure(
    {
      group: 6,
      op: "token, graph",
      case: { model: what.name, batch, context: length },
      cache: "cold",
      requiredBytes: requiredBytes(what, batch, length),
      flops: operations(what, batch),
    },
    check,
    () => graph.replay(),
    { impl: "op by op", work: () => step() },
  );
  graph.dispose();
  kv.dispose();
  const { ids, positions, slots, starts, lengths, pages } = plan;
  for (const t of [ids, positions, slots, starts, lengths, pages, start]) t.dispose();
}

export async function decode(context: Context): Promise<void> {
  for (const what of context.pick({ tiny: small, quick: few, full: models })) {
    await context.attempt("token", { model: what.name }, async () => {
      const model = noGrad(() => build(context, what.config));
      try {
        for (const batch of what.batches) {
          for (const length of what.contexts) {
            await context.attempt("token", { model: what.name, batch, context: length }, () =>
              timeToken(context, what, model, batch, length),
            );
          }
        }
      } finally {
        model.dispose();
      }
    });
  }
}
