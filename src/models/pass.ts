// One forward pass, seen from a model: which tokens, where they sit, and how a layer attends. A model body is written
// once over a Pass; training, packing, generation and serving differ in the pass they hand to it.
import { attention, cast, kvAppend, max, mul, pagedAttention, reshape, rope, sign, sub, to } from "../ops/index.js";
import { arange } from "../tensor/create.js";
import type { Device } from "../tensor/device.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { KvStore, StepPlan } from "./step-plan.js";

/** What changes the scores of an attention layer; see `attention`. */
export interface Scores {
  /** Default 1 / sqrt(head size). */
  scale?: number;
  /** Keys further back are not seen. */
  window?: number;
  softcap?: number;
  sinks?: Tensor; // [heads] float32
}

/** Cosine and sine of every position's angles, float32 [positions, R / 2]; the first R dims of a head turn. */
export interface Rotary {
  readonly cos: Tensor;
  readonly sin: Tensor;
}

/** What has its tensors on one device, and a copy of itself for each other one that asks. */
export interface Movable<T> {
  on(device: Device): T;
}

/** What a model body computes over. */
export interface Pass extends Movable<Pass> {
  readonly ids: Tensor; // [batch, t] or [tokens], int32
  /** Where the tokens sit, int32 [tokens]; null where every row of `ids` counts from 0. */
  readonly positions: Tensor | null;
  /** Whether of each block only the input is kept for backward(), and the rest computed again. */
  readonly recomputes: boolean;
  /** Where it recomputes: bytes of activations that may be kept all the same. */
  readonly activationBudget: number;
  /** Tokens of the longest text, for position rules that look at it; null where a recorded step does not know. */
  readonly longest: number | null;
  /**
   * Turns q and k (unless `rotary` is null), remembers k and v where the pass has a memory, and attends.
   *
   * q [..., heads, dim], k and v [..., kvHeads, dim] with the leading axes of `ids`; gives the shape of q.
   */
  attend(layer: number, q: Tensor, k: Tensor, v: Tensor, rotary: Rotary | null, scores?: Scores): Tensor;
}

/** How samples lie in the ids of a TrainingPass. */
export interface TrainingPassOptions {
  /** Packed samples: ids are [1, t], and rows starts[i] to starts[i + 1] are sample i. int32 [samples + 1]. */
  starts?: Tensor | undefined;
  /** Whether a token sees only those before it; default true. */
  causal?: boolean;
  /** See `Pass.recomputes`; default false. */
  recomputes?: boolean;
  /** See `Pass.activationBudget`; default 0. */
  activationBudget?: number;
  /** @internal Where the rows sit, if that is known; default: it follows from `starts`. */
  positions?: Tensor | null;
}

/** A pass and its copies on other devices, which go with it. */
abstract class CopiedPass<P extends Pass> implements Disposable {
  abstract readonly ids: Tensor;
  readonly #copies = new Map<Device, P>();
  readonly #tensors: Tensor[] = [];

  on(device: Device): P {
    if (device === this.ids.device) return this as unknown as P;
    const known = this.#copies.get(device);
    if (known) return known;
    const copy = this.copied((x) => {
      const moved = keep(to(x, device));
      this.#tensors.push(moved);
      return moved;
    });
    this.#copies.set(device, copy);
    return copy;
  }

  /** The same pass over tensors that were moved. */
  protected abstract copied(move: (x: Tensor) => Tensor): P;

  [Symbol.dispose](): void {
    for (const tensor of this.#tensors) tensor.dispose();
    this.#copies.clear();
  }
}

/** Whole texts with gradients, dense or packed. */
export class TrainingPass extends CopiedPass<TrainingPass> implements Pass {
  readonly ids: Tensor;
  readonly positions: Tensor | null;
  readonly longest: number;
  readonly recomputes: boolean;
  readonly activationBudget: number;
  readonly #starts: Tensor | undefined;
  readonly #causal: boolean;

  constructor(ids: Tensor, options: TrainingPassOptions = {}) {
    const { starts, causal = true, recomputes = false, activationBudget = 0, positions } = options;
    super();
    this.ids = ids;
    this.longest = ids.shape.at(-1) as number;
    this.recomputes = recomputes;
    this.activationBudget = activationBudget;
    this.#starts = starts;
    this.#causal = causal;
    this.positions = positions !== undefined ? positions : starts ? positionsIn(ids, starts) : null;
  }

  attend(_layer: number, q: Tensor, k: Tensor, v: Tensor, rotary: Rotary | null, scores: Scores = {}): Tensor {
    const turn = (x: Tensor) => (rotary ? rope(x, rotary.cos, rotary.sin, this.positions ?? 0) : x);
    const starts = this.#starts && { starts: this.#starts };
    return attention(turn(q), turn(k), v, { causal: this.#causal, ...scores, ...starts });
  }

  protected override copied(move: (x: Tensor) => Tensor): TrainingPass {
    return new TrainingPass(move(this.ids), {
      starts: this.#starts && move(this.#starts),
      causal: this.#causal,
      recomputes: this.recomputes,
      activationBudget: this.activationBudget,
      positions: this.positions && move(this.positions),
    });
  }
}

/** A step of any sequences over pages; without gradients. */
export class StepPass extends CopiedPass<StepPass> implements Pass {
  readonly ids: Tensor;
  readonly positions: Tensor;
  readonly longest: number | null;
  readonly recomputes = false;
  readonly activationBudget = 0;
  readonly #plan: StepPlan;
  readonly #kv: KvStore;

  constructor(plan: StepPlan, kv: KvStore) {
    super();
    this.ids = plan.ids;
    this.positions = plan.positions;
    this.longest = plan.longest;
    this.#plan = plan;
    this.#kv = kv;
  }

  attend(layer: number, q: Tensor, k: Tensor, v: Tensor, rotary: Rotary | null, scores: Scores = {}): Tensor {
    const pages = this.#kv.layer(layer);
    const turn = rotary && { cos: rotary.cos, sin: rotary.sin, positions: this.positions };
    return pagedAttention(kvAppend(q, k, v, pages, this.#plan.slots, turn), pages, this.#plan, scores);
  }

  protected override copied(move: (x: Tensor) => Tensor): StepPass {
    const { ids, positions, slots, starts, lengths, pages } = this.#plan;
    const plan = { ids, positions, slots, starts, lengths, pages };
    for (const key of Object.keys(plan) as (keyof typeof plan)[]) plan[key] = move(plan[key]);
    return new StepPass({ ...this.#plan, ...plan }, this.#kv);
  }
}

/** Where the rows of packed samples sit: each behind the last start that is not behind it. [t] int32. */
function positionsIn(ids: Tensor, starts: Tensor): Tensor {
  return tidy(() => {
    const rows = arange(0, ids.size, 1, { device: ids.device });
    const from = reshape(cast(starts, "float32"), [1, -1]);
    // 1 where a start is not behind the row, else -1. Whole numbers below 2^24, so float32 is exact.
    const side = sign(sub(reshape(rows, [-1, 1]), sub(from, 0.5)));
    return cast(sub(rows, max(mul(from, side), { axis: 1 })), "int32");
  });
}
