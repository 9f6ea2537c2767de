// What a run learns: the words of samples, or which of two answers is the better one. The command asks here for all that differs.
import type { EventEmitter } from "node:events";
import type { CausalLM } from "../../models/index.js";
import type { PeftModel } from "../../peft/index.js";
import type { Dataset, DatasetOptions, LogEntry, PreferencePair, Sample, SampleList } from "../../train/index.js";
import {
  DPOTrainer,
  loadDataset,
  loadPreferences,
  storeDataset,
  storePreferences,
  Trainer,
} from "../../train/index.js";
import type { LoopOptions, TrainerEvents, TrainResult } from "../../train/loop-types.js";
import { readRows } from "../../train/rows.js";

/** Names of the tasks. */
export const tasks = ["sft", "dpo"] as const;
export type TaskName = (typeof tasks)[number];

/** A chart of the page. */
export interface Chart {
  readonly title: string;
  readonly label: string;
  /** Keys of reports, with the names of their curves. */
  readonly curves: readonly (readonly [key: string, name: string])[];
}

/** A task over samples of type S. */
export interface Task<S> {
  readonly name: TaskName;
  /** What a row of the data is. */
  readonly noun: string;
  /** What the loss is in. */
  readonly lossUnit: string;
  readonly charts: readonly Chart[];
  /** `store`: the file that the samples go into, or null for memory. */
  load(path: string, options: DatasetOptions, store: string | null): Promise<Dataset<S, SampleList<S>>>;
  /** The samples of token ids; the first is what the model is wanted to say. */
  parts(sample: S): readonly [Sample, ...Sample[]];
  trainer(
    peft: PeftModel<CausalLM>,
    options: Omit<LoopOptions<S>, "model">,
  ): EventEmitter<TrainerEvents> & { train(): Promise<TrainResult> };
  /** An evaluation beside its loss, in words. */
  words(entry: LogEntry): string;
}

/** The words of samples. */
export const supervised: Task<Sample> = {
  name: "sft",
  noun: "samples",
  lossUnit: "nats a token",
  charts: [],
  load: (path, options, store) => (store === null ? loadDataset(path, options) : storeDataset(path, store, options)),
  parts: (sample) => [sample],
  trainer: (peft, options) => new Trainer({ ...options, model: peft.model }),
  words: ({ evalPerplexity = Number.NaN }) => `perplexity ${evalPerplexity.toFixed(2)}`,
};

/** Which of two answers is better. */
export const preference = (beta: number | undefined): Task<PreferencePair> => ({
  name: "dpo",
  noun: "pairs",
  lossUnit: "nats a pair",
  charts: [
    {
      title: "Rewards",
      label: "reward",
      curves: [
        ["rewardChosen", "better answers"],
        ["rewardRejected", "worse answers"],
      ],
    },
    {
      title: "Pairs whose better answer has the higher reward",
      label: "share",
      curves: [
        ["rewardAccuracy", "training"],
        ["evalRewardAccuracy", "evaluation"],
      ],
    },
  ],
  load: (path, options, store) =>
    store === null ? loadPreferences(path, options) : storePreferences(path, store, options),
  parts: ({ chosen, rejected }) => [chosen, rejected],
  trainer: (model, options) => new DPOTrainer({ ...options, model, ...(beta !== undefined && { beta }) }),
  words: ({ evalRewardAccuracy = Number.NaN, evalRewardMargin = Number.NaN }) =>
    `${Math.round(100 * evalRewardAccuracy)} % of the better answers preferred, margin ${evalRewardMargin.toFixed(3)}`,
});

/** What the first row of a file is for. Rejects as reading it does. */
export async function taskOf(path: string): Promise<TaskName> {
  for await (const { fields } of readRows(path)) {
    if (fields) return fields["chosen"] !== undefined && fields["rejected"] !== undefined ? "dpo" : "sft";
  }
  return "sft";
}
