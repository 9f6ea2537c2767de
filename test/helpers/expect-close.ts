// Comparison of number lists with a message that names the worst element.
import { expect } from "vitest";
import type { Tolerance } from "./tolerance.js";

/** Anything with numbers in it: a TypedArray, an array, or nested arrays of numbers. */
export type Numbers = ArrayLike<number> | readonly NestedNumbers[];
type NestedNumbers = number | readonly NestedNumbers[];

function flatten(values: Numbers): ArrayLike<number> {
  if (Array.isArray(values) && values.some(Array.isArray)) return (values as unknown[]).flat(Infinity) as number[];
  return values as ArrayLike<number>;
}

function outside(actual: number, expected: number, atol: number, rtol: number): boolean {
  if (Number.isNaN(expected)) return !Number.isNaN(actual);
  if (actual === expected) return false;
  return !(Math.abs(actual - expected) <= atol + rtol * Math.abs(expected));
}

/**
 * Asserts that every element is within `atol + rtol * |expected|`. NaN equals NaN, an infinity only itself.
 * `allowed` elements may be outside.
 */
export function expectClose(
  actual: Numbers,
  expected: Numbers,
  tolerance: Tolerance = { atol: 1e-5, rtol: 1.3e-6 },
  allowed = 0,
): void {
  const a = flatten(actual);
  const e = flatten(expected);
  const { atol, rtol } = tolerance;
  const atolOf = (i: number): number => (typeof atol === "number" ? atol : (atol[i] as number));
  expect(a.length, "number of elements").toBe(e.length);
  if (typeof atol !== "number") expect(atol.length, "number of bounds").toBe(e.length);
  let count = 0;
  let worst = -1;
  let worstExcess = -1;
  for (let i = 0; i < e.length; i++) {
    if (!outside(a[i]!, e[i]!, atolOf(i), rtol)) continue;
    count++;
    const difference = Math.abs(a[i]! - e[i]!);
    const excess = Number.isNaN(difference) ? Infinity : difference;
    if (excess > worstExcess) [worst, worstExcess] = [i, excess];
  }
  if (count > allowed) {
    expect.fail(
      `${count} of ${e.length} elements outside atol ${atolOf(worst)}, rtol ${rtol} (allowed ${allowed}); ` +
        `worst at ${worst}: got ${a[worst]}, expected ${e[worst]}`,
    );
  }
}

/** ||actual - expected|| / ||expected|| in the Frobenius norm. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i]! - expected[i]!) ** 2;
    norm += expected[i]! ** 2;
  }
  return Math.sqrt(difference / (norm || 1));
}
