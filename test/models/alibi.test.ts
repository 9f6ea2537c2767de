// Biases of positions, as further columns of queries and keys, against their definition in float64: also in 16-bit floats, where a
// position has more digits than a number, and in whatever way a pass lays out its texts.
import { describe, expect, it } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import { KvPages } from "../../src/generation/kv-pages.js";
import { AutoModelForCausalLM, generate } from "../../src/index.js";
import { Alibi } from "../../src/models/parts/alibi.js";
import { TrainingPass } from "../../src/models/pass.js";
import { cast, slice } from "../../src/ops/index.js";
import { tensor, zeros } from "../../src/tensor/create.js";
import { tidy } from "../../src/tensor/scope.js";
import { fixturePath } from "../helpers/safetensors.js";

/** Of Press et al.: for 4 heads powers of 1/4, and between them powers of 1/2. */
const slopes = [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8];
const heads = slopes.length;
const dim = 8;

describe.each(["float32", "bfloat16", "float16"] as const)("in %s", (dtype) => {
  it.each([
    { starts: null, length: 700, first: 0 },
    { starts: [0, 40, 700], length: 700, first: 40 },
  ])(
    "the last of $length tokens looks back to $first by its slopes alone where queries are zero",
    ({ starts, length, first }) => {
      const alibi = new Alibi(heads);
      const last = tidy(() =>
        noGrad(() => {
          const ids = tensor(new Int32Array(length), { shape: [1, length] });
          using pass = new TrainingPass(ids, starts ? { starts: tensor(Int32Array.from(starts)) } : {});
          const none = zeros([1, length, heads, dim], { dtype });
          // A value is 1 where its token is, and 0 elsewhere: every 4th token of the last 32.
          const values = new Float32Array(length * heads * dim);
          for (let t = length - 32; t < length; t += 4)
            for (let h = 0; h < heads; h++) values[(t * heads + h) * dim + (t - (length - 32)) / 4] = 1;
          const v = cast(tensor(values, { shape: [1, length, heads, dim] }), dtype);
          return cast(slice(alibi.attend(pass, 0, none, none, v), 1, length - 1, length), "float32");
        }),
      );
      const got = last.floatsSync();
      last.dispose();
      alibi.dispose();
      for (const [head, slope] of slopes.entries()) {
        const weights = Array.from({ length }, (_, t) =>
          t < first ? 0 : Math.exp((slope * (t - length + 1)) / Math.sqrt(dim)),
        );
        const sum = weights.reduce((a, b) => a + b);
        for (let column = 0; column < dim; column++) {
          const want = weights[length - 32 + 4 * column]! / sum;
          const rounding = dtype === "float32" ? 1e-5 : dtype === "float16" ? 2e-3 : 1e-2;
          expect(Math.abs(got[head * dim + column]! - want) / want, `head ${head}`).toBeLessThan(rounding);
        }
      }
    },
  );
});

it("does not go with keys in int8", async () => {
  const model = await AutoModelForCausalLM.fromPretrained(fixturePath("families/falcon-alibi/fp32"));
  const kv = () => new KvPages(model.kvLayout(), { pages: 1, dtype: "int8" });
  expect(kv).toThrow("KvPages: dtype must be float32, float16 or bfloat16 for a model with alibi");
  await expect(generate(model, [5, 6], { kvDtype: "int8" }).next()).rejects.toThrow("model with alibi");
  model.dispose();
});
