// The public names of the optimizers.
export * from "./adagrad.js";
export { Adam, Adam8bit, Adam32bit, type AdamOptions, PagedAdam, PagedAdam8bit, PagedAdam32bit } from "./adam.js";
export { AdamW, AdamW8bit, AdamW32bit, PagedAdamW, PagedAdamW8bit, PagedAdamW32bit } from "./adamw.js";
export * from "./ademamix.js";
export { type ClipNormOptions, clipGradNorm, clipGradValue } from "./clip.js";
export {
  type OptimizerUpdateOptions,
  optimizerUpdate8bitBlockwise,
  optimizerUpdate32bit,
} from "./functional-update.js";
export { GlobalOptimManager, type ParameterConfig } from "./global-optim-manager.js";
export * from "./lamb.js";
export { LARS, LARS8bit, LARS32bit, type LARSOptions, PytorchLARS } from "./lars.js";
export * from "./lion.js";
export { Optimizer1State, Optimizer2State, Optimizer8bit } from "./optimizer.js";
export type { CommonOptions, GroupOptions, Hyperparameters, ParamGroup, Params } from "./options.js";
export type { ParameterState } from "./parameter-state.js";
export * from "./rmsprop.js";
export {
  type CosineOptions,
  constantSchedule,
  cosineSchedule,
  type HasLearningRates,
  LambdaLR,
  linearSchedule,
  type ScheduleOptions,
} from "./scheduler.js";
export { SGD, SGD8bit, SGD32bit, type SGDOptions } from "./sgd.js";
export type { OptimizerStateDict, StateDictEntry, StateDictGroup } from "./state-dict.js";
export type { OptimizerName } from "./update-rule.js";
