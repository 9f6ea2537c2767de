// Sampling against a plain oracle (sort, cumulate, renormalize) and against the statistics of many draws.
import { describe, expect, it } from "vitest";
import type { SamplingOptions } from "../../src/models/sampling.js";
import { argmaxToken, checkSamplingOptions, sampleToken, tokenDistribution } from "../../src/models/sampling.js";
import { seededRandom } from "../../src/models/seeded-random.js";

/** The definition, written down directly: everything sorted, nothing skipped. */
function oracle(logits: readonly number[], { temperature = 1, topK = 0, topP = 1 }: SamplingOptions) {
  const ranked = logits
    .map((logit, token) => ({ token, logit }))
    .sort((a, b) => b.logit - a.logit || a.token - b.token);
  const kept = topK > 0 ? ranked.slice(0, topK) : ranked;
  const weights = kept.map(({ logit }) => Math.exp(logit / temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  let mass = 0;
  const nucleus = kept.filter((_, i) => {
    const isIn = i === 0 || mass < topP;
    mass += (weights[i] as number) / total;
    return isIn;
  });
  const sum = nucleus.reduce((a, { logit }) => a + Math.exp(logit / temperature), 0);
  return nucleus.map(({ token, logit }) => ({ token, probability: Math.exp(logit / temperature) / sum }));
}

function randomLogits(count: number, seed: number): Float32Array {
  const uniform = seededRandom(seed);
  return Float32Array.from({ length: count }, () => 8 * uniform() - 4);
}

describe("values", () => {
  const cases: SamplingOptions[] = [
    { temperature: 1 },
    { temperature: 0.3 },
    { temperature: 2.5, topK: 1 },
    { temperature: 0.8, topK: 7 },
    { temperature: 0.8, topK: 500 },
    { temperature: 1, topP: 0.9 },
    { temperature: 1.3, topP: 0.01 },
    { temperature: 0.7, topK: 20, topP: 0.5 },
    { temperature: 0.9, topK: 255, topP: 0.999 },
  ];
  it.each(cases)("keeps the tokens and probabilities of the definition: %o", (options) => {
    for (let seed = 0; seed < 20; seed++) {
      const logits = randomLogits(256, seed);
      const expected = oracle([...logits], options);
      const { tokens, probabilities } = tokenDistribution(logits, options);
      expect([...tokens]).toEqual(expected.map(({ token }) => token));
      expected.forEach(({ probability }, i) => {
        expect(probabilities[i]).toBeCloseTo(probability, 12);
      });
    }
  });

  it("ranks equal logits by index", () => {
    const logits = new Float32Array(10).fill(1);
    expect([...tokenDistribution(logits, { topK: 3 }).tokens]).toEqual([0, 1, 2]);
    expect(argmaxToken(logits)).toBe(0);
  });

  it("takes the largest logit at temperature 0 and draws nothing", () => {
    const never = () => {
      throw new Error("drawn");
    };
    expect(sampleToken(Float32Array.of(0.5, 3, -1, 3), { temperature: 0, topK: 2 }, never)).toBe(1);
    expect(sampleToken(Float32Array.of(-5, -3, -4), {}, never)).toBe(1);
  });

  it("never draws a token with logit -Infinity", () => {
    const logits = Float32Array.of(-Infinity, 0, -Infinity, 0);
    const uniform = seededRandom(3);
    const drawn = new Set(Array.from({ length: 500 }, () => sampleToken(logits, { temperature: 1 }, uniform)));
    expect([...drawn].sort()).toEqual([1, 3]);
  });

  it("does not overflow on large logits", () => {
    const { probabilities } = tokenDistribution(Float32Array.of(3e38, 3e38, -3e38), { temperature: 0.01 });
    expect([...probabilities]).toEqual([0.5, 0.5, 0]);
  });

  it("draws with the frequencies of the distribution (chi-square)", () => {
    const logits = randomLogits(32, 5);
    const options = { temperature: 1.2, topK: 12, topP: 0.97 };
    const expected = oracle([...logits], options);
    const uniform = seededRandom(11);
    const draws = 40_000;
    const counts = new Map<number, number>();
    for (let i = 0; i < draws; i++) {
      const token = sampleToken(logits, options, uniform);
      counts.set(token, (counts.get(token) ?? 0) + 1);
    }
    expect([...counts.keys()].every((token) => expected.some((e) => e.token === token))).toBe(true);
    const chiSquare = expected.reduce((sum, { token, probability }) => {
      const want = draws * probability;
      return sum + ((counts.get(token) ?? 0) - want) ** 2 / want;
    }, 0);
    // Mean is the degrees of freedom n - 1, standard deviation sqrt(2 (n - 1)); four of them.
    const freedom = expected.length - 1;
    expect(chiSquare).toBeLessThan(freedom + 4 * Math.sqrt(2 * freedom));
  });
});

describe("seeded random", () => {
  it("repeats with a seed and differs with another, also above 32 bits", () => {
    const first = (seed: number) => Array.from({ length: 4 }, seededRandom(seed));
    expect(first(7)).toEqual(first(7));
    expect(first(7)).not.toEqual(first(8));
    expect(first(7)).not.toEqual(first(7 + 2 ** 32));
  });

  it("is uniform in [0, 1)", () => {
    const uniform = seededRandom(123);
    const bins = new Array<number>(16).fill(0);
    let sum = 0;
    const n = 160_000;
    for (let i = 0; i < n; i++) {
      const value = uniform();
      if (!(value >= 0 && value < 1)) expect.fail(`${value} is outside [0, 1)`);
      sum += value;
      (bins[Math.floor(value * 16)] as number)++;
    }
    expect(Math.abs(sum / n - 0.5)).toBeLessThan(4 * Math.sqrt(1 / 12 / n));
    const chiSquare = bins.reduce((total, have) => total + (have - n / 16) ** 2 / (n / 16), 0);
    expect(chiSquare).toBeLessThan(15 + 4 * Math.sqrt(30));
  });
});

describe("errors", () => {
  it.each([
    [{ temperature: -1 }, "generate: temperature must be a number of at least 0, got -1"],
    [{ temperature: Number.NaN }, "generate: temperature must be a number of at least 0, got NaN"],
    [{ topK: 1.5 }, "generate: topK must be an integer of at least 0, got 1.5"],
    [{ topP: 0 }, "generate: topP must be above 0 and at most 1, got 0"],
    [{ topP: 1.1 }, "generate: topP must be above 0 and at most 1, got 1.1"],
  ])("rejects %o", (options, message) => {
    expect(() => checkSamplingOptions(options)).toThrow(expect.objectContaining({ code: "ERR_BNB_OPTION", message }));
  });

  it("rejects logits that are not finite", () => {
    const nonFinite = expect.objectContaining({ code: "ERR_BNB_NONFINITE" });
    for (const bad of [Number.NaN, Infinity]) {
      expect(() => sampleToken(Float32Array.of(0, bad), {}, Math.random)).toThrow(nonFinite);
      expect(() => sampleToken(Float32Array.of(0, bad), { temperature: 1 }, Math.random)).toThrow(nonFinite);
    }
    expect(() => sampleToken(Float32Array.of(-Infinity, -Infinity), {}, Math.random)).toThrow(nonFinite);
  });
});
