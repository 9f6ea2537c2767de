// Supervised fine-tuning: the model learns the labelled tokens of samples.

import { types } from "node:util";
import { CausalLM } from "../models/index.js";
import { Generator } from "../ops/index.js";
import type { Check } from "../tensor/checks.js";
import { anInstance, arrayOf, required } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { headLoss } from "./head-loss.js";
import type { BatchLoss, Evaluation, LoopOptions, LossContext } from "./loop-types.js";
import { raggedBatch } from "./ragged.js";
import type { Sample } from "./sample.js";
import { countedTokens } from "./sample.js";
import type { SampleList } from "./stored-samples.js";
import { StoredSamples } from "./stored-samples.js";
import { TrainingLoop } from "./training-loop.js";

/** What a `Trainer` is made of. */
export type TrainerOptions = LoopOptions<Sample>;

const isIds = (v: unknown): boolean => types.isInt32Array(v);
/** @internal */
export const isSample = (v: unknown): boolean => {
  const { ids, labels } = (v ?? {}) as Partial<Sample>;
  return isIds(ids) && isIds(labels) && ids?.length === labels?.length;
};
const aSample: Check = { rule: "a sample with ids and labels, Int32Arrays of one length", holds: isSample };

/** An array is looked at as a whole, what lies in a file is as it was made. */
function samplesOf(item: Check): Check {
  const list = arrayOf(item);
  return { ...list, holds: (v) => v instanceof StoredSamples || list.holds(v) };
}

/** @internal The options of every trainer, for samples that pass `item`. */
export const loopChecks = (item: Check) => ({
  model: required(anInstance(() => CausalLM, "a model that continues texts")),
  // What they hold is checked where they are resolved.
  args: required({ rule: "an object", holds: () => true }),
  trainDataset: required(samplesOf(item)),
  evalDataset: samplesOf(item),
  generators: arrayOf(anInstance(() => Generator, "a Generator")),
});
const trainerOptions = optionTable<TrainerOptions>(loopChecks(aSample));

/**
 * Trains a model on samples, with the arguments of transformers' Trainer: all its parameters that require a gradient, such as
 * those of `applyLora`. The loss of a step is the mean over all tokens that count in its batches.
 *
 * Throws ERR_BNB_OPTION for arguments that cannot be, and where nothing is to be trained.
 *
 * @example
 * const { samples } = await train.loadDataset("chat.jsonl", { tokenizer, maxLength: 1024 });
 * const trainer = new train.Trainer({ model, trainDataset: samples, args: { outputDir: "out", learningRate: 2e-4 } });
 * await trainer.train();
 */
export class Trainer extends TrainingLoop<Sample> {
  constructor(options: TrainerOptions) {
    checkOptions("Trainer", options, trainerOptions);
    super("Trainer", options);
  }

  /** Mean loss of the evaluation data, and its exponential. The model is left as it was. */
  override async evaluate(samples?: SampleList<Sample>): Promise<Evaluation & { readonly perplexity: number }> {
    const { loss } = await this.measured(samples);
    return { loss, perplexity: Math.exp(loss) };
  }

  protected override partsOf(sample: Sample): readonly Sample[] {
    return [sample];
  }

  protected override weightOf(samples: readonly Sample[]): number {
    return samples.reduce((sum, sample) => sum + countedTokens(sample), 0);
  }

  protected override lossOf(samples: readonly Sample[], { onBounds, gradient }: LossContext): BatchLoss {
    const { model } = this;
    const { ids, starts, bounds, targets } = raggedBatch(samples, model.device);
    onBounds(bounds);
    return { loss: headLoss(model.inHalves(ids, { starts }), targets, gradient) };
  }
}
