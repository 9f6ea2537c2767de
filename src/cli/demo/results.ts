// Everything that a run of the demo measures: what the table, the page and the JSON file are made from.
import type { DemoSettings } from "./settings.js";

/** One training run from scratch. */
export interface OptimizerResult {
  name: string;
  stateBytes: number;
  /** Mean over the last tenth of the steps, in nats per byte. */
  finalLoss: number;
  heldOutPerplexity: number;
  losses: number[];
  tokensPerSecond: number;
}

/** The trained weights in one format. */
export interface VariantResult {
  name: string;
  /** Bytes of all weights with their statistics. */
  bytes: number;
  /** Float bytes over these bytes. */
  ratio: number;
  /** Bits per weight of the quantized layers alone. */
  bitsPerWeight: number;
  perplexity: number;
  tokensPerSecond: number;
}

/** QLoRA on the second style. */
export interface FinetuneResult {
  adapterParameters: number;
  losses: number[];
  tokensPerSecond: number;
  stateBytes: number;
  perplexityBefore: number;
  perplexityAfter: number;
  baseHashBefore: string;
  baseHashAfter: string;
}

/** The trained model, saved and loaded again in NF4. */
export interface CheckpointResult {
  folder: string;
  /** Of its files. */
  bytes: number;
  /** How many were compared with those of the model quantized in memory. */
  logits: number;
  largestDifference: number;
}

/** A generated text. */
export interface SampleResult {
  title: string;
  prompt: string;
  text: string;
  tokensPerSecond: number;
  /** 99th percentile of the time between ticks of a 1 ms timer while the text was made. */
  eventLoopP99Ms: number;
}

/** A claim that the demo prints, with the figure it rests on. */
export interface CheckResult {
  claim: string;
  measured: string;
  holds: boolean;
}

/** What `--json` writes. */
export interface DemoResults {
  version: string;
  seed: number;
  settings: DemoSettings;
  machine: { processor: string; threads: number; isa: string; device: string; node: string };
  parameters: number;
  text: { source: string; trainBytes: number; heldOutBytes: number };
  style: { source: string; trainBytes: number; heldOutBytes: number };
  optimizers: OptimizerResult[];
  variants: VariantResult[];
  checkpoint: CheckpointResult;
  finetune: FinetuneResult;
  samples: SampleResult[];
  checks: CheckResult[];
  seconds: number;
}
