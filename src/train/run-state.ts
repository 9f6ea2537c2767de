// Where a run stands, in plain data: what a checkpoint keeps beside its tensors.
import { createHash } from "node:crypto";
import type { GeneratorState } from "../ops/index.js";
import type { LogEntry } from "./log-entry.js";
import type { LossScalerState } from "./loss-scaler.js";
import type { Sample } from "./sample.js";

/** The state of a run between two steps. */
export interface RunState {
  /** Steps done. */
  step: number;
  /** Where the next batch is: its epoch and its number there. */
  epoch: number;
  batch: number;
  /** Tokens that counted so far. */
  tokens: number;
  /** Losses since the last report: their sum over tokens, and how many tokens. */
  lossSum: number;
  lossTokens: number;
  /** The smallest loss of an evaluation, and after which step it was. */
  bestLoss: number | null;
  bestStep: number | null;
  /** Evaluations since. */
  evaluationsSinceBest: number;
  /** Whether the evaluation behind the last step is still to come. */
  isEvaluationDue: boolean;
  scaler: LossScalerState | null;
  generators: GeneratorState[];
  history: LogEntry[];
}

export function newRunState(): RunState {
  return {
    ...{ step: 0, epoch: 0, batch: 0, tokens: 0, lossSum: 0, lossTokens: 0 },
    ...{
      bestLoss: null,
      bestStep: null,
      evaluationsSinceBest: 0,
      isEvaluationDue: false,
      scaler: null,
      generators: [],
      history: [],
    },
  };
}

/** What tells data sets apart: a hash of all ids and labels in order. */
export function dataHash(samples: Iterable<readonly Sample[]>): string {
  const hash = createHash("sha256");
  for (const parts of samples) {
    for (const { ids, labels } of parts) {
      for (const list of [Int32Array.of(ids.length), ids, labels]) {
        hash.update(new Uint8Array(list.buffer, list.byteOffset, list.byteLength));
      }
    }
  }
  return hash.digest("hex");
}
