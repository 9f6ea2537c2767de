// The tables of the rotary embedding: frequencies and angles are rounded to float32, as models were trained with them.
import { describe, expect, it } from "vitest";
import { devices } from "../../src/index.js";
import { RotaryTables } from "../../src/models/rotary.js";

const f = Math.fround;

describe.each([
  [8, 64, 10_000],
  [64, 5000, 10_000],
  [128, 3000, 500_000],
])("head size %i, %i positions, theta %i", (dim, length, theta) => {
  const tables = new RotaryTables(dim, length, theta, devices()[0]!);
  const [cos, sin] = [tables.cos.floatsSync(), tables.sin.floatsSync()];
  const half = dim / 2;
  const angle = (position: number, i: number, round: (x: number) => number) =>
    round(position * round(1 / round(theta ** ((2 * i) / dim))));

  it("holds the cosine and sine of the rounded angles", () => {
    expect(tables.cos.shape).toEqual([length, half]);
    expect(tables.sin.shape).toEqual([length, half]);
    for (let position = 0; position < length; position += 1 + (position >> 4)) {
      for (let i = 0; i < half; i++) {
        const want = angle(position, i, f);
        expect(Math.abs(cos[position * half + i]! - Math.cos(want))).toBeLessThan(2 ** -24);
        expect(Math.abs(sin[position * half + i]! - Math.sin(want))).toBeLessThan(2 ** -24);
      }
    }
  });

  it("which are others than those in float64", () => {
    if (length < 1000) return expect(length).toBe(64); // so few positions hardly differ
    const gap = (round: (x: number) => number) =>
      Math.max(
        ...Array.from({ length: half }, (_, i) =>
          Math.abs(cos[(length - 1) * half + i]! - Math.cos(angle(length - 1, i, round))),
        ),
      );
    expect(gap(f)).toBeLessThan(2 ** -24);
    expect(gap((x) => x)).toBeGreaterThan(2 ** -16);
  });
});
