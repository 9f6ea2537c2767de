// Steps on the device: op by op, or as recorded graphs where all sequences have one token, which are all alike but for
// their inputs. Graphs exist for 1, 2, 4 ... 64 rows; rows to spare write nothing.
import { noGrad } from "../autograd/no-grad.js";
import type { CausalLM } from "../models/causal-lm.js";
import type { SampledTokens } from "../ops/index.js";
import { cast, logSoftmax, sampleTokens } from "../ops/index.js";
import { BnbError } from "../tensor/errors.js";
import type { Graph } from "../tensor/graph.js";
import { capture } from "../tensor/graph.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Telling } from "./branch.js";
import type { KvPages } from "./kv-pages.js";
import type { StepAdapters } from "./step-adapters.js";
import type { SequenceRows } from "./step-inputs.js";
import { StepInputs, sizesOf } from "./step-inputs.js";

const mostRecordedRows = 64;

interface Recorded extends Disposable {
  readonly inputs: StepInputs;
  readonly graph: Graph<Told>;
}

/** What a step gives: owned by the caller, or by the recording until its next replay. */
export type StepOutputs = Told & { readonly isRecorded: boolean };

/** What is told of the rows; `all`: log-probabilities of all tokens, [R, V] float32. */
type Told = SampledTokens & { all: Tensor | null };

export class Steps implements Disposable {
  readonly #model: CausalLM;
  readonly #kv: KvPages;
  readonly #width: number;
  #mayRecord: boolean;
  readonly #adapters: StepAdapters | null;
  readonly #recorded = new Map<string, Recorded>();
  readonly #warm = new Set<string>();
  #counts: Tensor | null = null;
  /** Of the adapters that recorded steps read. */
  #version = 0;

  /** `width`: most pages of a sequence. */
  constructor(model: CausalLM, kv: KvPages, options: { width: number; graph: boolean; adapters: StepAdapters | null }) {
    this.#model = model;
    this.#kv = kv;
    this.#width = options.width;
    this.#adapters = options.adapters;
    this.#mayRecord = options.graph;
  }

  run(parts: readonly SequenceRows[], counts: Tensor | null, telling: Telling): StepOutputs {
    if (counts && counts !== this.#counts) {
      this.#forget();
      this.#counts = counts;
    }
    const rows = parts.length;
    const adapters = parts.some(({ adapter }) => adapter >= 0) ? this.#adaptersNow() : null;
    const isAlike = parts.every(({ ids, wanted }) => ids.length === 1 && wanted === 1) && rows <= mostRecordedRows;
    const hasRules = parts.some(({ rules }) => rules.some((rule) => rule !== null));
    if (!this.#mayRecord || !isAlike || hasRules || telling.logprobs || telling.best > 0 || telling.all) {
      return this.#once(new StepInputs(parts, sizesOf(parts, adapters), counts, this.#model.device), telling);
    }
    const padded = 2 ** Math.ceil(Math.log2(rows));
    const sizes = { tokens: padded, sequences: padded, rows: padded, width: this.#width, adapters };
    const key = [padded, counts !== null, adapters !== null].join();
    const known = this.#recorded.get(key);
    if (known) return this.#replay(known, parts);
    const isFirst = !this.#warm.has(key);
    const inputs = new StepInputs(parts, sizes, counts, this.#model.device, !isFirst);
    // The first step of its kind runs as it is: what ops allocate at their first use must be there for a recording.
    if (isFirst) {
      this.#warm.add(key);
      return this.#once(inputs, telling);
    }
    const recorded = this.#record(inputs);
    if (!recorded) {
      inputs.dispose();
      return this.#once(new StepInputs(parts, sizes, counts, this.#model.device), telling);
    }
    this.#recorded.set(key, recorded);
    return this.#replay(recorded, null);
  }

  dispose(): void {
    this.#forget();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** How many there are. What was recorded with others is forgotten. */
  #adaptersNow(): number {
    const { size, version } = this.#adapters as StepAdapters;
    if (version !== this.#version) this.#forget();
    this.#version = version;
    return size;
  }

  #forget(): void {
    for (const recorded of this.#recorded.values()) recorded[Symbol.dispose]();
    this.#recorded.clear();
  }

  #once(inputs: StepInputs, telling: Telling): StepOutputs {
    try {
      return { ...tidy(() => this.#advance(inputs, telling)), isRecorded: false };
    } finally {
      inputs.dispose();
    }
  }

  #advance(inputs: StepInputs, { logprobs, best, all = false }: Telling): Told {
    return noGrad(() => {
      const { plan, sampling, segment } = inputs;
      const step = () => this.#model.step(plan, this.#kv);
      const logits = segment ? (this.#adapters as StepAdapters).during(segment, step) : step();
      const told = sampleTokens(logits, sampling, { logprobs, best });
      return { ...told, all: all ? logSoftmax(cast(logits, "float32")) : null };
    });
  }

  /** Null, now and later, for a model that does more than call ops. */
  #record(inputs: StepInputs): Recorded | null {
    try {
      const telling = { logprobs: false, best: 0 };
      const graph = capture(() => this.#advance(inputs, telling), { device: this.#model.device });
      const dispose = () => {
        graph.dispose();
        inputs.dispose();
      };
      return { inputs, graph, [Symbol.dispose]: dispose };
    } catch (error) {
      if (error instanceof BnbError && error.code === "ERR_BNB_UNSUPPORTED") {
        this.#mayRecord = false;
        return null;
      }
      inputs.dispose();
      throw error;
    }
  }

  /** `parts` is null where the inputs are theirs already. */
  #replay({ graph, inputs }: Recorded, parts: readonly SequenceRows[] | null): StepOutputs {
    if (!graph.hasTensors) {
      throw new BnbError("ERR_BNB_DISPOSED", "generate: the model was disposed, or another tensor that a step uses");
    }
    if (parts) inputs.write(parts);
    graph.replay();
    return { ...graph.outputs, isRecorded: true };
  }
}
