// What a model makes of texts, as vectors: its last hidden states, pooled.
import { noGrad } from "../autograd/no-grad.js";
import type { CausalLM, EmbedOptions } from "../models/index.js";
import { pool, poolings } from "../models/pooling.js";
import { concat } from "../ops/index.js";
import { aBoolean, anAbortSignal, checkArgument, oneOf } from "../tensor/checks.js";
import { tensor } from "../tensor/create.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { aModel } from "./engine.js";
import type { Prompt } from "./prompt.js";
import { encodeText, isPrompts } from "./prompt.js";
import { throwIfAborted } from "./settings.js";
import type { AdapterUse, StepAdapters } from "./step-adapters.js";

/** Options of `embed`, which for a language model has no defaults of its checkpoint. */
export interface PoolOptions extends Pick<EmbedOptions, "pooling" | "normalize"> {
  /** Ends the work with `ERR_BNB_ABORTED`, between two texts. */
  signal?: AbortSignal;
}
const poolOptions = optionTable<PoolOptions>({
  pooling: oneOf(poolings),
  normalize: aBoolean,
  signal: anAbortSignal,
});

const op = "embed";
/**
 * The last hidden states (behind the final norm, before the head) of a text, of token ids, or of a list of such, pooled over their
 * tokens (by default their mean): [texts, hidden] float32, on the model's device and owned by the caller. Without gradients.
 *
 * @example
 * const vectors = await embed(model, ["a bit", "a byte"], { normalize: true });
 * const similarity = vectors.matmul(vectors, { transposeB: true });
 */
export async function embed(
  model: CausalLM,
  texts: string | Prompt | readonly (string | Prompt)[],
  options: PoolOptions = {},
): Promise<Tensor> {
  checkArgument(op, "model", model, aModel);
  checkOptions(op, options, poolOptions);
  const list = isPrompts(texts) ? (texts as readonly (string | Prompt)[]) : [texts];
  if (list.length === 0) throw new BnbError("ERR_BNB_ARGUMENT", `${op}: texts must be at least one, got []`);
  const prompts = await Promise.all(list.map((text) => encodeText(op, model, text)));
  return embedIds(model, prompts, options);
}

/** @internal Of token ids, by an adapter of a set if need be. */
export async function embedIds(
  model: CausalLM,
  prompts: readonly Int32Array[],
  options: PoolOptions,
  adapters?: { readonly set: StepAdapters; readonly use: AdapterUse } | null,
): Promise<Tensor> {
  const vectors: Tensor[] = [];
  try {
    // One by one: how some models count positions depends on all that is there. Each is waited for, so that what is queued
    // behind it has its turn.
    for (const ids of prompts) {
      throwIfAborted(op, options.signal);
      const vector = (): Tensor => vectorOf(model, ids, options);
      const own = adapters ? () => adapters.set.during(segmentOf(model, ids.length, adapters), vector) : vector;
      vectors.push(tidy(() => noGrad(() => keep(own()))));
      await model.device.synchronize();
    }
    return tidy(() => noGrad(() => keep(concat(vectors, 0))));
  } finally {
    for (const vector of vectors) vector.dispose();
  }
}

/** All rows are those of one adapter. */
function segmentOf({ device }: CausalLM, rows: number, { set, use }: { set: StepAdapters; use: AdapterUse }): Tensor {
  return tensor(new Int32Array(set.size + 1).fill(rows, use.index + 1), { device });
}

/** [1, hidden] float32. */
function vectorOf(model: CausalLM, ids: Int32Array, { pooling = "mean", normalize = false }: PoolOptions): Tensor {
  return tidy(() => {
    const states = model.hiddenStates(tensor(ids, { shape: [1, ids.length], device: model.device }));
    return pool(states, Int32Array.of(0, ids.length), pooling, normalize);
  });
}
