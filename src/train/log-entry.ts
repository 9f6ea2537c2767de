// What a run reports.

/** One report: of some steps, or of an evaluation. */
export interface LogEntry {
  readonly step: number;
  /** Epochs done, with fraction. */
  readonly epoch: number;
  /** Mean loss of a token since the last report; none where no token counted. */
  readonly loss?: number;
  readonly learningRate?: number;
  /** Norm of the gradients of the last step, before clipping. */
  readonly gradNorm?: number;
  /** Tokens that count, per second. */
  readonly tokensPerSecond?: number;
  readonly evalLoss?: number;
  /** The exponential of evalLoss, where that is a mean over tokens. */
  readonly evalPerplexity?: number;
  /** Further numbers of a trainer; what an evaluation found begins with "eval", such as evalRewardAccuracy. */
  readonly [name: string]: number | undefined;
}
