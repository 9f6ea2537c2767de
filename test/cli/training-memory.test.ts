// What `bnb estimate --train` says against the memory that runs of four shapes take at their most, and the table of the guide.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { modelSize } from "../../src/cli/model-sizes.js";
import { trainingMemory } from "../../src/cli/training-memory.js";
import { BitsAndBytesConfig } from "../../src/hub/index.js";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import { LinearNF4, replaceLinear } from "../../src/nn/index.js";
import { getPeftModel, LoraConfig } from "../../src/peft/index.js";
import type { DType } from "../../src/tensor/dtype.js";
import { emptyCache, memory } from "../../src/tensor/scope.js";
import { Trainer } from "../../src/train/index.js";
import { bnbJson } from "../helpers/bnb.js";

const folder = mkdtempSync(join(tmpdir(), "bnb-estimate-"));
afterAll(() => rmSync(folder, { recursive: true }));

interface Shape {
  hidden: number;
  inner: number;
  layers: number;
  heads: number;
  kvHeads: number;
  vocab: number;
  length: number;
  batch: number;
  rank: number;
  dtype: DType;
  dropout: number;
}
const configOf = (s: Omit<Shape, "length" | "batch" | "rank" | "dropout">, tied = false) => ({
  model_type: "llama",
  dtype: s.dtype,
  hidden_size: s.hidden,
  intermediate_size: s.inner,
  num_hidden_layers: s.layers,
  num_attention_heads: s.heads,
  num_key_value_heads: s.kvHeads,
  vocab_size: s.vocab,
  max_position_embeddings: 4096,
  tie_word_embeddings: tied,
});

/** Bytes above the weights, at their most, in a run of two steps. */
async function measured(shape: Shape, recomputes: boolean, run: number): Promise<number> {
  const { dtype, rank, dropout, vocab, length, batch } = shape;
  const model = AutoModelForCausalLM.fromConfig(configOf(shape), { dtype, device: "cpu" });
  replaceLinear(model, (k, n, bias) => new LinearNF4(k, n, { bias, dtype, device: "cpu" }), { copyWeights: true });
  for (const module of model.modules()) if (module instanceof LinearNF4) module.quantize();
  const weights = memory().devices["cpu"]?.liveBytes as number;
  const config = { r: rank, loraAlpha: 2 * rank, loraDropout: dropout, targetModules: "all-linear" as const };
  getPeftModel(model, new LoraConfig({ ...config, taskType: "CAUSAL_LM" }));
  const samples = Array.from({ length: batch }, (_, i) => {
    const ids = Int32Array.from({ length }, (_, j) => (31 * j + i) % vocab);
    return { ids, labels: ids };
  });
  const trainer = new Trainer({
    model,
    trainDataset: samples,
    args: {
      outputDir: join(folder, String(run)),
      perDeviceTrainBatchSize: batch,
      maxSteps: 2,
      optim: "adamw_8bit",
      gradientCheckpointing: recomputes,
      saveSteps: 0,
    },
  });
  emptyCache("cpu");
  await trainer.train();
  const peak = (memory().devices["cpu"]?.peakBytes as number) - weights;
  model.dispose();
  return peak;
}

const common = { batch: 1, dropout: 0, dtype: "bfloat16" as DType };
const shapes: [string, Shape][] = [
  ["wide", { ...common, hidden: 256, inner: 704, layers: 2, heads: 4, kvHeads: 2, vocab: 512, length: 256, rank: 16 }],
  [
    "deep, dropout",
    {
      ...common,
      hidden: 128,
      inner: 384,
      layers: 6,
      heads: 4,
      kvHeads: 4,
      vocab: 256,
      length: 160,
      rank: 8,
      dropout: 0.05,
    },
  ],
  [
    "many words",
    { ...common, hidden: 128, inner: 256, layers: 2, heads: 2, kvHeads: 1, vocab: 16_000, length: 192, rank: 4 },
  ],
  [
    "float32, two samples",
    {
      ...common,
      hidden: 192,
      inner: 512,
      layers: 3,
      heads: 3,
      kvHeads: 3,
      vocab: 1000,
      length: 96,
      batch: 2,
      rank: 32,
      dtype: "float32",
    },
  ],
];
const nf4 = new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" });

describe.each(shapes)("%s", (name, shape) => {
  it.each([true, false])("is within a tenth of the peak of a run, recomputing: %s", async (recomputes) => {
    const { rank, length, batch, dtype } = shape;
    const size = modelSize(configOf(shape), nf4, dtype);
    const parts = trainingMemory(size, { tokens: length * batch, rank, recomputes });
    const said = Object.values(parts).reduce((sum, n) => sum + n, 0);
    const found = await measured(
      shape,
      recomputes,
      2 * shapes.findIndex(([other]) => other === name) + Number(recomputes),
    );
    expect(said / found).toBeGreaterThan(0.9);
    expect(said / found).toBeLessThan(1.1);
  });
});

/** Sizes as the models' configs have them. */
const models: [string, Parameters<typeof configOf>[0], tied: boolean][] = [
  [
    "1B (Llama 3.2)",
    { hidden: 2048, inner: 8192, layers: 16, heads: 32, kvHeads: 8, vocab: 128_256, dtype: "bfloat16" },
    true,
  ],
  [
    "3B (Llama 3.2)",
    { hidden: 3072, inner: 8192, layers: 28, heads: 24, kvHeads: 8, vocab: 128_256, dtype: "bfloat16" },
    true,
  ],
  [
    "8B (Llama 3.1)",
    { hidden: 4096, inner: 14_336, layers: 32, heads: 32, kvHeads: 8, vocab: 128_256, dtype: "bfloat16" },
    false,
  ],
  [
    "34B (Yi)",
    { hidden: 7168, inner: 20_480, layers: 60, heads: 56, kvHeads: 8, vocab: 64_000, dtype: "bfloat16" },
    false,
  ],
  [
    "70B (Llama 3.1)",
    { hidden: 8192, inner: 28_672, layers: 80, heads: 64, kvHeads: 8, vocab: 128_256, dtype: "bfloat16" },
    false,
  ],
];
interface Estimate {
  formats: {
    format: string;
    weights: number;
    adapters: number;
    gradients: number;
    optimizer: number;
    activations: number;
    total: number;
  }[];
}

it("the table of the guide is what the command says", async () => {
  const gib = (n: number): string => (n / 2 ** 30).toFixed(n < 10 * 2 ** 30 ? 2 : 1);
  const rows: string[][] = [];
  for (const [name, config, tied] of models) {
    const path = join(folder, name);
    mkdirSync(path);
    writeFileSync(join(path, "config.json"), JSON.stringify(configOf(config, tied)));
    const at = async (context: string, ...more: string[]) => {
      const args = ["--train", "--4bit", "--rank", "16", "--context", context, ...more];
      const { formats } = await bnbJson<Estimate>("estimate", path, ...args);
      return formats.find(({ format }) => format === "nf4, double quant") as Estimate["formats"][number];
    };
    const [short, long, kept] = [await at("512"), await at("2048"), await at("512", "--keep-activations")];
    const { weights, adapters, gradients, optimizer } = short;
    const learning = adapters + gradients + optimizer;
    rows.push([name, gib(weights), gib(learning), gib(short.total), gib(long.total), gib(kept.total)]);
  }
  const header = ["model", "weights", "adapters", "512 tokens", "2,048 tokens", "512, all kept"];
  const table = [header, ...rows];
  const widths = header.map((_, i) => Math.max(...table.map((row) => (row[i] as string).length)));
  const line = (row: readonly string[]): string =>
    `| ${row.map((cell, i) => cell.padEnd(widths[i] as number)).join(" | ")} |`;
  const text = [line(header), `| ${widths.map((n) => "-".repeat(n)).join(" | ")} |`, ...rows.map(line)].join("\n");
  expect(readFileSync("docs/finetuning.md", "utf8")).toContain(text);
});
