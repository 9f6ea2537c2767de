// How many tokens of prompts steps have: as many as fit into their time, whatever a token costs, and never none.
import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { Engine } from "../../src/generation/index.js";
import { StepBudget } from "../../src/generation/step-budget.js";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { Generator } from "../../src/ops/index.js";
import { toDevice } from "../../src/tensor/device.js";
import { integers, uniforms } from "../helpers/random.js";

const seed = 20261128;
afterEach(() => vi.restoreAllMocks());

/** Seconds that a step may take. */
const most = 0.2;

/** What steps cost, in step budgets: `base`, and for each token of a prompt `token` and `key` for each token before it. */
interface Machine {
  base: number;
  token: number;
  key: number;
}

interface Step {
  position: number;
  tokens: number;
  seconds: number;
}

/** Prompts, one after the other, beside texts that have a token in each step. */
function run(
  budget: StepBudget,
  { base, token, key }: Machine,
  prompts: readonly number[],
  noise: () => number = () => 1,
): Step[] {
  const steps: Step[] = [];
  for (const length of prompts) {
    budget.record({ chunks: [], answers: 8, seconds: most * base * noise() });
    for (let position = 0; position < length; ) {
      const count = Math.min(budget.room(8).at(position), length - position);
      const cost = count * (token + key * (position + count / 2));
      const seconds = most * (base + cost) * noise();
      budget.record({ chunks: [{ position, count }], answers: 8, seconds });
      steps.push({ position, tokens: count, seconds });
      position += count;
    }
  }
  return steps;
}

/** Steps that ended a prompt had no more to compute. */
const isWhole = ({ position, tokens }: Step, prompts: readonly number[]) => prompts.includes(position + tokens);

describe("a budget", () => {
  // Of a token 1/16 to 1/2000 of a step; its attention costs as much as the rest of it from 500 to 50,000 tokens on.
  const machine = fc
    .record({
      base: fc.double({ min: 0, max: 0.8, noNaN: true }),
      token: fc.double({ min: 1 / 2000, max: 1 / 160, noNaN: true }),
      doubled: fc.double({ min: 500, max: 50_000, noNaN: true }),
    })
    .map(({ base, token, doubled }) => ({ base, token, key: token / doubled }));
  const prompts = fc.array(fc.integer({ min: 16, max: 8000 }), { minLength: 2, maxLength: 5 });

  it("finds what fits into its time wherever in a prompt, keeps to it and uses it, whatever steps cost", () => {
    fc.assert(
      fc.property(machine, prompts, fc.constantFrom(512, 4096), (own, lengths, tokens) => {
        const budget = new StepBudget(most, tokens);
        // It learns by the first prompt.
        run(budget, own, [4000]);
        for (const step of run(budget, own, lengths)) {
          expect(step.tokens).toBeGreaterThan(0);
          expect(step.tokens).toBeLessThanOrEqual(tokens);
          const ofTime = step.seconds / most;
          expect(ofTime <= 1.1 || step.tokens <= 16, JSON.stringify([own, step])).toBe(true);
          expect(ofTime >= 0.8 || step.tokens === tokens || isWhole(step, lengths), JSON.stringify([own, step])).toBe(
            true,
          );
        }
      }),
      { seed, numRuns: 200 },
    );
  });

  it("keeps to it where times are noisy", () => {
    fc.assert(
      fc.property(machine, prompts, fc.integer(), (own, lengths, noiseSeed) => {
        const random = uniforms(noiseSeed);
        const noise = () => 0.85 + 0.3 * random();
        const budget = new StepBudget(most, 512);
        run(budget, own, [4000], noise);
        for (const { tokens, seconds } of run(budget, own, lengths, noise)) {
          expect(seconds <= 1.8 * most || tokens <= 16, `${tokens} in ${seconds}`).toBe(true);
        }
      }),
      { seed, numRuns: 200 },
    );
  });

  it("follows in a few steps how fast the machine is", () => {
    const budget = new StepBudget(most, 4096);
    const own = { base: 0.1, token: 1 / 400, key: 1e-7 };
    run(budget, own, [4000]);
    for (const factor of [3, 1]) {
      const slow = { base: own.base, token: own.token * factor, key: own.key * factor };
      const steps = run(budget, slow, [4000]).slice(4, -1);
      for (const { seconds } of steps) expect(Math.abs(seconds / most - 1)).toBeLessThan(0.15);
    }
  });

  it("leaves prompts an eighth of a step where the next tokens of others take it all", () => {
    for (const base of [0.9, 1, 3]) {
      const budget = new StepBudget(most, 512);
      run(budget, { base, token: 1 / 1000, key: 0 }, [2000]);
      expect(Math.abs(budget.room(8).at(0) - 125)).toBeLessThanOrEqual(1);
      // Of fewer texts no more than of these.
      expect(budget.room(1).at(0)).toBeGreaterThanOrEqual(124);
    }
  });

  it("gives prompts four times as long where no text waits for its next token", () => {
    const budget = new StepBudget(most, 4096);
    for (let i = 0; i < 6; i++) budget.record({ chunks: [{ position: 0, count: 256 }], answers: 0, seconds: 4 * most });
    expect(budget.room(1).at(0)).toBeCloseTo(64, -1);
    expect(budget.room(0).at(0)).toBeCloseTo(256, -1);
  });

  it("gives several prompts what one has left", () => {
    const budget = new StepBudget(most, 512);
    run(budget, { base: 0, token: 1 / 200, key: 0 }, [4000]);
    const room = budget.room(8);
    expect([room.at(0), room.at(3000)]).toEqual([200, 200]);
    room.take(0, 160);
    expect(room.at(0)).toBe(40);
    room.take(0, 48);
    expect(room.at(0)).toBe(0);
    // A page of the first, and no more, where nothing fits.
    const full = new StepBudget(1e-9, 512);
    run(full, { base: 0, token: 1e9, key: 0 }, [400]);
    const page = full.room(0);
    expect(page.at(100)).toBe(16);
    page.take(100, 12);
    expect(page.at(0)).toBe(0);
  });

  it("tries no more than four times what it has seen, and learns nothing of a few tokens", () => {
    const budget = new StepBudget(most, 4096);
    expect(budget.room(0).at(0)).toBe(64);
    budget.record({ chunks: [{ position: 0, count: 5 }], answers: 0, seconds: 3 });
    expect(budget.room(0).at(0)).toBe(64);
    budget.record({ chunks: [{ position: 0, count: 64 }], answers: 0, seconds: 1e-4 });
    expect(budget.room(0).at(0)).toBe(256);
  });

  it("is a number of tokens whatever it is told, and never fewer than a page at first", () => {
    const seconds = fc.oneof(fc.constant(0), fc.double({ min: 0, max: 1e3, noNaN: true }));
    const chunk = fc.record({ position: fc.nat(10_000), count: fc.integer({ min: 1, max: 512 }) });
    const step = fc.record({ chunks: fc.array(chunk, { maxLength: 3 }), answers: fc.nat(3), seconds });
    fc.assert(
      fc.property(fc.array(step), fc.nat(3), fc.array(fc.nat(10_000), { minLength: 1 }), (steps, answers, places) => {
        const budget = new StepBudget(most, 512);
        for (const one of steps) budget.record(one);
        const room = budget.room(answers);
        for (const [i, position] of places.entries()) {
          const tokens = room.at(position);
          expect(Number.isInteger(tokens) && tokens >= (i === 0 ? 16 : 0) && tokens <= 512, `${tokens}`).toBe(true);
          if (tokens > 0) room.take(position, tokens);
        }
      }),
      { seed, numRuns: 500 },
    );
  });

  it("is all there is where time does not matter", () => {
    const budget = new StepBudget(Infinity, 4096);
    budget.record({ chunks: [{ position: 0, count: 4096 }], answers: 1, seconds: 1e6 });
    const room = budget.room(1);
    room.take(0, 96);
    expect(room.at(1e6)).toBe(4000);
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

  /** Steps that take as many milliseconds as they have tokens, or a multiple, by a clock that nothing else moves. */
  function slowed(times = 1): { tokens: number[]; restore: () => void } {
    const tokens: number[] = [];
    let now = 0;
    vi.spyOn(performance, "now").mockImplementation(() => now);
    const { step } = model;
    model.step = function (plan, kv) {
      tokens.push(plan.ids.size);
      now += times * plan.ids.size;
      return step.call(this, plan, kv);
    };
    return { tokens, restore: () => Reflect.deleteProperty(model, "step") };
  }

  it("computes a long prompt in parts that take no longer than a step may, while another has a token in each", async () => {
    using engine = new Engine(model, { kvTokens: 2048, stepMs: 40 });
    const { tokens, restore } = slowed();
    try {
      const before: number[] = [];
      let running = Promise.resolve();
      // Goes on in the turn of the third token, however fast steps are.
      await new Promise<void>((third) => {
        running = (async () => {
          for await (const _ of engine.submit([1], { maxNewTokens: 60, eosTokenId: [] })) {
            if (before.push(tokens.length) === 3) third();
          }
        })();
      });
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

  it("has texts in each step that ask again in a moment, and does not wait long for one that does not", async () => {
    using engine = new Engine(model, { kvTokens: 2048, stepMs: 40 });
    const { tokens, restore } = slowed(5);
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    try {
      const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
      const before: number[] = [];
      const running = (async () => {
        for await (const _ of engine.submit([1], { maxNewTokens: 60, eosTokenId: [] })) {
          before.push(tokens.length);
          // Another thread makes text of it.
          for (let i = 0; i < 10; i++) await turn();
        }
      })();
      const first = engine.submit([3], { maxNewTokens: 60, eosTokenId: [] });
      while (before.length < 3) await turn();
      // It is not taken from any more, and its time passes.
      await first.next();
      for (let i = 0; i < 20; i++) await turn();
      expect(vi.getTimerCount()).toBe(1);
      vi.runAllTimers();
      const start = tokens.length;
      let answeredAt = 0;
      for await (const _ of engine.submit([...integers(900, 31, 2)], { maxNewTokens: 1 })) answeredAt = tokens.length;
      expect(answeredAt - start).toBeGreaterThan(50);
      const taken = before.filter((at) => at > start && at <= answeredAt).length;
      expect(taken).toBeGreaterThanOrEqual(answeredAt - start - 3);
      await running;
      await first.return();
    } finally {
      vi.useRealTimers();
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
