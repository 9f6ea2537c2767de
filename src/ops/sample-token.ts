// Choosing the next token of a text, where the logits are.
import type { OpContext } from "../autograd/define-op.js";
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { aNumber, aTensor, orNull } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** How a token is drawn. */
export interface SamplingOptions {
  /** Divides the logits; 0 always takes the largest one. Default 0. */
  temperature?: number;
  /** Only the k most likely tokens; 0 keeps all. Default 0. */
  topK?: number;
  /** Only the smallest set of likely tokens whose probabilities reach p; 1 keeps all. Default 1. */
  topP?: number;
}

/** @internal For functions that take more than these. Their ranges are checked where they are used. */
export const samplingChecks = { temperature: aNumber, topK: aNumber, topP: aNumber };

/** Options of `sampleToken`. */
export interface SampleTokenOptions extends SamplingOptions {
  /** Of the draws: a whole number from 0 to 2^53 - 1. Default 0. */
  seed?: number;
  /** Which draw of the seed this is; every row has its own. Default 0. */
  step?: number;
  /** An int32 tensor [1] that is added to `step` by the kernel, so that a recorded graph draws anew at each replay. */
  position?: Tensor | null;
}
const sampleTokenOptions = optionTable<SampleTokenOptions>({
  ...samplingChecks,
  seed: aNumber,
  step: aNumber,
  position: orNull(aTensor),
});

/**
 * One token per row of `logits [..., V]`, as int32 `[...]`: a draw from `softmax(logits / temperature)`, cut to the
 * `topK` largest and those equal to the last of them, then to the nucleus of mass `topP` (Holtzman et al., 2020), as
 * transformers does.
 *
 * Equal logits rank by index; V is at most 2^23. The same seed and step draw the same token on every device. A row with a
 * NaN or +infinity, or with nothing above -infinity, gives -1. Probabilities below 2^-40 of the largest count as 0.
 *
 * @example
 * const next = sampleToken(logits, { temperature: 0.8, topP: 0.9, seed: 1, step: 17 }); // logits [1, vocab] -> [1]
 */
export const sampleToken = defineOp({
  name: "sampleToken",
  arity: 2,
  forward(_ctx: OpContext, logits: Tensor, options: SampleTokenOptions = {}) {
    checkOptions("sampleToken", options, sampleTokenOptions);
    const { temperature = 0, topK = 0, topP = 1, seed = 0, step = 0, position = null } = options;
    const [y] = run(addon.sampleToken, logits, temperature, topK, topP, seed, step, position);
    return y;
  },
  backward: null,
});
