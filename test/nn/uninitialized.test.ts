// Models whose weights are not drawn: they have shapes and no memory until they are loaded, and then those of the dict.
import { describe, expect, it } from "vitest";
import { LlamaForCausalLM, manualSeed, memory, nn, rand, tensor, tidy } from "../../src/index.js";

const sizes = { vocabSize: 64, hiddenSize: 32, intermediateSize: 48, numHiddenLayers: 2, numAttentionHeads: 2 };

describe("uninitialized", () => {
  it("makes weights of the right shape and dtype that take no memory and draw nothing", () => {
    manualSeed(7);
    const { liveBytes: before, tensors } = memory();
    const model = nn.uninitialized(() => new LlamaForCausalLM(sizes, { dtype: "bfloat16" }));
    const norms = 5 * 32 * 2; // vectors of ones are made
    // The smallest piece of memory that a tensor can have is 64 bytes.
    expect(memory().liveBytes - before).toBeLessThanOrEqual(norms + 64 * (memory().tensors - tensors));
    expect(model.model.embedTokens.weight.shape).toEqual([64, 32]);
    expect(model.model.embedTokens.weight.dtype).toBe("bfloat16");
    const draw = () => tidy(() => rand([4]).floatsSync());
    const drawn = draw();
    manualSeed(7);
    expect(drawn).toEqual(draw());
    model.dispose();
    expect(memory().liveBytes).toBe(before);
  });

  it("is over when its function ends, also by an error", () => {
    expect(() =>
      nn.uninitialized(() => {
        throw new Error("no model");
      }),
    ).toThrow("no model");
    expect(new nn.Linear(2, 2).weight.floatsSync()).toHaveLength(4);
    expect(() => nn.uninitialized(5 as never)).toThrow("uninitialized: make must be a function, got 5");
  });

  it.each<[string, () => nn.Linear | nn.Embedding]>([
    ["Linear", () => new nn.Linear(64, 4)],
    ["LinearNF4", () => new nn.LinearNF4(64, 4)],
    ["Linear8bitLt", () => new nn.Linear8bitLt(64, 4, { hasFp16Weights: false })],
    ["Embedding", () => new nn.Embedding(4, 64, { paddingIdx: 1 })],
    ["EmbeddingNF4", () => new nn.EmbeddingNF4(4, 64)],
  ])("%s computes after loading what another with these weights does", (_, make) => {
    const original = make();
    const loaded = nn.uninitialized(make);
    const dict = original.stateDict();
    loaded.loadStateDict(dict);
    const x = original instanceof nn.Embedding ? tensor([0, 3, 2], { dtype: "int32" }) : rand([3, 64]);
    const run = (layer: nn.Module) => (layer as nn.Linear).forward(x).floatsSync();
    expect(run(loaded)).toEqual(run(original));
    // The dict's tensors are not shared: changing the one leaves the other.
    original.dispose();
    expect(run(loaded)).toHaveLength(original instanceof nn.Embedding ? 192 : 12);
    loaded.dispose();
  });

  it("gives an error of the op that reads a weight which was not loaded", () => {
    const layer = nn.uninitialized(() => new nn.Linear(64, 4));
    expect(() => layer.forward(rand([3, 64]))).toThrow(/^linear: /);
    expect(() => layer.weight.floatsSync()).toThrow("data: the buffer must have 0 bytes, got 1024");
    layer.dispose();
  });
});
