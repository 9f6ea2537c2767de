// How many tokens of prompts steps have: as many as fit into their time, whatever a token costs, and never none.
import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { Engine } from "../../src/generation/index.js";
import { StepBudget } from "../../src/generation/step-budget.js";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { Generator } from "../../src/ops/index.js";
import { toDevice } from "../../src/tensor/device.js";
import { integers } from "../helpers/random.js";

const seed = 20261128;
afterEach(() => vi.restoreAllMocks());

describe("a budget", () => {
  it("finds what fits into its time, and keeps to it, whatever steps cost", () => {
    const cost = fc.record({
      // Of the budget: what a step takes anyway, and what a token of a prompt takes.
      base: fc.double({ min: 0, max: 0.9, noNaN: true }),
      token: fc.double({ min: 0.0005, max: 0.006, noNaN: true }),
      most: fc.constantFrom(64, 512, 4096),
    });
    fc.assert(
      fc.property(cost, ({ base, token, most }) => {
        const budget = new StepBudget(0.2, most);
        for (let step = 0; step < 40; step++) {
          const { tokens } = budget;
          const seconds = 0.2 * (base + token * tokens);
          expect(tokens % 16).toBe(0);
          expect(tokens).toBeGreaterThanOrEqual(16);
          expect(tokens).toBeLessThanOrEqual(most);
          if (step >= 25) {
            expect(seconds <= 0.2 * 1.1 || tokens === 16).toBe(true);
            // It stops where one page more might be too much, if all that a step takes were its tokens.
            expect(tokens === most || (seconds * (tokens + 16)) / tokens >= 0.2 * 0.999).toBe(true);
          }
          budget.record(tokens, seconds);
        }
      }),
      { seed, numRuns: 300 },
    );
  });

  it("gets over a step that took long for another reason", () => {
    const budget = new StepBudget(0.1, 512);
    const run = (steps: number, factor = 1) => {
      for (let i = 0; i < steps; i++) budget.record(budget.tokens, budget.tokens * 0.0003 * factor);
    };
    run(10);
    const before = budget.tokens;
    run(1, 50);
    expect(budget.tokens).toBe(80);
    run(2);
    expect(budget.tokens).toBe(before);
  });

  it("does not learn from steps that were not full, unless they took too long; nor from those without prompts", () => {
    const budget = new StepBudget(0.1, 512);
    budget.record(3, 0.001);
    budget.record(0, 9);
    budget.record(20, 0.09);
    expect(budget.tokens).toBe(64);
    budget.record(20, 0.2);
    expect(budget.tokens).toBe(16);
  });

  it("is all there is where time does not matter", () => {
    const budget = new StepBudget(Infinity, 4096);
    budget.record(4096, 1e6);
    expect(budget.tokens).toBe(4096);
  });
});

describe("an engine", () => {
  const model = new LlamaForCausalLM(
    {
      vocabSize: 31,
      hiddenSize: 16,
      intermediateSize: 16,
      numHiddenLayers: 1,
      numAttentionHeads: 1,
      maxPositionEmbeddings: 1024,
    },
    { device: toDevice("cpu"), generator: new Generator(1) },
  ).eval();

  /** Steps that take as many milliseconds as they have tokens by a clock that nothing else moves. */
  function slowed(): { tokens: number[]; restore: () => void } {
    const tokens: number[] = [];
    let now = 0;
    vi.spyOn(performance, "now").mockImplementation(() => now);
    const { step } = model;
    model.step = function (plan, kv) {
      tokens.push(plan.ids.size);
      now += plan.ids.size;
      return step.call(this, plan, kv);
    };
    return { tokens, restore: () => Reflect.deleteProperty(model, "step") };
  }

  it("computes a long prompt in parts that take no longer than a step may, while another has a token in each", async () => {
    using engine = new Engine(model, { kvTokens: 2048, stepMs: 40 });
    const { tokens, restore } = slowed();
    try {
      const before: number[] = [];
      const running = (async () => {
        for await (const _ of engine.submit([1], { maxNewTokens: 60, eosTokenId: [] })) before.push(tokens.length);
      })();
      while (before.length < 3) await new Promise((resolve) => setImmediate(resolve));
      const start = tokens.length;
      let answeredAt = 0;
      for await (const _ of engine.submit([...integers(900, 31, 2)], { maxNewTokens: 1 })) answeredAt = tokens.length;
      await running;
      const during = tokens.slice(start, answeredAt);
      // All but the first few, by which it learned.
      expect(Math.max(...during.slice(3))).toBeLessThanOrEqual(40);
      expect(during.length).toBeGreaterThan(900 / 40);
      expect(during.length).toBeLessThan(900 / 16 + 5);
      // The other had a token in each of them.
      const steps = before.filter((at) => at > start && at <= answeredAt);
      expect(steps.length).toBeGreaterThanOrEqual(during.length - 2);
    } finally {
      restore();
    }
  });

  it("goes on by a page a step where nothing fits into the time", async () => {
    using engine = new Engine(model, { kvTokens: 2048, stepMs: 0.001 });
    const { tokens, restore } = slowed();
    try {
      for await (const _ of engine.submit([...integers(200, 31, 3)], { maxNewTokens: 2, eosTokenId: [] }));
      expect(tokens.slice(1, 4)).toEqual([16, 16, 16]);
      expect(tokens.reduce((sum, count) => sum + count, 0)).toBe(201);
    } finally {
      restore();
    }
  });
});
