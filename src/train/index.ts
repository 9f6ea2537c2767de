// Training loops and byte-level data.
export { type Batch, type BatchOptions, evenBatches, randomBatches, type SplitOptions, splitBytes } from "./data.js";
export { evaluate, type LanguageModel, type StepReport, type TrainOptions, train } from "./trainer.js";
