// The loop that all trainers share: batches in a seeded order, gradients accumulated over micro-batches, clipping, steps,
// evaluations, reports, and checkpoints from which a run goes on to the bit. What a batch is worth is the heirs' to say.
import { EventEmitter } from "node:events";
import { dirname } from "node:path";
import { backward } from "../autograd/backward.js";
import { noGrad } from "../autograd/no-grad.js";
import type { CausalLM } from "../models/index.js";
import type { Generator, GeneratorState } from "../ops/index.js";
import { defaultGenerator, mul } from "../ops/index.js";
import type { LambdaLR, Optimizer8bit } from "../optim/index.js";
import { clipGradNorm } from "../optim/index.js";
import { BnbError } from "../tensor/errors.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { ResolvedArguments } from "./arguments.js";
import { binding, checkBinding, resolveArguments, warmupOf } from "./arguments.js";
import type { Checkpoint } from "./checkpoints.js";
import { CheckpointFolder, makeRunFolder, readCheckpoint } from "./checkpoints.js";
import { DataOrder } from "./data-order.js";
import type { LogEntry } from "./log-entry.js";
import type { BatchLoss, Evaluation, LoopOptions, LossContext, TrainerEvents, TrainResult } from "./loop-types.js";
import { LossScaler } from "./loss-scaler.js";
import { makeOptimizer, makeSchedule, readOptimArgs } from "./make-optimizer.js";
import { EmbeddingNoise } from "./noise.js";
import { Reporter } from "./reports.js";
import type { RunState } from "./run-state.js";
import { dataHash, newRunState } from "./run-state.js";
import type { Sample } from "./sample.js";
import { countedTokens } from "./sample.js";
import type { SampleList } from "./stored-samples.js";
import { StoredSamples } from "./stored-samples.js";
import { restoreOptimizer, restoreWeights, snapshotState } from "./tensor-state.js";

/** The training loop over samples of type S. */
export abstract class TrainingLoop<S> extends EventEmitter<TrainerEvents> {
  readonly model: CausalLM;
  readonly args: ResolvedArguments;
  readonly #op: string;
  readonly #signal: AbortSignal | undefined;
  readonly #data: SampleList<S>;
  readonly #evalData: SampleList<S>;
  readonly #generators: readonly Generator[];
  readonly #order: DataOrder;
  readonly #settings: Readonly<Record<string, unknown>>;
  readonly #folder: CheckpointFolder;
  readonly #reporter: Reporter;
  #isRunning = false;
  #writing: Promise<unknown> = Promise.resolve();
  #failure: unknown = null;

  /** `settings`: what the heir has besides, and a run that goes on must have again. */
  protected constructor(op: string, options: LoopOptions<S>, settings: Readonly<Record<string, unknown>> = {}) {
    super();
    const { model, args, trainDataset, evalDataset = [], generators = [] } = options;
    this.#op = op;
    this.args = resolveArguments(op, args);
    readOptimArgs(op, this.args);
    this.model = model;
    this.#signal = args.signal;
    this.#data = trainDataset;
    this.#evalData = evalDataset;
    this.#generators = [defaultGenerator, ...generators];
    const lengthOf = (sample: S): number => this.partsOf(sample).reduce((sum, { ids }) => sum + ids.length, 0);
    const lengths = trainDataset instanceof StoredSamples ? trainDataset.lengths : Array.from(trainDataset, lengthOf);
    this.#order = new DataOrder(lengths, this.args, args.maxLength);
    const { packing } = this.args;
    this.#settings = { ...binding(this.args), ...settings, maxLength: (packing && args.maxLength) || null };
    const { reportTo, bf16, fp16 } = this.args;
    this.#folder = new CheckpointFolder(this.args.outputDir);
    const targets = typeof reportTo === "string" || typeof reportTo === "function" ? [reportTo] : reportTo;
    this.#reporter = new Reporter(targets, this.args.outputDir);
    const { loadBestModelAtEnd, earlyStoppingPatience, evalSteps } = this.args;
    const fail = (rule: string): never => {
      throw new BnbError("ERR_BNB_OPTION", `${op}: ${rule}`);
    };
    if (trainDataset.length === 0) fail("trainDataset must hold a sample, got none");
    if (evalSteps > 0 && evalDataset.length === 0) fail(`evalSteps needs an evalDataset, got ${evalSteps} without one`);
    if ((loadBestModelAtEnd || earlyStoppingPatience > 0) && (evalDataset.length === 0 || evalSteps === 0)) {
      fail("loadBestModelAtEnd and earlyStoppingPatience need an evalDataset and evalSteps of at least 1");
    }
    for (const [name, isSet, dtype] of [
      ["bf16", bf16, "bfloat16"],
      ["fp16", fp16, "float16"],
    ] as const) {
      if (isSet && model.dtype !== dtype) {
        const advice = `load it with dtype "${dtype}", without prepareModelForKbitTraining, which makes it float32`;
        fail(`with ${name} the model must be ${dtype}, got ${model.dtype}; ${advice}`);
      }
    }
    if (!model.parameters().some(({ requiresGrad }) => requiresGrad)) {
      fail("the model must have a parameter that requires a gradient, got none; add adapters, or requiresGrad_(true)");
    }
  }

  /** The samples of token ids that a sample consists of. */
  protected abstract partsOf(sample: S): readonly Sample[];
  /** What a batch weighs against others: the tokens that count, or the pairs. */
  protected abstract weightOf(samples: readonly S[]): number;
  /** Mean loss of a batch over its weight, with gradients unless they are off. */
  protected abstract lossOf(samples: readonly S[], context: LossContext): BatchLoss;

  /**
   * Trains to the end, and leaves a checkpoint there. Rejects with ERR_BNB_ABORTED when its signal is aborted, with a
   * checkpoint of the last whole step written; with ERR_BNB_NONFINITE for a loss that is no number, naming the step;
   * with ERR_BNB_FILE when a checkpoint cannot be written. In all cases the checkpoints that are there stay.
   */
  async train(): Promise<TrainResult> {
    if (this.#isRunning) throw new BnbError("ERR_BNB_ARGUMENT", `${this.#op}.train: it is running already`);
    this.#isRunning = true;
    const { model } = this;
    const { gradientCheckpointing, activationBudget } = model;
    try {
      return await this.#run(makeOptimizer(this.#op, model, this.args));
    } finally {
      Object.assign(model, { gradientCheckpointing, activationBudget });
      this.#isRunning = false;
    }
  }

  async #run(optimizer: Optimizer8bit): Promise<TrainResult> {
    const { args, model } = this;
    model.gradientCheckpointing ||= args.gradientCheckpointing;
    model.activationBudget ||= args.activationBudget;
    const noise = args.neftuneNoiseAlpha > 0 ? new EmbeddingNoise(model, args.neftuneNoiseAlpha) : null;
    try {
      await makeRunFolder(args.outputDir);
      await this.#folder.clean();
      const [newest] = await this.#folder.steps();
      if (newest !== undefined && args.resumeFromCheckpoint === false) {
        // Else the limit of checkpoints would take those of this run, whose steps are lower.
        const rule = `${this.#op}: outputDir must hold no checkpoints of another run, got ${this.#folder.pathOf(newest)}`;
        throw new BnbError("ERR_BNB_OPTION", `${rule}; resumeFromCheckpoint goes on from it`);
      }
      defaultGenerator.manualSeed(args.seed);
      const total = this.#order.totalSteps;
      const schedule = makeSchedule(optimizer, args, warmupOf(args, total), total);
      const scaler = args.fp16 ? new LossScaler() : null;
      const hash = dataHash(this.#samples());
      const run = await this.#resumed(optimizer, schedule, scaler, hash, total);
      await this.#steps({ run, optimizer, schedule, scaler, noise, hash, total });
      await this.#written();
      if (args.loadBestModelAtEnd && run.bestStep !== null) {
        await restoreWeights(this.#op, this.#folder.pathOf(run.bestStep), model);
      }
      const loss = run.history.filter((entry) => entry.loss !== undefined).at(-1)?.loss ?? Number.NaN;
      const checkpoint = this.#folder.pathOf(run.step);
      const bestStep = args.loadBestModelAtEnd ? run.bestStep : null;
      return { steps: run.step, loss, history: run.history, checkpoint, bestStep };
    } finally {
      await this.#writing.catch(() => undefined);
      noise?.remove();
      optimizer.zeroGrad();
      optimizer.dispose();
    }
  }

  /** The loss and other means of the evaluation data, or of these samples. The model is left as it was. */
  abstract evaluate(samples?: SampleList<S>): Promise<Evaluation>;

  /** The mean loss of samples, and the other means that `lossOf` gives, without gradients. */
  protected async measured(samples: SampleList<S> = this.#evalData): Promise<Evaluation> {
    const { model } = this;
    const wasTraining = model.training;
    model.eval();
    const sums: Record<string, number> = {};
    let weight = 0;
    try {
      for (let at = 0; at < samples.length; at += this.args.perDeviceEvalBatchSize) {
        this.#throwIfAborted();
        const batch = samples.slice(at, at + this.args.perDeviceEvalBatchSize);
        const of = this.weightOf(batch);
        // The mean of nothing is no number.
        if (of === 0) continue;
        const means = noGrad(() =>
          tidy(() => {
            const { loss, metrics = {} } = this.lossOf(batch, { onBounds: () => undefined, gradient: 1 });
            return { loss, ...metrics };
          }),
        );
        await addMeans(sums, means, of);
        weight += of;
      }
    } finally {
      model.train(wasTraining);
    }
    if (weight === 0) {
      const rule = `${this.#op}.evaluate: the data must hold a sample with tokens that count`;
      throw new BnbError("ERR_BNB_ARGUMENT", `${rule}, got none`);
    }
    const means = Object.entries(sums).map(([name, sum]) => [name, sum / weight] as const);
    return Object.fromEntries(means) as Evaluation;
  }

  *#samples(): Iterable<readonly Sample[]> {
    for (const sample of this.#data) yield this.partsOf(sample);
  }

  async #steps(at: Running): Promise<void> {
    const { run, schedule, total } = at;
    const { args } = this;
    const started = { time: performance.now(), step: run.step, tokens: run.tokens };
    this.model.train();
    try {
      if (run.isEvaluationDue) await this.#endStep(at);
      while (run.step < total && !this.#isStopped(run)) {
        this.#throwFailure();
        const learningRate = schedule.lastLr[0] as number;
        const done = await this.#step(at);
        const seconds = (performance.now() - started.time) / 1000;
        const tokensPerSecond = (run.tokens - started.tokens) / seconds;
        const secondsLeft = (seconds / (run.step - started.step)) * (total - run.step);
        const epoch = this.#order.epochsAt(run);
        this.emit("step", { step: run.step, steps: total, epoch, learningRate, ...done, tokensPerSecond, secondsLeft });
        const isLast = run.step === total;
        if (isLast || run.step % args.loggingSteps === 0) {
          // The mean of nothing is no number.
          const loss = run.lossTokens > 0 ? { loss: run.lossSum / run.lossTokens } : {};
          [run.lossSum, run.lossTokens] = [0, 0];
          const { gradNorm, metrics } = done;
          const entry = { step: run.step, epoch, ...loss, learningRate, gradNorm, tokensPerSecond, ...metrics };
          await this.#log(run, "log", entry);
        }
        run.isEvaluationDue =
          this.#evalData.length > 0 && (isLast || (args.evalSteps > 0 && run.step % args.evalSteps === 0));
        await this.#endStep(at);
      }
    } catch (error) {
      if (error instanceof BnbError && error.code === "ERR_BNB_ABORTED") {
        await this.#save(at);
        await this.#written();
      }
      throw error;
    }
  }

  #isStopped(run: RunState): boolean {
    const { earlyStoppingPatience: patience } = this.args;
    return patience > 0 && run.evaluationsSinceBest >= patience;
  }

  /** The evaluation and the checkpoint behind a step, where they are due. */
  async #endStep(at: Running): Promise<void> {
    const { run, total } = at;
    const { saveSteps, loadBestModelAtEnd } = this.args;
    const isBest = run.isEvaluationDue && this.#evalData.length > 0 && (await this.#evaluated(run));
    run.isEvaluationDue = false;
    const isDue = saveSteps > 0 && run.step % saveSteps === 0;
    if (run.step === total || this.#isStopped(run) || isDue || (isBest && loadBestModelAtEnd)) await this.#save(at);
  }

  /** One step: gradients of all its batches, then the optimizer. What was begun is undone where it is aborted. */
  async #step(at: Running) {
    const { run, optimizer, schedule, scaler, noise } = at;
    const before = this.#generatorStates();
    const batches = this.#order.next(run).map((numbers) => numbers.map((i) => this.#data.at(i) as S));
    const weight = batches.reduce((sum, batch) => sum + this.weightOf(batch), 0);
    const scale = scaler?.scale ?? 1;
    const means = { loss: 0 };
    try {
      for (const batch of batches) {
        this.#throwIfAborted();
        const of = this.weightOf(batch);
        // The mean of nothing is no number, and has no gradient.
        if (of === 0) continue;
        await addMeans(means, this.#accumulate(batch, (of / weight) * scale, noise), of / weight);
        if (!Number.isFinite(means.loss)) this.#refuse(run.step + 1, "loss", means.loss);
      }
      const gradNorm = await this.#clip(optimizer, scale);
      const isSkipped = scaler !== null && !Number.isFinite(gradNorm);
      if (!isSkipped && !Number.isFinite(gradNorm)) this.#refuse(run.step + 1, "gradient norm", gradNorm);
      scaler?.update(!isSkipped);
      if (!isSkipped) {
        optimizer.step();
        schedule.step();
      }
      optimizer.zeroGrad();
      run.step++;
      this.#order.advance(run, batches.length);
      run.tokens += batches.flat().reduce((sum, sample) => sum + this.#countedIn(sample), 0);
      const { loss, ...metrics } = means;
      run.lossSum += loss * weight;
      run.lossTokens += weight;
      return { loss, gradNorm, isSkipped, metrics };
    } catch (error) {
      // Nothing of a step that did not end: the run goes on from before it.
      optimizer.zeroGrad();
      this.#setGenerators(before);
      throw error;
    }
  }

  #accumulate(batch: readonly S[], factor: number, noise: EmbeddingNoise | null): Record<string, Tensor> {
    const kept = tidy(() => {
      const onBounds = (bounds: Int32Array | null): void => {
        if (noise) noise.bounds = bounds;
      };
      const { loss, metrics = {} } = this.lossOf(batch, { onBounds, gradient: factor });
      backward(factor === 1 ? loss : mul(loss, factor));
      return { ...metrics, loss: loss.detach() };
    });
    if (noise) noise.bounds = null;
    return kept;
  }

  /** Takes the scale of the loss out of the gradients, clips them, and gives their norm before. */
  async #clip(optimizer: Optimizer8bit, scale: number): Promise<number> {
    const parameters = optimizer.paramGroups.flatMap(({ params }) => params);
    if (scale !== 1) {
      for (const parameter of parameters) {
        const { grad } = parameter;
        if (!grad) continue;
        parameter.grad = keep(noGrad(() => mul(grad, 1 / scale)));
        grad.dispose();
      }
    }
    const { maxGradNorm } = this.args;
    const norm = clipGradNorm(parameters, maxGradNorm === 0 ? Number.MAX_VALUE : maxGradNorm);
    if (norm === null) return 0;
    try {
      return await norm.item();
    } finally {
      norm.dispose();
    }
  }

  #refuse(step: number, what: string, value: number): never {
    const rule = `${this.#op}: the ${what} of step ${step} must be finite`;
    const advice = "the weights are those before it, and the checkpoints stay; a lower learningRate may help";
    throw new BnbError("ERR_BNB_NONFINITE", `${rule}, got ${value}; ${advice}`);
  }

  async #evaluated(run: RunState): Promise<boolean> {
    const found = await this.evaluate();
    const isBest = Number.isFinite(found.loss) && (run.bestLoss === null || found.loss < run.bestLoss);
    if (isBest) Object.assign(run, { bestLoss: found.loss, bestStep: run.step, evaluationsSinceBest: 0 });
    else run.evaluationsSinceBest++;
    const told = Object.entries(found).map(([name, value]) => [`eval${name[0]?.toUpperCase()}${name.slice(1)}`, value]);
    const place = { step: run.step, epoch: this.#order.epochsAt(run) };
    await this.#log(run, "evaluate", { ...place, ...Object.fromEntries(told) });
    return isBest;
  }

  async #log(run: RunState, event: "log" | "evaluate", entry: LogEntry): Promise<void> {
    run.history.push(entry);
    this.emit(event, entry);
    await this.#reporter.add(entry);
  }

  // Reads what is to be kept, and writes it while training goes on.
  async #save({ run, optimizer, schedule, scaler, hash }: Running): Promise<void> {
    await this.#written();
    const { step } = run;
    const files = await snapshotState(this.model, optimizer);
    run.scaler = scaler?.state ?? null;
    run.generators = this.#generatorStates();
    const state = structuredClone({
      version: 1,
      arguments: this.#bound(),
      data: hash,
      schedule: schedule.stateDict(),
      run,
    });
    const best = this.args.loadBestModelAtEnd ? run.bestStep : null;
    this.#writing = this.#folder
      .write(step, files, state)
      .then(async (path) => {
        await this.#folder.trim(this.args.saveTotalLimit, step, best);
        this.emit("save", { step, path });
      })
      .catch((error: unknown) => {
        this.#failure ??= error;
      });
  }

  async #written(): Promise<void> {
    await this.#writing;
    this.#throwFailure();
  }

  #throwFailure(): void {
    const failure = this.#failure;
    this.#failure = null;
    if (failure !== null) throw failure;
  }

  /** The state that the run starts from: that of a checkpoint, or a new one. */
  async #resumed(
    optimizer: Optimizer8bit,
    schedule: LambdaLR,
    scaler: LossScaler | null,
    hash: string,
    total: number,
  ): Promise<RunState> {
    const { resumeFromCheckpoint: from } = this.args;
    let found: Checkpoint | null = null;
    if (typeof from === "string") found = await readCheckpoint(from);
    else if (from) found = await this.#folder.newest();
    if (!found) return newRunState();
    const { path, state } = found;
    checkBinding(this.#op, path, state.arguments, this.#bound());
    if (state.data !== hash) {
      throw new BnbError("ERR_BNB_OPTION", `${this.#op}: trainDataset must be the data of ${path}, got other samples`);
    }
    const run = { ...newRunState(), ...(state.run as Partial<RunState>) };
    if (run.generators.length !== this.#generators.length) {
      const counts = [run.generators, this.#generators].map(({ length }) => length - 1);
      throw new BnbError(
        "ERR_BNB_OPTION",
        `${this.#op}: generators must be ${counts[0]} as in ${path}, got ${counts[1]}`,
      );
    }
    if (run.step > total) throw new BnbError("ERR_BNB_OPTION", `${this.#op}: ${path} is beyond the last step ${total}`);
    await restoreWeights(this.#op, path, this.model);
    await restoreOptimizer(this.#op, path, this.model, optimizer);
    schedule.loadStateDict(state.schedule as ReturnType<LambdaLR["stateDict"]>);
    if (scaler && run.scaler) scaler.state = run.scaler;
    this.#setGenerators(run.generators);
    await this.#keepBest(run, path);
    return run;
  }

  /** An evaluation counts as the best only where its weights can be had at the end. */
  async #keepBest(run: RunState, path: string): Promise<void> {
    const { bestStep } = run;
    if (!this.args.loadBestModelAtEnd || bestStep === null) return;
    if (await this.#folder.has(bestStep, dirname(path))) return;
    Object.assign(run, { bestLoss: null, bestStep: null });
    const rule = `${path}: there is no checkpoint of step ${bestStep}, whose evaluation was the best`;
    process.emitWarning(`${rule}; those from here on count`, { type: "BnbWarning", code: "BNB_NO_BEST_CHECKPOINT" });
  }

  /** What a run and its continuation share: settings, and what the model computes. */
  #bound(): Record<string, unknown> {
    return { ...this.#settings, dtype: this.model.dtype, model: String(this.model) };
  }

  #countedIn(sample: S): number {
    return this.partsOf(sample).reduce((sum, part) => sum + countedTokens(part), 0);
  }

  #generatorStates(): GeneratorState[] {
    return this.#generators.map(({ state }) => state);
  }

  #setGenerators(states: readonly GeneratorState[]): void {
    this.#generators.forEach((generator, i) => {
      const state = states[i];
      if (state) generator.state = state;
    });
  }

  #throwIfAborted(): void {
    if (!this.#signal?.aborted) return;
    throw new BnbError("ERR_BNB_ABORTED", `${this.#op}: aborted by its signal`, { cause: this.#signal.reason });
  }
}

/** Adds means times their weight to sums by name, and frees them. */
async function addMeans(
  sums: Record<string, number>,
  means: Readonly<Record<string, Tensor>>,
  weight: number,
): Promise<void> {
  try {
    for (const [name, mean] of Object.entries(means)) sums[name] = (sums[name] ?? 0) + (await mean.item()) * weight;
  } finally {
    for (const mean of Object.values(means)) mean.dispose();
  }
}

/** What a run works with. */
interface Running {
  readonly run: RunState;
  readonly optimizer: Optimizer8bit;
  readonly schedule: LambdaLR;
  readonly scaler: LossScaler | null;
  readonly noise: EmbeddingNoise | null;
  readonly hash: string;
  readonly total: number;
}
