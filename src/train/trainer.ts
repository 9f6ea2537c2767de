// The training loop in its plainest form: forward, loss, backward, clip, step; one awaited read per step, so the
// event loop turns while the kernels of a step run.
import { backward } from "../autograd/backward.js";
import { noGrad } from "../autograd/no-grad.js";
import type { Module, Parameter } from "../nn/index.js";
import { crossEntropy } from "../ops/index.js";
import type { Optimizer8bit } from "../optim/index.js";
import { clipGradNorm } from "../optim/index.js";
import {
  aFunction,
  aNumberIn,
  anAbortSignal,
  anInteger,
  anObjectWith,
  arrayOf,
  aTensor,
  checkArgument,
  required,
} from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Batch } from "./data.js";

/** A model from ids [batch, t] to logits [batch, t, vocab]. */
export type LanguageModel = Module & { forward(ids: Tensor): Tensor };

/** What is known after a step. */
export interface StepReport {
  /** Steps done, from 1. */
  step: number;
  steps: number;
  /** Mean cross-entropy of the step's batch in nats per token, before the update. */
  loss: number;
  /** Mean over the run so far. */
  tokensPerSecond: number;
  secondsLeft: number;
}

/** What `train` needs. */
export interface TrainOptions {
  model: LanguageModel;
  optimizer: Pick<Optimizer8bit, "step" | "zeroGrad">;
  /** Parameters whose gradient norm is clipped; those of the optimizer. */
  parameters: readonly Parameter[];
  batches: Iterator<Batch>;
  steps: number;
  /** Advanced once after each step, such as a scheduler of `optim`. */
  scheduler?: { step(): void };
  /** Largest norm of all gradients together; 0 leaves them alone. Default 1. */
  maxGradNorm?: number;
  onStep?: (report: StepReport) => void;
  /** Ends the run with `ERR_BNB_ABORTED`. */
  signal?: AbortSignal;
}

const aList = {
  rule: "an iterable of batches",
  holds: (v: unknown) => typeof (v as Iterable<Batch> | undefined)?.[Symbol.iterator] === "function",
};
const aModel = anObjectWith("a model", "forward", "train", "eval");
const trainOptions = optionTable<TrainOptions>({
  model: required(aModel),
  optimizer: required(anObjectWith("an optimizer", "step", "zeroGrad")),
  parameters: required(arrayOf(aTensor)),
  batches: required(anObjectWith("an iterator of batches", "next")),
  steps: required(anInteger(0)),
  scheduler: anObjectWith("a scheduler", "step"),
  maxGradNorm: aNumberIn(0),
  onStep: aFunction,
  signal: anAbortSignal,
});

/** Trains for `steps` steps and returns the loss of each and the speed. Leaves the model in training mode. */
export async function train(options: TrainOptions): Promise<{ losses: number[]; tokensPerSecond: number }> {
  checkOptions("train", options, trainOptions);
  const { model, optimizer, parameters, batches, steps, scheduler, maxGradNorm = 1, onStep, signal } = options;
  const losses: number[] = [];
  const started = performance.now();
  let tokens = 0;
  let tokensPerSecond = 0;
  model.train();

  for (let step = 1; step <= steps; step++) {
    if (signal?.aborted)
      throw new BnbError("ERR_BNB_ABORTED", "train: aborted by its signal", { cause: signal.reason });
    const { done, value: batch } = batches.next();
    if (done) throw new BnbError("ERR_BNB_ARGUMENT", `train: ${steps} batches are needed, got ${step - 1}`);

    const loss = tidy(() => {
      const loss = crossEntropy(model.forward(batch.ids), batch.targets);
      backward(loss);
      if (maxGradNorm > 0) clipGradNorm(parameters, maxGradNorm);
      optimizer.step();
      return loss;
    });
    optimizer.zeroGrad();
    scheduler?.step();
    tokens += batch.ids.size;
    batch.ids.dispose();
    batch.targets.dispose();

    try {
      losses.push(await loss.item());
    } finally {
      loss.dispose();
    }
    const seconds = (performance.now() - started) / 1000;
    tokensPerSecond = tokens / seconds;
    onStep?.({
      step,
      steps,
      loss: losses.at(-1) as number,
      tokensPerSecond,
      secondsLeft: (seconds / step) * (steps - step),
    });
  }
  return { losses, tokensPerSecond };
}

/**
 * Mean cross-entropy in nats per token over batches, in evaluation mode and without gradients. Every token counts
 * alike, in whatever batch it is; targets of -100 do not. Disposes the batches, leaves the model in evaluation mode.
 */
export async function evaluate(model: LanguageModel, batches: Iterable<Batch>): Promise<number> {
  checkArgument("evaluate", "model", model, aModel);
  checkArgument("evaluate", "batches", batches, aList);
  let sum = 0;
  let count = 0;
  model.eval();
  for (const { ids, targets } of batches) {
    const loss = noGrad(() => tidy(() => crossEntropy(model.forward(ids), targets)));
    try {
      const [mean, tokens] = await Promise.all([loss.item(), countTargets(targets)]);
      // The mean of no token is no number.
      if (tokens > 0) sum += mean * tokens;
      count += tokens;
    } finally {
      for (const used of [ids, targets, loss]) used.dispose();
    }
  }
  if (count === 0)
    throw new BnbError("ERR_BNB_ARGUMENT", "evaluate: batches must hold a token with a target, got none");
  return sum / count;
}

// Those that the mean of a loss is taken over.
async function countTargets(targets: Tensor): Promise<number> {
  let count = 0;
  for (const target of await targets.data()) if (target !== IGNORED) count++;
  return count;
}

/** The default ignoreIndex of crossEntropy. */
const IGNORED = -100;
