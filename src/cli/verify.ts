// Whether two models are the same: every tensor, and the logits of a text, to the bit.
import { noGrad } from "../autograd/no-grad.js";
import type { CausalLM } from "../models/index.js";
import { tensor } from "../tensor/create.js";
import { BnbError } from "../tensor/errors.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

/** Tokens that every vocabulary has. */
const PROMPT = [1, 2, 3, 5, 8, 13, 21, 34];

/** Throws ERR_BNB_FORMAT naming the first difference. */
export async function compareModels(a: CausalLM, b: CausalLM): Promise<{ tensors: number; nbytes: number }> {
  const [left, right] = [a.stateDict(), b.stateDict()];
  const differ = (what: string): never => {
    throw new BnbError("ERR_BNB_FORMAT", `the model that was saved differs from the one in memory: ${what}`);
  };
  const extra = [...right.keys()].find((name) => !left.has(name));
  if (extra !== undefined) differ(`${extra} is only in the file`);
  let nbytes = 0;
  for (const [name, tensor] of left) {
    const other = right.get(name);
    if (!other) differ(`${name} is missing`);
    else if (!(await sameBytes(tensor, other))) differ(name);
    nbytes += tensor.nbytes;
  }
  const [one, other] = [logits(a), logits(b)];
  try {
    if (!(await sameBytes(one, other))) differ("its logits");
  } finally {
    one.dispose();
    other.dispose();
  }
  return { tensors: left.size, nbytes };
}

/** Of a short text. */
export function logits(model: CausalLM, prompt: readonly number[] = PROMPT): Tensor {
  const ids = prompt.map((id) => id % model.config.vocabSize);
  const { device } = model;
  return noGrad(() => tidy(() => model.forward(tensor(ids, { dtype: "int32", shape: [1, ids.length], device }))));
}

async function sameBytes(a: Tensor, b: Tensor): Promise<boolean> {
  if (a.dtype !== b.dtype || a.shape.join() !== b.shape.join()) return false;
  const [x, y] = await Promise.all([a.data(), b.data()]);
  return Buffer.from(x.buffer, x.byteOffset, x.byteLength).equals(Buffer.from(y.buffer, y.byteOffset, y.byteLength));
}
