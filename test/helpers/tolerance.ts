// The one table of tolerances: dtype x kind of op. `close(a, r)` means |actual - expected| <= a + r * |expected|.
// Sums whose terms a test knows take their bound from them (sumError) instead of the table: it follows from the
// arithmetic, so that it holds for every order in which an instruction set or a GPU adds.

/** Bounds of a comparison, absolute and relative; `atol` may differ from element to element. */
export interface Tolerance {
  atol: number | ArrayLike<number>;
  rtol: number;
}

export type FloatDType = "float32" | "float16" | "bfloat16";

/**
 * What kind of arithmetic produced the value:
 * - `exact`: a copy, a code, an index: the same bits;
 * - `elementwise`: a few roundings per element, the default closeness;
 * - `reduction`: means and normalized sums (norms, softmax, losses, attention), and sums of up to 100 terms of order one;
 * - `gradient`: the same for gradients against a float64 oracle, sums of up to 200 terms of order one.
 */
export type OpKind = "exact" | "elementwise" | "reduction" | "gradient";

const table: Record<OpKind, Record<FloatDType, Tolerance>> = {
  exact: {
    float32: { atol: 0, rtol: 0 },
    float16: { atol: 0, rtol: 0 },
    bfloat16: { atol: 0, rtol: 0 },
  },
  elementwise: {
    float32: { atol: 1e-5, rtol: 1.3e-6 },
    float16: { atol: 1e-5, rtol: 1e-3 },
    bfloat16: { atol: 1e-5, rtol: 1.6e-2 },
  },
  reduction: {
    float32: { atol: 2e-5, rtol: 1e-5 },
    float16: { atol: 1e-3, rtol: 2e-3 },
    bfloat16: { atol: 1e-2, rtol: 1.6e-2 },
  },
  gradient: {
    float32: { atol: 5e-5, rtol: 5e-5 },
    float16: { atol: 2e-3, rtol: 4e-3 },
    bfloat16: { atol: 2e-2, rtol: 3e-2 },
  },
};

/** The tolerance for a value of `dtype` that came from an op of `kind`; default closeness without a kind. */
export function tolerance(dtype: string, kind: OpKind = "elementwise"): Tolerance {
  if (dtype === "float32" || dtype === "float16" || dtype === "bfloat16") return table[kind][dtype];
  return table.exact.float32;
}

/** The relative error of one rounding to a dtype. */
export const roundoff: Record<FloatDType, number> = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 };

/**
 * What rounding may do to a float32 sum of these terms, in whatever order they are added. With the terms in no
 * particular order, a partial sum stays below 2 |sum| + 4 |terms|_2 (the way there and four standard deviations of a
 * walk around it); each of n additions rounds by at most 2^-24 of one, and n such errors of either sign add up like
 * sqrt(n). A product as a term is rounded once more, which the bound includes.
 */
export function sumError(terms: Iterable<number>): number {
  let [n, sum, squares] = [0, 0, 0];
  for (const term of terms) {
    n++;
    sum += term;
    squares += term * term;
  }
  return errorOfSum(n, sum, Math.sqrt(squares));
}

/** `sumError` of n terms of which only the sum and the 2-norm are known. */
export function errorOfSum(n: number, sum: number, norm: number): number {
  return roundoff.float32 * Math.sqrt(n) * (2 * Math.abs(sum) + 4 * norm);
}
