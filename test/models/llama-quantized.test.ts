// Quantized checkpoints of a small Llama, as transformers saves them: they load into a model whose linear layers were
// swapped for quantized ones, and compute the logits and the text of the original.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import "../../src/generation/index.js";
import { LlamaConfig, LlamaForCausalLM } from "../../src/models/index.js";
import { Linear4bit, Linear8bitLt, replaceLinear } from "../../src/nn/index.js";
import {
  add,
  cast,
  int8LinearMatmul,
  int8MmDequant,
  int8VectorwiseDequant,
  int8VectorwiseQuant,
  linear,
  mul,
} from "../../src/ops/index.js";
import { fromBytes, tensor } from "../../src/tensor/create.js";
import type { Device } from "../../src/tensor/device.js";
import { toDevice } from "../../src/tensor/device.js";
import type { DType } from "../../src/tensor/dtype.js";
import { tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";
import { fixturePath, readSafetensors } from "../helpers/safetensors.js";

const folder = "models/llama";
const json = JSON.parse(readFileSync(fixturePath(`${folder}/fp32/config.json`), "utf8"));
const expected = readSafetensors(`${folder}/expected.safetensors`);
const numbers = (name: string) => Array.from(expected.get(name)?.values as ArrayLike<number | bigint>, Number);

/** LLM.int8() as bitsandbytes composes it: activations are rounded to float16 before they are quantized. */
class RoundedActivations extends Linear8bitLt {
  override forward(x: Tensor): Tensor {
    const SCB = this.SCB as Tensor;
    const half = cast(cast(x, "float16"), "float32");
    const { codes, stats, outlierMask } = int8VectorwiseQuant(half, { threshold: this.threshold });
    const product = int8MmDequant(int8LinearMatmul(codes, this.weight), stats, SCB, { dtype: "float32" });
    const outliers = mul(x, cast(outlierMask as Tensor, "float32"));
    return add(product, linear(outliers, int8VectorwiseDequant(this.weight, SCB), null));
  }
}

function load(name: "nf4" | "fp4" | "int8", device: Device, Int8 = Linear8bitLt): LlamaForCausalLM {
  const model = new LlamaForCausalLM(LlamaConfig.fromJSON(json), { device });
  replaceLinear(model, (inputs, outputs, bias) =>
    name === "int8"
      ? new Int8(inputs, outputs, { bias, hasFp16Weights: false, threshold: 6, device })
      : new Linear4bit(inputs, outputs, { bias, quantType: name, compressStatistics: name === "nf4", device }),
  );
  const tensors = new Map(
    [...readSafetensors(`${folder}/${name}/model.safetensors`)].map(([key, { dtype, shape, bytes }]) => [
      key,
      fromBytes(bytes, { dtype: dtype as DType, shape, device }),
    ]),
  );
  expect(model.loadStateDict(tensors)).toEqual({ missing: [], unexpected: [] });
  for (const value of tensors.values()) value.dispose();
  return model.eval();
}

/** Largest and mean distance to the logits of the fixture. */
function distance(model: LlamaForCausalLM, name: string, device: Device): { largest: number; mean: number } {
  const ids = Int32Array.from(numbers("input_ids"));
  const logits = tidy(() => noGrad(() => model.forward(tensor(ids, { shape: [2, 24], device }))));
  const actual = logits.floatsSync();
  logits.dispose();
  const differences = numbers(name).map((value, i) => Math.abs(value - (actual[i] as number)));
  return {
    largest: Math.max(...differences),
    mean: differences.reduce((sum, value) => sum + value, 0) / differences.length,
  };
}

async function continuation(model: LlamaForCausalLM): Promise<number[]> {
  const made: number[] = [];
  for await (const token of model.generate(numbers("prompt"), { maxNewTokens: 20 })) made.push(token);
  return made;
}

describe.each(testDevices())("on %s", (label) => {
  const device = toDevice(label);

  it.each(["nf4", "fp4"] as const)("%s computes the logits and the text of transformers", async (name) => {
    const model = load(name, device);
    const { largest, mean } = distance(model, `${name}.logits`, device);
    expect(largest).toBeLessThan(2e-4);
    expect(mean).toBeLessThan(2e-5);
    expect(await continuation(model)).toEqual(numbers(`${name}.generated`));
    model.dispose();
  });

  // The fixture's exact variant has float64 products; outlier columns are found over both rows of the batch.
  it("int8 computes the logits and the text of exact LLM.int8() when activations are rounded to float16", async () => {
    const model = load("int8", device, RoundedActivations);
    expect(distance(model, "int8_exact.logits_row0", device).largest).toBeLessThan(2e-4);
    expect(await continuation(model)).toEqual(numbers("int8_exact.generated"));
    model.dispose();
  });

  // Each rounding to float16 that is left out flips a few codes, which cascades through the layers.
  it("int8 stays close to that without the rounding, and closer than int8 is to float32", () => {
    const model = load("int8", device);
    const { mean } = distance(model, "int8_exact.logits_row0", device);
    const rows = 24 * 512;
    const exact = numbers("int8_exact.logits_row0");
    const float = numbers("fp32.logits").slice(0, rows);
    const cost = exact.reduce((sum, value, i) => sum + Math.abs(value - (float[i] as number)), 0) / rows;
    expect(mean).toBeLessThan(cost);
    model.dispose();
  });
});
