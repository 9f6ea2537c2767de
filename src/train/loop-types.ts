// What a training loop is given, what it tells on the way, and what it leaves.
import type { CausalLM } from "../models/index.js";
import type { Generator } from "../ops/index.js";
import type { Tensor } from "../tensor/tensor.js";
import type { TrainingArguments } from "./arguments.js";
import type { LogEntry } from "./log-entry.js";
import type { SampleList } from "./stored-samples.js";

/** What is known after each step. */
export interface StepEvent {
  readonly step: number;
  readonly steps: number;
  readonly epoch: number;
  /** Mean loss of the step's tokens; 0 where none counts. */
  readonly loss: number;
  readonly learningRate: number;
  readonly gradNorm: number;
  /** Whether a gradient overflowed in float16, so that nothing was changed. */
  readonly isSkipped: boolean;
  /** Tokens that count, per second since the start. */
  readonly tokensPerSecond: number;
  readonly secondsLeft: number;
}

/** Events of a trainer, and what their listeners are given. */
export interface TrainerEvents {
  step: [StepEvent];
  log: [LogEntry];
  evaluate: [LogEntry];
  /** A checkpoint is on the disk. */
  save: [{ readonly step: number; readonly path: string }];
}

/** Means over the samples of an evaluation. */
export interface Evaluation {
  readonly loss: number;
  readonly [name: string]: number;
}

/** What a run leaves. */
export interface TrainResult {
  /** Steps done in all. */
  readonly steps: number;
  /** Mean loss of the steps of the last report that has one. */
  readonly loss: number;
  readonly history: readonly LogEntry[];
  /** The newest checkpoint. */
  readonly checkpoint: string;
  /** The step whose weights the model has, with `loadBestModelAtEnd`. */
  readonly bestStep: number | null;
}

/** What every trainer is given. */
export interface LoopOptions<S> {
  model: CausalLM;
  args: TrainingArguments;
  /** An array, or what `storeDataset` left in a file. */
  trainDataset: SampleList<S>;
  evalDataset?: SampleList<S>;
  /** Random generators that the model draws from, besides the default one: a run that goes on needs where they stood. */
  generators?: readonly Generator[];
}

/** A batch that was computed: its mean loss, and further means by name. */
export interface BatchLoss {
  readonly loss: Tensor;
  readonly metrics?: Readonly<Record<string, Tensor>>;
}

/** What a trainer is told about a batch whose loss it computes. */
export interface LossContext {
  /** To be called before a forward pass: the first row of each sample and one behind the last, or null for no noise. */
  onBounds(bounds: Int32Array | null): void;
  /** What backward() will begin with. */
  readonly gradient: number;
}
