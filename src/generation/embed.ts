// What a model makes of texts, as vectors: its last hidden states, pooled.
import { noGrad } from "../autograd/no-grad.js";
import type { CausalLM } from "../models/index.js";
import { cast, concat, div, maximum, mean, mul, reshape, slice, sqrt, sum } from "../ops/index.js";
import { aBoolean, checkArgument, oneOf } from "../tensor/checks.js";
import { tensor } from "../tensor/create.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { aModel } from "./engine.js";
import type { Prompt } from "./prompt.js";
import { encodeText, isPrompts } from "./prompt.js";

export interface EmbedOptions {
  /** Of the tokens of a text: their mean, or the state of the last or the first. Default "mean". */
  pooling?: "mean" | "last" | "first";
  /** Whether vectors are divided by their length. Default false. */
  normalize?: boolean;
}
const embedTable = optionTable<EmbedOptions>({ pooling: oneOf(["mean", "last", "first"]), normalize: aBoolean });

const op = "embed";
/** Below it a length is taken for it. */
const shortest = 1e-12;

/**
 * The last hidden states (behind the final norm, before the head) of a text, of token ids, or of a list of such, pooled over their
 * tokens: [texts, hidden] float32, on the model's device and owned by the caller. Without gradients.
 *
 * @example
 * const vectors = await embed(model, ["a bit", "a byte"], { normalize: true });
 * const similarity = vectors.matmul(vectors, { transposeB: true });
 */
export async function embed(
  model: CausalLM,
  texts: string | Prompt | readonly (string | Prompt)[],
  options: EmbedOptions = {},
): Promise<Tensor> {
  checkArgument(op, "model", model, aModel);
  checkOptions(op, options, embedTable);
  const list = isPrompts(texts) ? (texts as readonly (string | Prompt)[]) : [texts];
  if (list.length === 0) throw new BnbError("ERR_BNB_ARGUMENT", `${op}: texts must be at least one, got []`);
  const prompts = await Promise.all(list.map((text) => encodeText(op, model, text)));
  // One by one: how some models count positions depends on all that is there.
  return tidy(() =>
    noGrad(() =>
      keep(
        concat(
          prompts.map((ids) => vectorOf(model, ids, options)),
          0,
        ),
      ),
    ),
  );
}

/** [1, hidden] float32. */
function vectorOf(model: CausalLM, ids: Int32Array, { pooling = "mean", normalize = false }: EmbedOptions): Tensor {
  return tidy(() => {
    const states = model.hiddenStates(tensor(ids, { shape: [1, ids.length], device: model.device }));
    const rows = cast(reshape(states, [ids.length, -1]), "float32");
    const vector = pooling === "mean" ? mean(rows, { axis: 0, keepDims: true }) : rowOf(rows, pooling);
    return normalize ? div(vector, maximum(sqrt(sum(mul(vector, vector))), shortest)) : vector;
  });
}

function rowOf(rows: Tensor, which: "last" | "first"): Tensor {
  const at = which === "first" ? 0 : (rows.shape[0] as number) - 1;
  return slice(rows, 0, at, at + 1);
}
