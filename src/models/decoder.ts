// Next-token logits of a growing text. The prompt and the first token run op by op; the steps after them are all
// alike, so one is recorded as a graph and replayed with another token and position.
import { noGrad } from "../autograd/no-grad.js";
import { copyInto, reshape } from "../ops/index.js";
import { tensor, zeros } from "../tensor/create.js";
import { BnbError } from "../tensor/errors.js";
import type { Graph } from "../tensor/graph.js";
import { capture } from "../tensor/graph.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { CausalLM } from "./generate.js";
import type { KvCache } from "./kv-cache.js";

interface RecordedStep {
  graph: Graph<Tensor>;
  token: Tensor; // [1, 1] int32
  position: Tensor; // [1] int32
}

/** Owns what it records, but not the cache. */
export class Decoder implements Disposable {
  readonly #model: CausalLM;
  readonly #cache: KvCache;
  #mayRecord: boolean;
  #warm = false;
  #step: RecordedStep | null = null;

  /** With `graph`, steps of one token are recorded where the model can be. */
  constructor(model: CausalLM, cache: KvCache, graph: boolean) {
    this.#model = model;
    this.#cache = cache;
    this.#mayRecord = graph;
  }

  /** Logits [vocab] of the token after `ids`, which follow what the cache holds. */
  async next(ids: Int32Array): Promise<Float32Array> {
    if (this.#mayRecord && this.#warm && ids.length === 1) this.#step ??= this.#record();
    this.#warm ||= ids.length === 1;
    if (this.#step) return this.#replay(this.#step, ids);
    const logits = noGrad(() => tidy(() => this.#forward(tensor(ids, this.#place([1, ids.length])))));
    try {
      return await logits.floats();
    } finally {
      logits.dispose();
    }
  }

  dispose(): void {
    this.#cache.readPositionFrom(null);
    this.#step?.graph.dispose();
    this.#step?.token.dispose();
    this.#step?.position.dispose();
    this.#step = null;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #place(shape: number[]) {
    return { shape, dtype: "int32", device: this.#model.device } as const;
  }

  #forward(ids: Tensor): Tensor {
    return reshape(this.#model.forward(ids, { cache: this.#cache, logitsToKeep: 1 }), [-1]);
  }

  /** Null, now and later, for a model that does more than call ops. */
  #record(): RecordedStep | null {
    const { shape: _, ...place } = this.#place([]);
    const token = zeros([1, 1], place);
    const position = zeros([1], place);
    const length = this.#cache.length;
    this.#cache.readPositionFrom(position);
    try {
      const graph = capture(() => noGrad(() => this.#forward(token)), { device: this.#model.device });
      // Recording counted a position; each replay counts its own.
      this.#cache.advance(length - this.#cache.length);
      return { graph, token, position };
    } catch (error) {
      this.#cache.readPositionFrom(null);
      token.dispose();
      position.dispose();
      this.#mayRecord = false;
      if (error instanceof BnbError && error.code === "ERR_BNB_UNSUPPORTED") return null;
      throw error;
    }
  }

  #replay({ graph, token, position }: RecordedStep, ids: Int32Array): Promise<Float32Array> {
    tidy(() => {
      copyInto(token, tensor(ids, this.#place([1, 1])));
      copyInto(position, tensor([this.#cache.length], this.#place([1])));
    });
    graph.replay();
    this.#cache.advance(1);
    return graph.outputs.floats();
  }
}
