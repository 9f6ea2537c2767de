// Every optim string makes the optimizer that SPEC names, with the arguments in place; and the scaler of float16 losses.
import { describe, expect, it } from "vitest";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { full } from "../../src/tensor/create.js";
import { resolveArguments } from "../../src/train/arguments.js";
import type { OptimName } from "../../src/train/index.js";
import { optimNames } from "../../src/train/index.js";
import { LossScaler } from "../../src/train/loss-scaler.js";
import { makeOptimizer } from "../../src/train/make-optimizer.js";

// Bits and pages, as the table of SPEC 10.6 has them.
const table: Record<OptimName, [rule: string, bits: 8 | 32, isPaged: boolean]> = {
  adamw_torch: ["AdamW", 32, false],
  adamw_torch_fused: ["AdamW", 32, false],
  adamw_bnb_8bit: ["AdamW", 8, false],
  adamw_8bit: ["AdamW", 8, false],
  paged_adamw_32bit: ["AdamW", 32, true],
  paged_adamw_8bit: ["AdamW", 8, true],
  lion_32bit: ["Lion", 32, false],
  lion_8bit: ["Lion", 8, false],
  paged_lion_32bit: ["Lion", 32, true],
  paged_lion_8bit: ["Lion", 8, true],
  ademamix: ["AdEMAMix", 32, false],
  ademamix_8bit: ["AdEMAMix", 8, false],
  paged_ademamix_32bit: ["AdEMAMix", 32, true],
  paged_ademamix_8bit: ["AdEMAMix", 8, true],
  rmsprop_bnb: ["RMSprop", 32, false],
  rmsprop_bnb_32bit: ["RMSprop", 32, false],
  rmsprop_bnb_8bit: ["RMSprop", 8, false],
};

const newModel = () =>
  new LlamaForCausalLM(
    {
      ...{ vocabSize: 64, hiddenSize: 64, intermediateSize: 96, numHiddenLayers: 1, numAttentionHeads: 2 },
      ...{ attentionBias: true },
    },
    { device: "cpu" },
  );

describe("optim", () => {
  it("has the names of SPEC", () => {
    expect([...optimNames].sort()).toEqual(Object.keys(table).sort());
  });

  it.each(Object.entries(table))("%s", (name, [rule, bits, isPaged]) => {
    using model = newModel();
    const given = { outputDir: "x", optim: name as OptimName, learningRate: 0.125, weightDecay: 0.25, adamBeta2: 0.75 };
    const args = resolveArguments("Trainer", given);
    const optimizer = makeOptimizer("Trainer", model, args);
    expect(optimizer.constructor.name).toBe(rule);
    // Embedding and projections decay, norms and biases do not.
    const [decayed, others] = optimizer.paramGroups;
    expect([decayed?.["weightDecay"], others?.["weightDecay"]]).toEqual([0.25, 0]);
    expect(decayed?.params.length).toBe(2 + 7);
    expect(others?.params.length).toBe(3 + 4);
    expect(decayed?.["lr"]).toBe(0.125);
    if (rule === "AdamW" || rule === "Lion") expect(decayed?.["betas"]).toEqual([0.9, 0.75]);
    if (rule === "AdEMAMix") expect(decayed?.["betas"]).toEqual([0.9, 0.75, 0.9999]);

    for (const parameter of model.parameters()) parameter.grad = full(parameter.shape, 0.5, { device: "cpu" });
    const before = model.namedParameters().map(([, p]) => p.floatsSync());
    optimizer.step();
    const moved = model.namedParameters().map(([path, p], i) => [path, p.floatsSync()[0] !== before[i]?.[0]]);
    expect(moved.filter(([, did]) => !did)).toEqual([]);
    const matrix = new Map(model.namedParameters()).get("model.layers.0.mlp.up_proj.weight");
    const table = new Map(model.namedParameters()).get("model.embed_tokens.weight");
    const dtypeOf = (p: typeof matrix): string =>
      (optimizer.stateOf(p as NonNullable<typeof p>) as { state1: { dtype: string } }).state1.dtype;
    expect(dtypeOf(matrix)).toBe(bits === 8 ? "uint8" : "float32");
    // SPEC 10.6: the states of embeddings stay in 32 bits.
    expect(dtypeOf(table)).toBe("float32");
    expect((optimizer as unknown as { isPaged: boolean }).isPaged ?? false).toBe(isPaged);
    optimizer.zeroGrad();
    optimizer.dispose();
  });
});

describe("LossScaler", () => {
  it("halves at an overflow and doubles after 2000 steps without one, as torch's GradScaler", () => {
    const scaler = new LossScaler();
    expect(scaler.scale).toBe(65536);
    scaler.update(false);
    expect(scaler.state).toEqual({ scale: 32768, goodSteps: 0 });
    for (let i = 0; i < 1999; i++) scaler.update(true);
    expect(scaler.state).toEqual({ scale: 32768, goodSteps: 1999 });
    scaler.update(true);
    expect(scaler.state).toEqual({ scale: 65536, goodSteps: 0 });
    for (let i = 0; i < 1999; i++) scaler.update(true);
    scaler.update(false);
    expect(scaler.state).toEqual({ scale: 32768, goodSteps: 0 });
    const other = new LossScaler();
    other.state = scaler.state;
    scaler.update(false);
    expect(other.scale).toBe(32768);
  });
});
