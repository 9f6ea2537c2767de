// The tokens of a growing text. The prompt and the first token run op by op; the steps after them are all alike, so one
// is recorded as a graph and replayed. A token is drawn where the logits are, and is there for the next step: what is
// read each time is its id alone.
import { noGrad } from "../autograd/no-grad.js";
import type { SamplingOptions } from "../ops/index.js";
import { copyInto, reshape, sampleToken } from "../ops/index.js";
import { tensor, zeros } from "../tensor/create.js";
import { BnbError } from "../tensor/errors.js";
import type { Graph } from "../tensor/graph.js";
import { capture } from "../tensor/graph.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { CausalLM } from "./causal-lm.js";
import type { KvCache } from "./kv-cache.js";

interface RecordedStep {
  graph: Graph<Tensor>;
  position: Tensor; // [1] int32
}

/** How tokens are drawn, and whether steps are recorded where the model can be. */
export interface DecoderOptions extends SamplingOptions {
  seed: number;
  graph: boolean;
}

/** Owns what it records, but not the cache. */
export class Decoder implements Disposable {
  readonly #model: CausalLM;
  readonly #cache: KvCache;
  readonly #options: DecoderOptions;
  readonly #token: Tensor; // [1, 1] int32, the last one
  #mayRecord: boolean;
  #warm = false;
  #step: RecordedStep | null = null;

  constructor(model: CausalLM, cache: KvCache, options: DecoderOptions) {
    this.#model = model;
    this.#cache = cache;
    this.#options = options;
    this.#mayRecord = options.graph;
    this.#token = keep(zeros([1, 1], { dtype: "int32", device: model.device }));
  }

  /** The token after the prompt, for an empty cache. */
  start(prompt: Int32Array): Promise<number> {
    const ids = { shape: [1, prompt.length], dtype: "int32", device: this.#model.device } as const;
    this.#run(() => tensor(prompt, ids));
    return this.#read();
  }

  /** The token after the last one. */
  next(): Promise<number> {
    // The first step of one token runs as it is: what ops allocate at their first use must be there for a recording.
    if (this.#mayRecord && this.#warm) this.#step ??= this.#record();
    this.#warm = true;
    if (this.#step) this.#replay(this.#step);
    else this.#run(() => this.#token);
    return this.#read();
  }

  dispose(): void {
    this.#cache.readPositionFrom(null);
    this.#step?.graph.dispose();
    this.#step?.position.dispose();
    this.#step = null;
    this.#token.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #run(ids: () => Tensor): void {
    noGrad(() =>
      tidy(() => {
        this.#advance(ids());
      }),
    );
  }

  /** Feeds ids to the model, and puts the token drawn in the place of the last. */
  #advance(ids: Tensor, position: Tensor | null = null): Tensor {
    const { seed, temperature, topK, topP } = this.#options;
    // Draws are numbered by the position that their token takes.
    const step = (ids.shape[1] as number) + (position ? 0 : this.#cache.length);
    const logits = this.#model.forward(ids, { cache: this.#cache, logitsToKeep: 1 });
    const drawn = sampleToken(logits, { temperature, topK, topP, seed, step, position });
    copyInto(this.#token, reshape(drawn, [1, 1]));
    return drawn;
  }

  async #read(): Promise<number> {
    const [id] = await this.#token.data();
    if ((id as number) >= 0) return id as number;
    throw new BnbError(
      "ERR_BNB_NONFINITE",
      "generate: no token can be drawn: the logits must be finite, got NaN or infinity",
    );
  }

  /** Null, now and later, for a model that does more than call ops. */
  #record(): RecordedStep | null {
    const position = keep(zeros([1], { dtype: "int32", device: this.#model.device }));
    const length = this.#cache.length;
    this.#cache.readPositionFrom(position);
    try {
      const graph = capture(() => noGrad(() => this.#advance(this.#token, position)), { device: this.#model.device });
      // Recording counted a position; each replay counts its own.
      this.#cache.advance(length - this.#cache.length);
      return { graph, position };
    } catch (error) {
      this.#cache.readPositionFrom(null);
      this.#cache.advance(length - this.#cache.length);
      position.dispose();
      this.#mayRecord = false;
      if (error instanceof BnbError && error.code === "ERR_BNB_UNSUPPORTED") return null;
      throw error;
    }
  }

  #replay({ graph, position }: RecordedStep): void {
    if (!graph.hasTensors) {
      throw new BnbError("ERR_BNB_DISPOSED", "generate: the model was disposed, or another tensor that a step uses");
    }
    tidy(() => {
      copyInto(position, tensor([this.#cache.length], { shape: [1], dtype: "int32", device: this.#model.device }));
    });
    graph.replay();
    this.#cache.advance(1);
  }
}
