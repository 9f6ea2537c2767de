// The one table of tolerances: dtype x kind of op. `close(a, r)` means |actual - expected| <= a + r * |expected|.

/** Bounds of a comparison, absolute and relative. */
export interface Tolerance {
  atol: number;
  rtol: number;
}

export type FloatDType = "float32" | "float16" | "bfloat16";

/**
 * What kind of arithmetic produced the value:
 * - `exact`: a copy, a code, an index: the same bits;
 * - `elementwise`: a few roundings per element, the default closeness;
 * - `reduction`: sums of up to a few thousand terms of order one (matmul, norms, softmax, losses);
 * - `gradient`: analytic gradients against a float64 oracle.
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
