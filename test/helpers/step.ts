// One step of a model by hand: sequences whose pages follow one another.
import type { SequenceRows } from "../../src/generation/step-inputs.js";
import { StepInputs, sizesOf } from "../../src/generation/step-inputs.js";
import type { CausalLM, KvStore } from "../../src/models/index.js";
import { tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";

/** The next `ids` of a sequence that has `before` tokens, on pages from `page` on. */
export function rowsOf(ids: readonly number[], before: number, page: number): SequenceRows {
  const length = before + ids.length;
  const pages = Array.from({ length: Math.ceil(length / 16) }, (_, i) => page + i);
  const slots = ids.map((_, i) => page * 16 + before + i);
  return {
    ids,
    slots,
    length,
    total: length,
    pages,
    wanted: ids.length,
    draw: { options: {}, slot: -1 },
    rules: [],
    adapter: -1,
  };
}

/** The logits of all rows of the sequences, [rows, vocab]. */
export function step(model: CausalLM, kv: KvStore, sequences: readonly SequenceRows[]): Tensor {
  using inputs = new StepInputs(sequences, sizesOf(sequences), null, model.device);
  return tidy(() => model.step(inputs.plan, kv));
}
