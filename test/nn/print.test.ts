// How models are printed, and the bytes that they take.
import { inspect } from "node:util";
import { afterAll, describe, expect, it } from "vitest";
import { AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM, nn } from "../../src/index.js";
import { fixturePath } from "../helpers/safetensors.js";

const config = {
  vocabSize: 96,
  hiddenSize: 64,
  intermediateSize: 128,
  numHiddenLayers: 3,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
};

describe("a printed model", () => {
  const model = new LlamaForCausalLM(config);
  afterAll(() => model.dispose());

  it("is a tree as PyTorch's, with equal layers once", () => {
    const lines = String(model).split("\n");
    expect(lines[0]).toMatch(/^LlamaForCausalLM\($/);
    expect(lines).toContain("    (embed_tokens): Embedding(96, 64)");
    expect(String(model)).toMatch(/\n {4}\(layers\): ModuleList\(\n {6}\(0-2\): 3 x \w+\(\n/);
    expect(String(model)).toContain("(q_proj): Linear(in_features=64, out_features=64, bias=False)");
    expect(String(model)).toContain("(norm): RMSNorm((64,), eps=0.000001)");
    expect(lines.at(-2)).toBe("  (lm_head): Linear(in_features=64, out_features=96, bias=False)");
    expect(lines.at(-1)).toBe(")");
    expect(inspect(model)).toBe(String(model));
  });

  it("names layers that differ one by one", () => {
    const row = new nn.Sequential(new nn.Linear(2, 3), new nn.Dropout(0.1), new nn.LayerNorm(3), new nn.LayerNorm(3));
    expect(String(row).split("\n")).toEqual([
      "Sequential(",
      "  (0): Linear(in_features=2, out_features=3, bias=True)",
      "  (1): Dropout(p=0.1)",
      "  (2-3): 2 x LayerNorm((3,), eps=0.00001, elementwise_affine=True)",
      ")",
    ]);
    row.dispose();
  });
});

describe("memoryFootprint", () => {
  it("counts each tensor once, quantized ones with their statistics", () => {
    const linear = new nn.Linear(128, 64);
    expect(linear.memoryFootprint()).toBe(4 * (128 * 64 + 64));
    const twice = new nn.Sequential(linear, linear);
    expect(twice.memoryFootprint()).toBe(linear.memoryFootprint());
    linear.dispose();

    const blocks = (128 * 64) / 64;
    const plain = new nn.LinearNF4(128, 64, { bias: false, compressStatistics: false }).quantize();
    expect(plain.memoryFootprint()).toBe((128 * 64) / 2 + 4 * blocks);
    const nested = new nn.LinearNF4(128, 64, { bias: false }).quantize();
    expect(nested.memoryFootprint()).toBe((128 * 64) / 2 + blocks + 4 + 4);
    const int8 = new nn.Linear8bitLt(128, 64, { bias: false, hasFp16Weights: false }).quantize();
    expect(int8.memoryFootprint()).toBe(128 * 64 + 4 * 64 + 1); // and weight_format
    for (const layer of [plain, nested, int8]) layer.dispose();
  });

  it("of a model is what its checkpoint holds", async () => {
    const path = fixturePath("families/llama-plain/fp32");
    const [float, quantized] = [
      await AutoModelForCausalLM.fromPretrained(path),
      await AutoModelForCausalLM.fromPretrained(path, {
        quantizationConfig: new BitsAndBytesConfig({ loadIn4bit: true }),
      }),
    ];
    const bytes = [...float.stateDict().values()].reduce((sum, tensor) => sum + tensor.nbytes, 0);
    expect(float.memoryFootprint()).toBe(bytes);
    expect(quantized.memoryFootprint()).toBeLessThan(bytes / 2);
    float.dispose();
    quantized.dispose();
  });
});
