// The engine of sequences: many texts over one model, computed together. Who waits for a token takes part in the next step;
// nobody runs ahead of those who take the tokens, so a slow reader holds up nobody but himself.
import type { CausalLM } from "../models/causal-lm.js";
import { pageSize } from "../models/step-plan.js";
import { copyInto, slice } from "../ops/index.js";
import { anObjectWith, checkArgument } from "../tensor/checks.js";
import { tensor, zeros } from "../tensor/create.js";
import { BnbError } from "../tensor/errors.js";
import { notCloneable, refuseJson } from "../tensor/native-only.js";
import { checkOptions } from "../tensor/options.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { BlockPool } from "./block-pool.js";
import type { BranchOwner, Next, Telling } from "./branch.js";
import { Branch } from "./branch.js";
import type { EngineOptions, EngineStats, OpenOptions, RunOptions, SubmitOptions } from "./engine-options.js";
import { engineOptions, openOptions, submitOptions } from "./engine-options.js";
import type { KvDType } from "./kv-pages.js";
import { KvPages } from "./kv-pages.js";
import type { Prompt, TextPrompt } from "./prompt.js";
import { encodePrompt } from "./prompt.js";
import { Returning } from "./returning.js";
import type { RowDraw } from "./sampling.js";
import { hasPenalties } from "./sampling.js";
import type { Limits, Part } from "./scheduler.js";
import { schedule } from "./scheduler.js";
import type { Settings } from "./settings.js";
import { newTokens, openGrammar, refuseMany, rulesOfText, settingsOf, throwIfAborted } from "./settings.js";
import type { AdapterUse, StepAdapters } from "./step-adapters.js";
import { StepBudget } from "./step-budget.js";
import type { SequenceRows } from "./step-inputs.js";
import type { StepOutputs } from "./steps.js";
import { Steps } from "./steps.js";
import type { FinishReason, Made } from "./text.js";
import { continueText } from "./text.js";
import { TextStream } from "./text-stream.js";
import type { Turning } from "./turns.js";
import { Turns } from "./turns.js";

const silent: Telling = { logprobs: false, best: 0 };

/** @internal */
export const aModel = anObjectWith("a language model", "step", "kvLayout");

/**
 * Continues any number of texts with one model.
 *
 * Owns the pages of keys and values; `dispose()` frees them and ends all texts with ERR_BNB_DISPOSED. The model stays the
 * caller's; put it in `eval()` first.
 */
export class Engine implements Disposable {
  readonly model: CausalLM;
  /** Tokens that a text can have, its last one not counted: no more than have room. */
  readonly maxLength: number;
  readonly deterministic: boolean;
  /** @internal */
  readonly transfer: typeof notCloneable = notCloneable;
  readonly #pool: BlockPool;
  readonly #kv: KvPages;
  readonly #steps: Steps;
  readonly #limits: Limits;
  readonly #budget: StepBudget;
  readonly #owner: BranchOwner;
  readonly #adapters: StepAdapters | null;
  /** Null where positions turn alike in all texts. */
  readonly #turning: Turning | null;
  readonly #branches = new Set<Branch>();
  readonly #returning = new Returning<Branch>();
  #counts: Tensor | null = null;
  readonly #freeCounts: number[] = [];
  #order = 0;
  #isRunning = false;
  #queries = 0;
  #hits = 0;
  #preemptions = 0;
  /** @internal Is told how long each step took, in seconds. */
  onStep: ((seconds: number) => void) | null = null;
  #disposed = false;

  constructor(model: CausalLM, options: EngineOptions = {}) {
    checkArgument("Engine", "model", model, aModel);
    checkOptions("Engine", options, engineOptions);
    const { maxPositionEmbeddings } = model.config;
    this.model = model;
    const longest = Math.min(options.maxLength ?? maxPositionEmbeddings, maxPositionEmbeddings);
    const pages = Math.ceil((options.kvTokens ?? longest) / pageSize);
    this.maxLength = Math.min(longest, pages * pageSize);
    const { maxSequences = 64, stepTokens = 512, sharePrefixes = true } = options;
    const { graph = model.device.type === "cuda" && model.isWhole !== false } = options;
    this.deterministic = options.deterministic ?? false;
    this.#adapters = options.adapters ?? null;
    const tokens = Math.max(stepTokens, maxSequences + pageSize);
    this.#owner = this.#makeOwner();
    this.#limits = { tokens, sequences: maxSequences, steady: this.deterministic };
    const { stepMs = model.device.type === "cuda" ? 50 : 200 } = options;
    this.#budget = new StepBudget(stepMs / 1000, tokens);
    const dtype = options.kvDtype ?? (model.dtype as KvDType);
    this.#turning = turningOf(model, this.maxLength);
    this.#pool = new BlockPool(pages, { sharePrefixes: sharePrefixes && !this.#turning });
    this.#kv = new KvPages(model.kvLayout(), { pages, dtype, device: model.device });
    this.#steps = new Steps(model, this.#kv, {
      width: Math.ceil(this.maxLength / pageSize),
      graph,
      adapters: this.#adapters,
    });
  }

  /** Texts that are open. */
  get size(): number {
    return this.#branches.size;
  }

  /** Pages that no text uses. */
  get freePages(): number {
    return this.#pool.available;
  }

  get stats(): EngineStats {
    const running = [...this.#branches].filter(({ sequence }) => sequence.pages.length > 0).length;
    return {
      running,
      waiting: this.#branches.size - running,
      pages: this.#pool.size,
      freePages: this.#pool.available,
      prefixQueries: this.#queries,
      prefixHits: this.#hits,
      preemptions: this.#preemptions,
    };
  }

  /** A text that begins with `prompt`, whose ids lie in the vocabulary. Dispose it. */
  open(prompt: ArrayLike<number>, options: OpenOptions = {}): Branch {
    if (this.#disposed) throw new BnbError("ERR_BNB_DISPOSED", "generate: the engine was disposed");
    checkOptions("open", options, openOptions);
    const { maxLength = this.maxLength, telling = silent, rules = null, salt, adapter } = options;
    const ids = Array.from(prompt);
    const most = Math.min(maxLength, this.maxLength);
    if (ids.length < 1 || ids.length > most) {
      const range = `between 1 and ${most} tokens`;
      throw new BnbError("ERR_BNB_ARGUMENT", `generate: the prompt must have ${range}, got ${ids.length}`);
    }
    this.#queries += ids.length;
    const use = adapter === undefined ? null : this.#use(adapter);
    const slot = hasPenalties(options) ? this.#openCounts(ids) : -1;
    const sequence = this.#pool.open(salt, this.deterministic ? ids.length : Infinity, use?.key);
    const own = { telling, rules, adapter: use, turns: this.#turning && new Turns(this.#turning) };
    return this.#add(new Branch(this.#init(ids, ids.length, most, { options, slot }, own, sequence)));
  }

  /**
   * Yields the tokens that follow `prompt`, as `generate` does, computed together with those of the other texts. To stop
   * early, leave the loop.
   */
  async *submit(prompt: Prompt | TextPrompt, options: SubmitOptions = {}): AsyncGenerator<number, void, undefined> {
    checkOptions("generate", options, submitOptions);
    const { adapter, ...text } = options;
    const settings = settingsOf("generate", this.model, text);
    refuseMany("generate", settings);
    const ids = await encodePrompt("generate", this.model, prompt);
    for await (const { next } of this.run("generate", ids, settings, { adapter })) if (next) yield next.id;
  }

  /** @internal One text of settings that were checked. With `wantsText` its text, too. */
  async *run(
    op: string,
    ids: Int32Array,
    settings: Settings,
    { wantsText = false, telling = silent, salt, adapter, grammar: source, markers, watch }: RunOptions = {},
  ): AsyncGenerator<Partial<Made>, FinishReason, undefined> {
    throwIfAborted(op, settings.config.signal);
    const { stopStrings, draw } = settings;
    const count = newTokens(op, ids.length, settings, this.maxLength);
    if (count === 0) return "length";
    using grammar = await openGrammar(op, this.model, settings, source);
    throwIfAborted(op, settings.config.signal);
    const rules = rulesOfText(op, settings, ids.length, this.model.config.vocabSize, grammar);
    const needsText = wantsText || stopStrings.length > 0;
    const stream = needsText ? new TextStream(this.model.tokenizerFor(op), stopStrings, markers) : null;
    const maxLength = ids.length + count - 1;
    const own = { ...(salt !== undefined && { salt }), ...(adapter !== undefined && { adapter }) };
    const branch = this.open(ids, { ...draw, maxLength, telling, rules, ...own });
    watch?.(branch);
    return yield* continueText(op, branch, settings, count, stream, grammar);
  }

  /** Throws ERR_BNB_UNSUPPORTED: JSON would hold no element. */
  toJSON(): never {
    refuseJson("an Engine");
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const branch of [...this.#branches]) branch.dispose();
    this.#steps.dispose();
    this.#kv.dispose();
    this.#counts?.dispose();
    this.#counts = null;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #init(
    ids: number[],
    prompt: number,
    maxLength: number,
    draw: RowDraw,
    own: Pick<Branch, "telling" | "rules" | "adapter" | "turns">,
    sequence: Branch["sequence"],
  ) {
    return { order: this.#order++, ids, prompt, sequence, draw, ...own, maxLength, owner: this.#owner };
  }

  /** What branches ask of it. */
  #makeOwner(): BranchOwner {
    return {
      deterministic: this.deterministic,
      wake: (branch) => {
        this.#returning.arrived(branch);
        if (!this.#isRunning) void this.#run();
      },
      fork: (branch) => {
        if (branch.draw.slot >= 0) throw new BnbError("ERR_BNB_UNSUPPORTED", "fork: a text must have no penalties");
        const { ids, prompt, maxLength, draw, telling, rules, sequence, turns } = branch;
        const own = { telling, rules, adapter: branch.adapter?.again() ?? null, turns: turns?.fork() ?? null };
        return this.#add(new Branch(this.#init([...ids], prompt, maxLength, draw, own, sequence.fork())));
      },
      close: (branch) => {
        this.#branches.delete(branch);
        this.#returning.arrived(branch);
        this.#hits += branch.sequence.found;
        branch.adapter?.[Symbol.dispose]();
        if (branch.draw.slot >= 0) this.#freeCounts.push(branch.draw.slot);
      },
    };
  }

  #use(adapter: string): AdapterUse {
    if (this.#adapters) return this.#adapters.use("generate", adapter);
    throw new BnbError("ERR_BNB_OPTION", `generate: the engine must have been given adapters, got adapter ${adapter}`);
  }

  #add(branch: Branch): Branch {
    this.#branches.add(branch);
    return branch;
  }

  /** Steps until nobody waits. Never rejects: failures are those of the texts in the step. */
  async #run(): Promise<void> {
    this.#isRunning = true;
    // All who ask in this turn of the event loop take part in the first step.
    await Promise.resolve();
    while (!this.#disposed) {
      await this.#returning.all();
      if (this.#branches.size > 1) await new Promise((resolve) => setImmediate(resolve));
      const branches = [...this.#branches];
      if (!branches.some(({ wanted }) => wanted > 0)) break;
      const began = performance.now();
      const held = branches.filter(({ sequence }) => sequence.length > 0);
      const parts = byAdapter(schedule(branches, { ...this.#limits, prompts: (n) => this.#budget.room(n) }));
      this.#preemptions += held.filter(({ sequence }) => sequence.length === 0).length;
      const answering = parts.filter(({ answers }) => answers).map(({ job }) => job);
      const ofPrompts = parts.filter(({ job, count }) => count > job.wanted);
      const chunks = ofPrompts.map(({ job, count }) => ({ position: job.sequence.length, count }));
      // Cannot be: each text alone has room.
      if (parts.length === 0)
        for (const branch of branches) branch.fail(new BnbError("ERR_BNB_OOM", "generate: no room"));
      try {
        const answers = await this.#step(parts);
        const seconds = (performance.now() - began) / 1000;
        this.#budget.record({ chunks, answers: parts.length - chunks.length, seconds });
        this.onStep?.(seconds);
        this.#returning.expect(answering, seconds);
        answering.forEach((branch, i) => {
          branch.answer(answers[i] as Next[]);
        });
      } catch (error) {
        // What the step should have written is not there.
        this.#pool.forget();
        for (const { job } of parts) {
          job.sequence.truncate(0);
          job.fail(error);
        }
      }
      // Those who were answered may ask again before the next step.
      await Promise.resolve();
    }
    this.#isRunning = false;
  }

  /** Computes parts, and reads what follows those that answer. */
  async #step(parts: readonly Part<Branch>[]): Promise<Next[][]> {
    const rows = parts.map(({ job, count, answers }) => {
      const { sequence, draw, wanted } = job;
      const start = sequence.length;
      const ids = job.ids.slice(start, start + count);
      sequence.append(ids);
      const slots = ids.map((_, i) => sequence.slot(start + i));
      const { pages } = sequence;
      const rules = answers ? job.wantedRules : [];
      const length = start + count;
      const adapter = job.adapter?.index ?? -1;
      const total = job.turns?.lengthAt(start, job.ids.length) ?? job.ids.length;
      job.turns?.record(start, count, job.ids.length);
      return { ids, slots, length, total, pages, wanted: answers ? wanted : 0, draw, rules, adapter };
    });
    for (const [from, to] of this.#pool.takeCopies()) this.#kv.copy(from, to);
    const groups = this.#together(rows);
    const pick = <T>(from: readonly T[], group: readonly number[]) => group.map((i) => from[i] as T);
    // All are queued before the first is awaited.
    const found = groups.map((group) => this.#compute(pick(parts, group), pick(rows, group)));
    const answers = new Map<number, Next[]>();
    for (const [g, list] of (await Promise.all(found)).entries()) {
      const answering = (groups[g] as number[]).filter((i) => parts[i]?.answers);
      for (const [a, i] of answering.entries()) answers.set(i, list[a] as Next[]);
    }
    return parts.flatMap((_, i) => (answers.has(i) ? [answers.get(i) as Next[]] : []));
  }

  /** Which rows are computed in one call. */
  #together(rows: readonly SequenceRows[]): number[][] {
    const all = rows.map((_, i) => i);
    if (this.deterministic) return all.map((i) => [i]);
    if (!this.#turning) return [all];
    const groups = new Map<number, number[]>();
    for (const i of all) {
      const rule = this.#turning((rows[i] as SequenceRows).total);
      groups.set(rule, [...(groups.get(rule) ?? []), i]);
    }
    return [...groups.values()];
  }

  async #compute(parts: readonly Part<Branch>[], rows: readonly SequenceRows[]): Promise<Next[][]> {
    const answering = parts.filter(({ answers }) => answers).map(({ job }) => job);
    const telling = {
      logprobs: answering.some((branch) => branch.telling.logprobs),
      best: Math.max(0, ...answering.map((branch) => branch.telling.best)),
      all: answering.some((branch) => branch.telling.all === true),
    };
    const counts = answering.some(({ draw }) => draw.slot >= 0) ? this.#counts : null;
    const outputs = this.#steps.run(rows, counts, telling);
    try {
      return await this.#read(answering, outputs);
    } finally {
      if (!outputs.isRecorded) for (const output of tensorsOf(outputs)) output.dispose();
    }
  }

  async #read(answering: readonly Branch[], outputs: StepOutputs): Promise<Next[][]> {
    // Nothing is read of parts that answer nobody, but the next step begins when they are done.
    if (answering.length === 0) await this.model.device.synchronize();
    const wanted = answering.map((branch) => branch.wanted);
    const [ids, logprobs, bestIds, bestLogprobs, all] = await Promise.all([
      outputs.ids.data(),
      outputs.logprobs?.data(),
      outputs.bestIds?.data(),
      outputs.bestLogprobs?.data(),
      outputs.all?.data(),
    ]);
    const best = outputs.bestIds?.shape[1] ?? 0;
    const { vocabSize } = this.model.config;
    let row = 0;
    return answering.map((_, i) =>
      Array.from({ length: wanted[i] as number }, () => {
        const at = row++;
        return {
          id: Number(ids[at]),
          logprob: Number(logprobs?.[at] ?? NaN),
          bestIds: Int32Array.from((bestIds ?? []).slice(at * best, (at + 1) * best)),
          bestLogprobs: Float32Array.from((bestLogprobs ?? []).slice(at * best, (at + 1) * best)),
          all: all ? (all as Float32Array).slice(at * vocabSize, (at + 1) * vocabSize) : null,
        };
      }),
    );
  }

  /** A row of the table of counts that knows the prompt. */
  #openCounts(prompt: readonly number[]): number {
    const { vocabSize } = this.model.config;
    const { device } = this.model;
    if (this.#freeCounts.length === 0) {
      const rows = this.#counts?.shape[0] ?? 0;
      const more = Math.max(1, rows);
      const table = keep(zeros([rows + more, vocabSize], { dtype: "int32", device }));
      if (this.#counts) copyInto(table, this.#counts);
      this.#counts?.dispose();
      this.#counts = table;
      for (let row = rows + more - 1; row >= rows; row--) this.#freeCounts.push(row);
    }
    const slot = this.#freeCounts.pop() as number;
    const row = new Int32Array(vocabSize);
    for (const id of prompt) row[id] = inPrompt;
    tidy(() => {
      const target = slice(this.#counts as Tensor, 0, slot, slot + 1);
      copyInto(target, tensor(row, { shape: [1, vocabSize], device }));
    });
    return slot;
  }
}

function turningOf(model: CausalLM, longest: number): Turning | null {
  const rule = (length: number): number => model.positionRule(length);
  return rule(1) === rule(longest) ? null : rule;
}

/** Those of one adapter together, in the order of the adapters, and those without behind them. */
function byAdapter(parts: readonly Part<Branch>[]): Part<Branch>[] {
  const place = ({ job: { adapter } }: Part<Branch>): number => adapter?.index ?? Number.MAX_SAFE_INTEGER;
  return [...parts].sort((a, b) => place(a) - place(b));
}

/** The bit of a count that says that the prompt has the token. */
const inPrompt = 2 ** 30;

function tensorsOf(outputs: StepOutputs): Tensor[] {
  const { ids, logprobs, bestIds, bestLogprobs, all } = outputs;
  return [ids, logprobs, bestIds, bestLogprobs, all].filter((output) => output !== null);
}
