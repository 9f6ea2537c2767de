// What families multiply their embeddings by, in each dtype: Gemma rounds it first, as transformers does; Granite does not.
import { describe, expect, it } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import { gemma, gemma2, gemma3 } from "../../src/models/families/gemma.js";
import { granite } from "../../src/models/families/granite.js";
import { TrainingPass } from "../../src/models/pass.js";
import { Module, ModuleList, Parameter } from "../../src/nn/index.js";
import { tensor } from "../../src/tensor/create.js";
import { tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";

class Nothing extends Module {
  forward(x: Tensor): Tensor {
    return x;
  }
}

const config = {
  ...{ vocab_size: 4, hidden_size: 76, intermediate_size: 16, num_hidden_layers: 1 },
  ...{ num_attention_heads: 1, num_key_value_heads: 1, head_dim: 16, embedding_multiplier: 8.71 },
};

/** The nearest multiple of a power of two, of two the even one. */
function nearest(value: number, step: number): number {
  const steps = Math.round(value / step);
  return step * (steps - value / step === 0.5 && steps % 2 === 1 ? steps - 1 : steps);
}

describe.each(Object.entries({ gemma, gemma2, gemma3, granite }))("%s", (name, family) => {
  // The dtype's steps from 8 to 16, where all products lie. sqrt(76) is 8.7178.
  it.each([
    ["bfloat16", 2 ** -4, 8.6875],
    ["float16", 2 ** -7, 8.71875],
    ["float32", 2 ** -20, nearest(Math.sqrt(76), 2 ** -20)],
  ] as const)("in %s", (dtype, step, root) => {
    const scale = name === "granite" ? nearest(8.71, 2 ** -20) : root;
    const values = Float32Array.from({ length: 4 * 76 }, (_, i) => 1 + (i % 76) / 128);
    const model = family.create(config, { dtype }, null);
    const { model: body } = model;
    body.layers = new ModuleList([]);
    body.norm = new Nothing();
    body.embedTokens.weight = new Parameter(tensor(values, { shape: [4, 76], dtype }));
    const scaled = tidy(() =>
      noGrad(() => {
        using pass = new TrainingPass(tensor([0], { shape: [1, 1], dtype: "int32" }), {});
        return body.forward(pass).floatsSync();
      }),
    );
    const products = [...values.subarray(0, 76)].map((value) => nearest(value * scale, 2 ** -20));
    expect([...scaled]).toEqual(products.map((product) => nearest(product, step)));
    model.dispose();
  });
});
