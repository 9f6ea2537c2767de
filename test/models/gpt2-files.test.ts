// GPT-2's files: matrices as [in, out] while they are floats, as [out, in] where they are quantized; names without a prefix.
import { cpSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import { saveSafetensors } from "../../src/hub/index.js";
import { openSafetensors } from "../../src/hub/safetensors.js";
import type { CausalLM } from "../../src/index.js";
import {
  AutoModelForCausalLM,
  BitsAndBytesConfig,
  dequantizeModel,
  savePretrained,
  tensor,
  tidy,
} from "../../src/index.js";
import { Linear4bit, Linear8bitLt } from "../../src/nn/index.js";
import { dequantize4bit, int8VectorwiseQuant, quantize4bit } from "../../src/ops/index.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { fixturePath, readSafetensors, toNumbers } from "../helpers/safetensors.js";

const root = mkdtempSync(join(tmpdir(), "bnb-gpt2-"));
afterAll(() => rmSync(root, { recursive: true }));
const plain = fixturePath("families/gpt2/fp32");
const turned = /\.(c_attn|c_proj|c_fc)\.weight$/;

function logitsOf(model: CausalLM): Float32Array {
  const ids = tensor([[5, 6, 7, 8]], { dtype: "int32", device: model.device });
  return tidy(() => noGrad(() => model.forward(ids).floatsSync()));
}

/** The rows of the transpose of a matrix of the file. */
function transposed(name: string): { values: Float32Array; shape: [number, number] } {
  const { shape, ...rest } = readSafetensors(join(plain, "model.safetensors")).get(name)!;
  const stored = toNumbers({ shape, ...rest });
  const [inputs, outputs] = shape as [number, number];
  const values = Float32Array.from(
    { length: stored.length },
    (_, i) => stored[(i % inputs) * outputs + Math.floor(i / inputs)]!,
  );
  return { values, shape: [outputs, inputs] };
}

it("as floats are saved with the bytes that they came from", async () => {
  using model = await AutoModelForCausalLM.fromPretrained(plain);
  const folder = join(root, "floats");
  await savePretrained(model, folder);
  const [before, after] = [plain, folder].map((at) => readFileSync(join(at, "model.safetensors")));
  expect(after!.equals(before!)).toBe(true);
});

it("may lack the prefix, as the first checkpoints do", async () => {
  const folder = join(root, "body");
  cpSync(plain, folder, { recursive: true });
  const file = await openSafetensors(join(plain, "model.safetensors"));
  const tensors = new Map<string, Tensor>();
  for (const name of file.names()) tensors.set(name.replace("transformer.", ""), await file.load(name));
  await file.close();
  await saveSafetensors(join(folder, "model.safetensors"), tensors);
  for (const each of tensors.values()) each.dispose();
  using model = await AutoModelForCausalLM.fromPretrained(plain);
  using again = await AutoModelForCausalLM.fromPretrained(folder);
  expect(logitsOf(again)).toEqual(logitsOf(model));
});

describe.each(["nf4", "int8"] as const)("in %s", (format) => {
  const quantizationConfig = new BitsAndBytesConfig(
    format === "nf4" ? { loadIn4bit: true, bnb4bitQuantType: "nf4" } : { loadIn8bit: true },
  );
  const layers = (model: CausalLM) =>
    model
      .namedModules()
      .flatMap(([path, module]) =>
        module instanceof Linear4bit || module instanceof Linear8bitLt ? [[path, module] as const] : [],
      );

  it("are the quantized transposes, as bitsandbytes makes them of a Conv1D", async () => {
    using model = await AutoModelForCausalLM.fromPretrained(plain, { quantizationConfig });
    const found = layers(model);
    expect(found).toHaveLength(4 * model.kvLayout().length);
    for (const [path, layer] of found) {
      const { values, shape } = transposed(`${path}.weight`);
      expect([layer.outFeatures, layer.inFeatures]).toEqual(shape);
      tidy(() => {
        const matrix = tensor(values, { shape, device: model.device });
        if (layer instanceof Linear4bit) {
          const [packed, quantState] = quantize4bit(matrix, { quantType: "nf4" });
          expect(layer.weight.dataSync()).toEqual(packed.dataSync());
          expect(layer.weight.quantState?.shape).toEqual(shape);
          expect(dequantize4bit(packed, { quantState }).shape).toEqual(shape);
        } else {
          const { codes, stats } = int8VectorwiseQuant(matrix);
          expect(layer.weight.dataSync()).toEqual(codes.dataSync());
          expect(layer.SCB?.floatsSync()).toEqual(stats.floatsSync());
        }
      });
    }
  });

  it("are saved and loaded as they are, and become [in, out] again with floats", async () => {
    using model = await AutoModelForCausalLM.fromPretrained(plain, { quantizationConfig });
    const [quantized, floats] = [join(root, format), join(root, `${format}-floats`)];
    await savePretrained(model, quantized);
    using again = await AutoModelForCausalLM.fromPretrained(quantized);
    expect(layers(again)).toHaveLength(layers(model).length);
    expect(logitsOf(again)).toEqual(logitsOf(model));
    await savePretrained(dequantizeModel(again), floats);
    const [original, saved] = [plain, floats].map((at) => readSafetensors(join(at, "model.safetensors")));
    expect([...saved!.keys()]).toEqual([...original!.keys()]);
    for (const [name, { shape }] of saved!) expect(shape).toEqual(original!.get(name)?.shape);
    for (const [name, weight] of saved!) {
      if (!turned.test(name)) continue;
      const [got, want] = [toNumbers(weight), toNumbers(original!.get(name)!)];
      const most = [...want].reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const bound = (format === "nf4" ? 0.16 : 0.004) * most; // half of the widest gap between two codes
      got.forEach((value, i) => {
        expect(Math.abs(value - want[i]!)).toBeLessThan(bound);
      });
    }
    using floating = await AutoModelForCausalLM.fromPretrained(floats);
    expect(logitsOf(floating)).toEqual(logitsOf(again));
  });
});
