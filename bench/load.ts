// Opening a checkpoint of 2 GB in bfloat16: as it is, quantized on the way, and quantized already; against reading the same
// files from the page cache into memory one after the other. Peaks are the library's own, beside the model's size.
import { mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CausalLM } from "bitsandbytes-node";
import { AutoModelForCausalLM, BitsAndBytesConfig, emptyCache, memory, savePretrained } from "bitsandbytes-node";
import type { Result } from "./timing.js";
import { quantile, record } from "./timing.js";

const config = {
  model_type: "llama",
  vocab_size: 32_000,
  hidden_size: 2048,
  intermediate_size: 5632,
  num_hidden_layers: 20,
  num_attention_heads: 32,
  num_key_value_heads: 4,
  max_position_embeddings: 2048,
  dtype: "bfloat16",
};
const root = mkdtempSync(join(tmpdir(), "bnb-bench-load-"));
const [floats, nf4, int8] = ["bfloat16", "nf4", "int8"].map((name) => join(root, name)) as [string, string, string];

const files = (folder: string): string[] =>
  readdirSync(folder).flatMap((name) => (name.endsWith(".safetensors") ? [join(folder, name)] : []));
const sizeOf = (folder: string): number => files(folder).reduce((sum, path) => sum + statSync(path).size, 0);

/** Milliseconds of reading the weights of a folder in pieces of 8 MB. */
async function readAll(folder: string): Promise<number> {
  const piece = Buffer.alloc(8 << 20);
  const start = performance.now();
  for (const path of files(folder)) {
    const file = await open(path);
    while ((await file.read(piece)).bytesRead > 0);
    await file.close();
  }
  return performance.now() - start;
}

type Options = Parameters<typeof AutoModelForCausalLM.fromPretrained>[1];

/** A load, its milliseconds, and the bytes that it took at most beyond the model's own. */
async function load(folder: string, options: Options): Promise<{ model: CausalLM; ms: number; beyond: number }> {
  emptyCache();
  const start = performance.now();
  const model = await AutoModelForCausalLM.fromPretrained(folder, options);
  const ms = performance.now() - start;
  return { model, ms, beyond: memory().peakBytes - memory().liveBytes };
}

const results: Result[] = [];
async function measure(name: string, folder: string, options: Options = {}): Promise<void> {
  const [reads, loads, beyonds]: number[][] = [[], [], []];
  let bytes = 0;
  for (let i = 0; i < 3; i++) {
    reads?.push(await readAll(folder));
    const { model, ms, beyond } = await load(folder, options);
    bytes = model.memoryFootprint();
    model.dispose();
    loads?.push(ms);
    beyonds?.push(beyond);
  }
  const [read, ms] = [quantile(reads as number[], 0.5), quantile(loads as number[], 0.5)];
  const size = sizeOf(folder);
  results.push({
    case: name,
    fileGB: size / 1e9,
    modelGB: bytes / 1e9,
    ms,
    GBs: size / 1e6 / ms,
    ofPageCache: read / ms,
    // Quantizing while loading may take the model and two of its largest tensors, which are bfloat16 here.
    beyondModelInLargestTensors: Math.max(...(beyonds as number[])) / largest,
  });
}

let largest = 0;
try {
  const quantization = { loadIn4bit: true, bnb4bitQuantType: "nf4", bnb4bitUseDoubleQuant: true } as const;
  const [as4bit, as8bit] = [new BitsAndBytesConfig(quantization), new BitsAndBytesConfig({ loadIn8bit: true })];
  const made = AutoModelForCausalLM.fromConfig(config);
  largest = Math.max(...made.parameters().map(({ nbytes }) => nbytes));
  await savePretrained(made, floats, { maxShardSize: 5e8 });
  made.dispose();
  for (const [folder, quantizationConfig] of [
    [nf4, as4bit],
    [int8, as8bit],
  ] as const) {
    const { model } = await load(floats, { quantizationConfig });
    await savePretrained(model, folder);
    model.dispose();
  }
  await measure("bfloat16, as it is", floats);
  await measure("bfloat16, to NF4 on the way", floats, { quantizationConfig: as4bit });
  await measure("bfloat16, to int8 on the way", floats, { quantizationConfig: as8bit });
  await measure("NF4, as it is", nf4);
  await measure("int8, as it is", int8);
} finally {
  rmSync(root, { recursive: true });
}
record("load", results);
