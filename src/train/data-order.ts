// Which samples each step is made of, and how many steps there are: what follows from the lengths of the samples and the
// arguments alone, so that a run that goes on later continues where it was.
import type { ResolvedArguments } from "./arguments.js";
import { epochBatches } from "./batches.js";

/** A place in the data: the next batch is number `batch` of the epoch. */
export interface Place {
  epoch: number;
  batch: number;
}

/** The batches of all epochs. */
export class DataOrder {
  readonly #lengths: readonly number[];
  readonly #args: ResolvedArguments;
  readonly #packedTokens: number | null;
  #made: { epoch: number; batches: number[][] } | null = null;

  /** `maxLength`: tokens of a full sample, for packing; default the longest. */
  constructor(lengths: readonly number[], args: ResolvedArguments, maxLength: number | undefined) {
    this.#lengths = lengths;
    this.#args = args;
    const longest = (): number => lengths.reduce((most, length) => Math.max(most, length), 0);
    this.#packedTokens = args.packing ? args.perDeviceTrainBatchSize * (maxLength ?? longest()) : null;
  }

  /** Steps of a whole run. */
  get totalSteps(): number {
    const { maxSteps, numTrainEpochs, gradientAccumulationSteps } = this.#args;
    if (maxSteps > 0) return maxSteps;
    let steps = 0;
    for (let epoch = 0; epoch < numTrainEpochs; epoch++) {
      // The last step of an epoch may have fewer batches.
      const own = Math.ceil(this.#batchesOf(epoch).length / gradientAccumulationSteps);
      // 1.1 - 1 is more than a tenth by its rounding.
      steps += Math.ceil(own * Math.min(1, numTrainEpochs - epoch) - 1e-6);
    }
    return steps;
  }

  /** The numbers of the samples of each batch of the next step. */
  next({ epoch, batch }: Place): number[][] {
    return this.#batchesOf(epoch).slice(batch, batch + this.#args.gradientAccumulationSteps);
  }

  /** Moves a place behind so many batches of its epoch. */
  advance(place: Place, batches: number): void {
    place.batch += batches;
    if (place.batch >= this.#batchesOf(place.epoch).length) Object.assign(place, { epoch: place.epoch + 1, batch: 0 });
  }

  /** Epochs done, with fraction. */
  epochsAt({ epoch, batch }: Place): number {
    return epoch + batch / this.#batchesOf(epoch).length;
  }

  #batchesOf(epoch: number): number[][] {
    if (this.#made?.epoch !== epoch) {
      const { perDeviceTrainBatchSize: batchSize, seed, shuffle, groupByLength } = this.#args;
      const plan = { batchSize, seed, shuffle, groupByLength, packedTokens: this.#packedTokens };
      this.#made = { epoch, batches: epochBatches(this.#lengths, epoch, plan) };
    }
    return this.#made.batches;
  }
}
