// Mixtral and Qwen3-MoE in 4 bits: what their experts compute together against each expert alone over every token, texts
// alone and in a batch, and the gradients of adapters below frozen experts.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import type { CausalLM, Tensor } from "../../src/index.js";
import {
  AutoModelForCausalLM,
  applyLora,
  BitsAndBytesConfig,
  crossEntropy,
  manualSeed,
  memory,
  nn,
  noGrad,
  tensor,
  tidy,
} from "../../src/index.js";
import { Experts } from "../../src/models/parts/moe.js";
import { relativeError } from "../helpers/expect-close.js";
import { fixturePath } from "../helpers/safetensors.js";

const ids = Int32Array.from({ length: 12 }, (_, i) => 3 + ((i * 11) % 50));
const idsTensor = (): Tensor => tensor(ids, { shape: [1, ids.length] });
const logitsOf = (model: CausalLM): Float32Array => tidy(() => noGrad(() => model.forward(idsTensor())).floatsSync());

const open = (name: string): Promise<CausalLM> =>
  AutoModelForCausalLM.fromPretrained(fixturePath(`families/${name}/fp32`), {
    quantizationConfig: new BitsAndBytesConfig({
      loadIn4bit: true,
      bnb4bitQuantType: "nf4",
      bnb4bitUseDoubleQuant: true,
    }),
  });

/** Makes every block go the general way: a layer of each is no plain one any more, and computes as before. */
function goTheGeneralWay(model: CausalLM): void {
  const blocks = model.modules().filter((module) => module instanceof Experts);
  expect(blocks.length).toBeGreaterThan(0);
  for (const block of blocks) {
    const [first] = block.experts;
    const { upProj } = first!;
    expect(upProj).toBeInstanceOf(nn.Linear4bit);
    upProj.forward = (x: Tensor) => nn.Linear4bit.prototype.forward.call(upProj, x) as Tensor;
  }
}

describe.each(["mixtral", "qwen3-moe"])("%s in 4 bits", (name) => {
  it("has the logits and the texts that each expert alone gives", async () => {
    const before = memory().tensors;
    const model = await open(name);
    const prompts = [ids, ids.slice(0, 5), ids.slice(3, 10)];
    const fused = logitsOf(model);
    const batch = await model.complete(prompts, { maxNewTokens: 8 });
    const alone = [];
    for (const prompt of prompts) alone.push(...(await model.complete([prompt], { maxNewTokens: 8 })));
    const texts = (found: typeof batch) => found.map(([one]) => [...one!.tokens]);
    expect(texts(alone)).toEqual(texts(batch));
    goTheGeneralWay(model);
    expect(relativeError(logitsOf(model), fused)).toBeLessThan(2e-5);
    expect(texts(await model.complete(prompts, { maxNewTokens: 8 }))).toEqual(texts(batch));
    model.dispose();
    expect(memory().tensors).toBe(before);
  });

  it("gives adapters below frozen experts their gradients", async () => {
    const gradients = async (isGeneral: boolean): Promise<Float32Array[]> => {
      const model = await open(name);
      if (isGeneral) goTheGeneralWay(model);
      manualSeed(5);
      const adapters = applyLora(model, { r: 2, loraAlpha: 4, targetModules: ["q_proj", "v_proj"] });
      tidy(() => {
        const logits = model.forward(idsTensor());
        backward(crossEntropy(logits, tensor(ids, { shape: [1, ids.length] })));
      });
      const found = adapters.filter(({ grad }) => grad).map(({ grad }) => grad!.floatsSync());
      expect(found).toHaveLength(adapters.length);
      model.dispose();
      return found;
    };
    const [fused, general] = [await gradients(false), await gradients(true)];
    expect(fused.some((gradient) => gradient.some((v) => v !== 0))).toBe(true);
    fused.forEach((gradient, i) => {
      expect(relativeError(gradient, general[i]!)).toBeLessThan(1e-4);
    });
  });
});
