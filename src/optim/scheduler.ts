// Learning-rate schedules: a factor per step, times the rate that each group had when the scheduler was made.
import { aNumberIn, anInteger, anObject, checkArgument, checkFunction, required } from "../tensor/checks.js";
import { describe } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";

const isRate = (x: unknown): x is number => typeof x === "number" && x >= 0 && x < Infinity;

/** What a scheduler needs of an optimizer. */
export interface HasLearningRates {
  readonly paramGroups: readonly { lr: number }[];
}

/** Steps of a schedule: `warmupSteps` of linear growth from 0, then to `totalSteps`. */
export interface ScheduleOptions {
  /** Default 0. */
  warmupSteps?: number;
  totalSteps: number;
}
const anOptimizer = {
  rule: "an optimizer, with paramGroups",
  holds: (v: unknown) => anObject.holds(v) && Array.isArray((v as HasLearningRates).paramGroups),
};

/** Steps of a cosine schedule, and where it ends. */
export interface CosineOptions extends ScheduleOptions {
  /** The factor at `totalSteps` and after. Default 0. */
  minFactor?: number;
}

/**
 * Sets `lr` of every group to its first value times `factor(step)`, at once for step 0 and after each `step()`.
 * Call `step()` after the optimizer's. Throws ERR_BNB_OPTION, with nothing changed, when the factor is not a number of at
 * least 0.
 *
 * @example
 * const scheduler = new LambdaLR(optimizer, (step) => 0.99 ** step);
 */
export class LambdaLR {
  readonly #optimizer: HasLearningRates;
  readonly #baseRates: number[];
  readonly #factor: (step: number) => number;
  #step = 0;

  constructor(optimizer: HasLearningRates, factor: (step: number) => number) {
    checkArgument("LambdaLR", "optimizer", optimizer, anOptimizer);
    checkFunction("LambdaLR", "factor", factor);
    this.#optimizer = optimizer;
    this.#factor = factor;
    this.#baseRates = optimizer.paramGroups.map(({ lr }, i) => {
      if (isRate(lr)) return lr;
      const rule = `lr of group ${i} must be a number of at least 0`;
      throw new BnbError("ERR_BNB_OPTION", `LambdaLR: ${rule}, got ${describe(lr)}`);
    });
    this.#moveTo(0);
  }

  /** Steps taken. */
  get lastStep(): number {
    return this.#step;
  }

  /** The current rate of every group. */
  get lastLr(): number[] {
    return this.#optimizer.paramGroups.map((group) => group.lr);
  }

  step(): void {
    this.#moveTo(this.#step + 1);
  }

  /** What `loadStateDict` needs to go on from here. */
  stateDict(): { lastStep: number; baseRates: number[] } {
    return { lastStep: this.#step, baseRates: [...this.#baseRates] };
  }

  /** Goes on from a `stateDict()`: the rates are those of its last step at once. */
  loadStateDict(dict: { lastStep: number; baseRates: number[] }): void {
    const { lastStep, baseRates } = dict ?? {};
    const refuse = (rule: string): never => {
      throw new BnbError("ERR_BNB_FORMAT", `LambdaLR.loadStateDict: ${rule}`);
    };
    if (!Array.isArray(baseRates) || baseRates.length !== this.#baseRates.length) {
      refuse(`the dict must have ${this.#baseRates.length} rates, got ${baseRates?.length}`);
    }
    const wrong = baseRates.findIndex((rate) => !isRate(rate));
    if (wrong >= 0) refuse(`baseRates[${wrong}] must be a number of at least 0, got ${describe(baseRates[wrong])}`);
    if (!Number.isInteger(lastStep) || lastStep < 0) {
      refuse(`lastStep must be an integer of at least 0, got ${describe(lastStep)}`);
    }
    this.#moveTo(lastStep, baseRates);
  }

  #moveTo(step: number, baseRates: readonly number[] = this.#baseRates): void {
    const factor = this.#factor(step);
    if (!isRate(factor)) {
      const rule = `the factor of step ${step} must be a number of at least 0`;
      throw new BnbError("ERR_BNB_OPTION", `LambdaLR: ${rule}, got ${describe(factor)}`);
    }
    this.#step = step;
    this.#baseRates.splice(0, baseRates.length, ...baseRates);
    // Groups that were added later keep their own rate.
    this.#baseRates.forEach((rate, i) => {
      const group = this.#optimizer.paramGroups[i];
      if (group) group.lr = rate * factor;
    });
  }
}

const warmupOption = optionTable<{ warmupSteps?: number }>({ warmupSteps: anInteger(0) });
const scheduleChecks = { ...warmupOption.checks, totalSteps: required(anInteger(0)) };
const linearOptions = optionTable<ScheduleOptions>(scheduleChecks);
const cosineOptions = optionTable<CosineOptions>({ ...scheduleChecks, minFactor: aNumberIn(0) });

// A schedule with warm-up: after it, `decay` of the fraction of the remaining steps that is done.
function withWarmup(optimizer: HasLearningRates, options: ScheduleOptions, decay: (done: number) => number) {
  const { warmupSteps = 0, totalSteps } = options;
  return new LambdaLR(optimizer, (step) => {
    if (step < warmupSteps) return step / Math.max(1, warmupSteps);
    return Math.max(0, decay((step - warmupSteps) / Math.max(1, totalSteps - warmupSteps)));
  });
}

/** The rate stays as it is, after `warmupSteps` of linear growth from 0. */
export function constantSchedule(optimizer: HasLearningRates, options: { warmupSteps?: number } = {}): LambdaLR {
  checkOptions("constantSchedule", options, warmupOption);
  const { warmupSteps = 0 } = options;
  return withWarmup(optimizer, { warmupSteps, totalSteps: warmupSteps }, () => 1);
}

/** Linear growth from 0 over `warmupSteps`, then linear decay to 0 at `totalSteps`. */
export function linearSchedule(optimizer: HasLearningRates, options: ScheduleOptions): LambdaLR {
  checkOptions("linearSchedule", options, linearOptions);
  return withWarmup(optimizer, options, (done) => 1 - done);
}

/**
 * Linear growth from 0 over `warmupSteps`, then half a cosine down to `minFactor` (default 0) at `totalSteps`.
 *
 * @example
 * const scheduler = cosineSchedule(optimizer, { warmupSteps: 100, totalSteps: 1000 });
 */
export function cosineSchedule(optimizer: HasLearningRates, options: CosineOptions): LambdaLR {
  checkOptions("cosineSchedule", options, cosineOptions);
  const { minFactor = 0 } = options;
  const decay = (done: number) => minFactor + (1 - minFactor) * 0.5 * (1 + Math.cos(Math.PI * Math.min(done, 1)));
  return withWarmup(optimizer, options, decay);
}
