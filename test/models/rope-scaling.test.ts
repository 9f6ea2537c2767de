// Rotary frequencies: each rule at the points where its definition can be checked by hand, and what is refused.
import { describe, expect, it } from "vitest";
import { plainRope, readRope, ropeFrequencies } from "../../src/models/rope-scaling.js";

const of = (keys: Record<string, unknown>, length: number, dim = 16, max = 256) =>
  ropeFrequencies(readRope(keys, max), dim, length);
const plain = (theta = 10_000, dim = 16) => ropeFrequencies(plainRope(theta, 256), dim, 1).frequencies;
const close = (got: ArrayLike<number>, want: number[]) => {
  expect(got).toHaveLength(want.length);
  for (const [i, value] of want.entries()) expect(Math.abs(got[i]! / value - 1)).toBeLessThan(1e-6);
};

describe("frequencies", () => {
  it("are powers of theta", () => {
    close(
      plain(),
      Array.from({ length: 8 }, (_, i) => 10_000 ** (-i / 8)),
    );
  });

  it("linear divides them", () => {
    const { frequencies, scale } = of({ rope_scaling: { type: "linear", factor: 2.5 } }, 1000);
    expect(scale).toBe(1);
    close(
      frequencies,
      Array.from(plain(), (w) => w / 2.5),
    );
  });

  it("dynamic raises theta beyond the length of training, so that the slowest wave is stretched by the length", () => {
    const rope = { rope_scaling: { rope_type: "dynamic", factor: 1 } };
    close(of(rope, 256).frequencies, [...plain()]);
    const stretched = of(rope, 512).frequencies;
    expect(stretched[0]).toBe(1);
    expect(plain()[7]! / stretched[7]!).toBeCloseTo(2, 5);
  });

  it("llama3 keeps short waves, stretches long ones and blends between", () => {
    const keys = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 32 };
    const { frequencies } = of({ rope_parameters: { rope_type: "llama3", rope_theta: 10_000, ...keys } }, 256);
    for (const [i, w] of plain().entries()) {
      const turns = (32 * w) / (2 * Math.PI);
      const part = frequencies[i]! / w;
      if (turns > 4) expect(part).toBe(1);
      else if (turns < 1) expect(part).toBeCloseTo(1 / 8, 6);
      else expect(part).toBeCloseTo(1 / 8 + ((turns - 1) / 3) * (7 / 8), 5);
    }
  });

  it("yarn scales cosine and sine by its attention factor, or by the ratio of its mscales", () => {
    const yarn = (more: object) =>
      of({ rope_scaling: { type: "yarn", factor: 4, original_max_position_embeddings: 64, ...more } }, 256);
    expect(yarn({}).scale).toBeCloseTo(0.1 * Math.log(4) + 1, 12);
    expect(yarn({ attention_factor: 1.25, mscale: 2, mscale_all_dim: 1 }).scale).toBe(1.25);
    expect(yarn({ mscale: 2, mscale_all_dim: 1 }).scale).toBeCloseTo(
      (0.2 * Math.log(4) + 1) / (0.1 * Math.log(4) + 1),
      12,
    );
    const { frequencies } = yarn({});
    expect(frequencies[0]).toBe(1);
    expect(plain()[7]! / frequencies[7]!).toBeCloseTo(4, 5);
    expect([...yarn({ truncate: false }).frequencies]).not.toEqual([...frequencies]);
  });

  it("longrope takes its long factors as soon as one position is beyond the original ones", () => {
    const keys = { original_max_position_embeddings: 64, short_factor: [1, 2], long_factor: [3, 4] };
    const at = (length: number) => of({ rope_scaling: { type: "longrope", ...keys } }, length, 4);
    close(at(64).frequencies, [1, 0.01 / 2]);
    close(at(65).frequencies, [1 / 3, 0.01 / 4]);
    expect(at(1).scale).toBeCloseTo(Math.sqrt(1 + Math.log(4) / Math.log(64)), 12);
  });
});

it.each([
  [
    { rope_scaling: { type: "spiral" } },
    'rope_type must be one of default, linear, dynamic, llama3, yarn, longrope, got "spiral"',
  ],
  [{ rope_scaling: { type: "linear" } }, "factor of rope type linear must be a positive number, got undefined"],
  [{ rope_theta: -1 }, "rope_theta of rope type default must be a positive number, got -1"],
  [{ rope_scaling: { type: "longrope", short_factor: [1, "x"] } }, "short_factor must be a list of positive numbers"],
])("%j is refused", (keys, message) => {
  expect(() => readRope(keys, 256)).toThrow(message);
});

it("longrope with factors for another head is refused", () => {
  const keys = { short_factor: [1, 2], long_factor: [3, 4] };
  expect(() => of({ rope_scaling: { type: "longrope", ...keys } }, 1)).toThrow(
    "short_factor and long_factor must have 8 numbers, got 2",
  );
});
