// How large everything in the demo is. The full run fits in 90 seconds on two cores, the quick one in 30.
import type { LlamaConfigOptions } from "../../models/index.js";

/** Sizes of one training run. */
export interface RunSettings {
  steps: number;
  /**
   * The first steps read four times as many windows of a quarter of the length: bytes and words are learnt from more
   * places before longer contexts are.
   */
  shortSteps: number;
  batchSize: number;
  sequenceLength: number;
  learningRate: number;
  warmupSteps: number;
}

/** Sizes of the demo. */
export interface DemoSettings {
  model: LlamaConfigOptions;
  pretrain: RunSettings;
  finetune: RunSettings & { r: number; loraAlpha: number; loraDropout: number; targetModules: string[] };
  /** Batches of the held-out text that a perplexity is measured on, of pretrain's sizes. */
  evaluationBatches: number;
  /** Tokens of one timed generation. */
  speedTokens: number;
  /** Bytes of one printed sample. */
  sampleTokens: number;
}

const model: LlamaConfigOptions = {
  vocabSize: 256,
  hiddenSize: 128,
  intermediateSize: 384,
  numHiddenLayers: 4,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  maxPositionEmbeddings: 512,
  ropeTheta: 10000,
  tieWordEmbeddings: true,
  initializerRange: 0.08,
};

const targetModules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/** The sizes of `bnb demo`. */
export const fullSettings: DemoSettings = {
  model,
  pretrain: { steps: 600, shortSteps: 400, batchSize: 2, sequenceLength: 256, learningRate: 3e-3, warmupSteps: 30 },
  finetune: {
    steps: 280,
    shortSteps: 0,
    batchSize: 4,
    sequenceLength: 128,
    learningRate: 5e-3,
    warmupSteps: 10,
    r: 16,
    loraAlpha: 32,
    loraDropout: 0,
    targetModules,
  },
  evaluationBatches: 24,
  speedTokens: 128,
  sampleTokens: 240,
};

/** The sizes of `bnb demo --quick`: the same model, fewer steps. */
export const quickSettings: DemoSettings = {
  ...fullSettings,
  pretrain: { ...fullSettings.pretrain, steps: 110, shortSteps: 75, warmupSteps: 12 },
  finetune: { ...fullSettings.finetune, steps: 125, warmupSteps: 6 },
  evaluationBatches: 8,
  speedTokens: 48,
  sampleTokens: 160,
};
