// Direct preference optimization (Rafailov et al., 2023): the better answer becomes likelier than the worse one, measured
// against the model without its adapter.
import { noGrad } from "../autograd/no-grad.js";
import { CausalLM } from "../models/index.js";
import { concat, mean, mul, neg, reshape, sign, slice, softplus, sub } from "../ops/index.js";
import type { LoraConfig } from "../peft/index.js";
import { PeftModel } from "../peft/index.js";
import type { Check } from "../tensor/checks.js";
import { aNumberAbove, required } from "../tensor/checks.js";
import { isPlainObject } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { headLoss } from "./head-loss.js";
import { isSample, loopChecks } from "./language-trainer.js";
import type { BatchLoss, Evaluation, LoopOptions, LossContext } from "./loop-types.js";
import { raggedBatch } from "./ragged.js";
import type { PreferencePair, Sample } from "./sample.js";
import { countedTokens } from "./sample.js";
import type { SampleList } from "./stored-samples.js";
import { StoredSamples } from "./stored-samples.js";
import { TrainingLoop } from "./training-loop.js";

/** What a `DPOTrainer` is made of. */
export interface DPOTrainerOptions extends Omit<LoopOptions<PreferencePair>, "model"> {
  /** A language model with adapters that learn; without them it is the reference. */
  model: PeftModel<CausalLM>;
  /** How much the model may leave the reference: the larger, the less. Default 0.1. */
  beta?: number;
}

/** Throws ERR_BNB_OPTION for an adapter without which the model is not the one that it was made for. */
function refuseOtherBase(name: string, { initLoraWeights: start, bias }: LoraConfig): void {
  const isPart = start === "pissa" || start === "olora";
  if (!isPart && bias === "none") return;
  const rule = "DPOTrainer: adapters must leave the base as it is, which is the reference";
  const got = isPart ? `initLoraWeights "${start}"` : `bias "${bias}"`;
  throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${got} of ${name}`);
}

const aPair: Check = {
  rule: "a pair of samples, chosen and rejected",
  holds: (v) => isPlainObject(v) && ["chosen", "rejected"].every((key) => isSample(Reflect.get(v as object, key))),
};
const isAdapted = (v: unknown): boolean => v instanceof PeftModel && v.model instanceof CausalLM;
const dpoOptions = optionTable<DPOTrainerOptions>({
  ...loopChecks(aPair),
  model: required({ rule: "a PeftModel of a model that continues texts", holds: isAdapted }),
  beta: aNumberAbove(0),
});

/**
 * Trains the adapters of a model on pairs of answers, as trl's DPOTrainer with the sigmoid loss:
 * `-log sigmoid(beta ((log p(chosen) - log r(chosen)) - (log p(rejected) - log r(rejected))))`, the mean over pairs, where p
 * and r are the probabilities of all tokens of an answer under the model and under the reference, which is the same model
 * with its adapters off: they must not change the base, as starts by "pissa" and "olora" do, and `bias`. Reports have beside the loss `rewardChosen` and `rewardRejected` (beta times the differences),
 * `rewardMargin`, and `rewardAccuracy`, the share of pairs whose chosen reward is the higher one.
 *
 * Throws ERR_BNB_OPTION for arguments that cannot be, and where nothing is to be trained.
 *
 * @example
 * const { samples } = await train.loadPreferences("pairs.jsonl", { tokenizer, maxLength: 1024 });
 * const trainer = new train.DPOTrainer({ model: peft, trainDataset: samples, args: { outputDir: "out" }, beta: 0.1 });
 * await trainer.train();
 */
export class DPOTrainer extends TrainingLoop<PreferencePair> {
  readonly #peft: PeftModel<CausalLM>;
  readonly #beta: number;

  constructor(options: DPOTrainerOptions) {
    checkOptions("DPOTrainer", options, dpoOptions);
    const { model, beta = 0.1, ...rest } = options;
    super("DPOTrainer", { ...rest, model: model.model }, { beta });
    for (const name of model.activeAdapters) refuseOtherBase(name, model.peftConfig.get(name) as LoraConfig);
    this.#peft = model;
    this.#beta = beta;
    // What lies in a file was checked as it was made.
    const given = [options.trainDataset, options.evalDataset ?? []].filter((list) => !(list instanceof StoredSamples));
    for (const [i, pair] of given.flatMap((list) => [...list]).entries()) {
      if (this.partsOf(pair).every((part) => countedTokens(part) > 0)) continue;
      throw new BnbError(
        "ERR_BNB_OPTION",
        `DPOTrainer: both answers of a pair must have tokens that count, got none in pair ${i}`,
      );
    }
  }

  /**
   * Mean loss of the evaluation data, `rewardChosen`, `rewardRejected`, `rewardMargin` and `rewardAccuracy`. The model is left
   * as it was.
   */
  override evaluate(samples?: SampleList<PreferencePair>): Promise<Evaluation> {
    return this.measured(samples);
  }

  protected override partsOf({ chosen, rejected }: PreferencePair): readonly Sample[] {
    return [chosen, rejected];
  }

  protected override weightOf(samples: readonly PreferencePair[]): number {
    return samples.length;
  }

  protected override lossOf(samples: readonly PreferencePair[], { onBounds, gradient }: LossContext): BatchLoss {
    const beta = this.#beta;
    const parts = [...samples.map(({ chosen }) => chosen), ...samples.map(({ rejected }) => rejected)];
    onBounds(null);
    const reference = noGrad(() => tidy(() => this.#peft.withoutAdapters(() => this.#logProbabilities(parts, 1))));
    // Each log-probability moves the loss by at most beta / pairs.
    const policy = this.#logProbabilities(parts, (gradient * beta) / samples.length, onBounds);
    const rewards = mul(sub(policy, reference), beta);
    const n = samples.length;
    const [chosen, rejected] = [slice(rewards, 0, 0, n), slice(rewards, 0, n, 2 * n)];
    const margin = sub(chosen, rejected);
    const loss = mean(softplus(neg(margin)));
    const metrics = noGrad(() => ({
      rewardChosen: mean(chosen),
      rewardRejected: mean(rejected),
      rewardMargin: mean(margin),
      rewardAccuracy: mean(sign(margin).maximum(0)),
    }));
    return { loss, metrics };
  }

  /** Of what is learned of each sample, [samples] float32. `gradient`: about that of each. */
  #logProbabilities(samples: readonly Sample[], gradient: number, onBounds?: LossContext["onBounds"]): Tensor {
    const { ids, starts, bounds, targets } = raggedBatch(samples, this.model.device);
    onBounds?.(bounds);
    const halves = this.model.inHalves(ids, { starts });
    const states = reshape(halves.hidden, [-1, halves.hidden.shape.at(-1) as number]);
    const sums = samples.map((sample, i) => {
      const [start, end] = [bounds[i] as number, bounds[i + 1] as number];
      const count = countedTokens(sample);
      const hidden = slice(states, 0, start, end);
      const loss = headLoss({ ...halves, hidden }, targets.subarray(start, end), gradient * count);
      return reshape(mul(loss, -count), [1]);
    });
    return concat(sums, 0);
  }
}
