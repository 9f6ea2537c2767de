// Training: trainers, their data and checkpoints, and a plain loop over batches.

export type { SchedulerType, TrainingArguments } from "./arguments.js";
export { type Batch, type BatchOptions, evenBatches, randomBatches, type SplitOptions, splitBytes } from "./data.js";
export {
  type Dataset,
  type DatasetOptions,
  loadDataset,
  loadPreferences,
  storeDataset,
  storePreferences,
} from "./dataset.js";
export { DPOTrainer, type DPOTrainerOptions } from "./dpo-trainer.js";
export { Trainer, type TrainerOptions } from "./language-trainer.js";
export type { LogEntry } from "./log-entry.js";
export type { Evaluation, StepEvent, TrainerEvents, TrainResult } from "./loop-types.js";
export { type OptimName, optimNames } from "./optim-names.js";
export type { ReportTarget } from "./reports.js";
export type { DataFormat, DataSource } from "./rows.js";
export type { PreferencePair, Sample } from "./sample.js";
export type { SampleList, StoredSamples } from "./stored-samples.js";
export { evaluate, type LanguageModel, type StepReport, type TrainOptions, train } from "./trainer.js";
