// LLM.int8(): codes and integer sums to the bit, mixed products within their bound, fixtures of bitsandbytes.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { backward, memory, slice, tensor } from "../../src/index.js";
import {
  embedding8bit,
  int8LinearMatmul,
  int8MmDequant,
  int8VectorwiseDequant,
  int8VectorwiseQuant,
  matmul8bit,
} from "../../src/ops/int8.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { integers, normals } from "../helpers/random.js";
import type { FixtureTensor } from "../helpers/safetensors.js";
import { readSafetensors, toNumbers } from "../helpers/safetensors.js";
import { tolerance } from "../helpers/tolerance.js";
import { integerProduct, mixedLinear, quantizeRows } from "../reference/int8.js";

const shapes = [
  [1, 1, 1],
  [1, 3, 5],
  [2, 1, 64],
  [3, 17, 65],
  [7, 13, 130],
  [5, 8, 200],
  [0, 4, 3],
  [4, 0, 3],
  [3, 2, 0],
] as const;

const unit = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 };
const dtypes = ["float32", "float16", "bfloat16"] as const;

describe.each(testDevices())("LLM.int8() on %s", (device) => {
  const put = (values: ArrayLike<number>, shape: number[], dtype: (typeof dtypes)[number] = "float32"): Tensor =>
    tensor(Float32Array.from(values), { shape, dtype, device });
  const bytes = (values: ArrayLike<number>, shape: number[]): Tensor =>
    tensor(Int8Array.from(values), { shape, device });
  const fixture = (t: FixtureTensor): Tensor =>
    tensor(t.values as never, { dtype: t.dtype as never, shape: t.shape, device });

  describe("values", () => {
    const A = [1, -2, 0.5, 8, 0.25, -0.125, 3, 0, 0, 0, 0, 0, 1.5, -0.75, 0.75, -5.5];

    it("quantizes the worked example without a threshold", async () => {
      using rows = int8VectorwiseQuant(put(A, [4, 4]));
      expect([...rows.codes.dataSync()]).toEqual([16, -32, 8, 127, 11, -5, 127, 0, 0, 0, 0, 0, 35, -17, 17, -127]);
      expect([...rows.stats.dataSync()]).toEqual([8, 3, 0, 5.5]);
      expect(await rows.outlierCols()).toBeNull();
    });

    it("leaves outlier columns out, but not the ordinary elements in them", async () => {
      using rows = int8VectorwiseQuant(put(A, [4, 4]), { threshold: 6 });
      expect([...rows.codes.dataSync()]).toEqual([64, -127, 32, 0, 11, -5, 127, 0, 0, 0, 0, 0, 35, -17, 17, 0]);
      expect([...rows.stats.dataSync()]).toEqual([2, 3, 0, 5.5]);
      expect([...((await rows.outlierCols()) ?? [])]).toEqual([3]);
    });

    it.each(dtypes)("equals the rule to the bit for %s", (dtype) => {
      for (const [seed, [m, , k]] of shapes.entries()) {
        for (const threshold of [0, 1.5]) {
          using x = put(normals(m * k, seed), [m, k], dtype);
          using rows = int8VectorwiseQuant(x, { threshold });
          const expected = quantizeRows(x.floatsSync(), m, k, threshold);
          expect(rows.codes.dataSync()).toEqual(expected.codes);
          expect(rows.stats.dataSync()).toEqual(expected.stats);
        }
      }
    });

    // Short rows and long ones, whole vectors and odd sizes, rows longer than a team of threads keeps.
    it.each(dtypes)("equals the rule to the bit for rows of any length, %s", (dtype) => {
      for (const [m, k] of [
        [70, 24],
        [9, 1024],
        [3, 1032],
        [2, 1027],
        [2, 8200],
        [1, 5003],
      ] as const) {
        for (const threshold of [0, 3.2]) {
          using x = put(normals(m * k, k), [m, k], dtype);
          using rows = int8VectorwiseQuant(x, { threshold });
          const expected = quantizeRows(x.floatsSync(), m, k, threshold);
          expect(rows.codes.dataSync()).toEqual(expected.codes);
          expect(rows.stats.dataSync()).toEqual(expected.stats);
          if (threshold > 0) {
            const marked = [...(rows.outlierMask as Tensor).dataSync()].flatMap((one, j) => (one === 1 ? [j] : []));
            expect(marked).toEqual(expected.outliers);
          }
        }
      }
    });

    it.each(dtypes)("quantizes and dequantizes views that start anywhere, %s", (dtype) => {
      const [m, k] = [3, 40];
      using all = put(normals((m + 1) * k, 5), [(m + 1) * k], dtype);
      for (const start of [1, 4, 8]) {
        using x = slice(all, 0, start, start + m * k).reshape([m, k]);
        using rows = int8VectorwiseQuant(x);
        const expected = quantizeRows(x.floatsSync(), m, k);
        expect(rows.codes.dataSync()).toEqual(expected.codes);
        using padded = bytes([...new Int8Array(start), ...expected.codes], [start + m * k]);
        using codes = slice(padded, 0, start, start + m * k).reshape([m, k]);
        using y = embedding8bit(tensor(Int32Array.of(2, 0), { device }), codes, rows.stats, dtype);
        using plain = int8VectorwiseDequant(codes, rows.stats);
        const exact = Float32Array.from(expected.codes, (q, i) =>
          Math.fround(Math.fround(q * (expected.stats[Math.floor(i / k)] as number)) * Math.fround(1 / 127)),
        );
        expect(plain.dataSync()).toEqual(exact);
        using rounded = put([...exact.slice(2 * k), ...exact.slice(0, k)], [2, k], dtype);
        expect(y.dataSync()).toEqual(rounded.dataSync());
      }
    });

    it("reports an id outside the table", () => {
      const [codes, stats] = [bytes([1, 2, 3, 4], [2, 2]), put([127, 127], [2])];
      for (const id of [-1, 2]) {
        using y = embedding8bit(tensor(Int32Array.of(0, id), { device }), codes, stats);
        expect(() => y.dataSync()).toThrow(`index ${id} is out of range, it must be in [0, 2)`);
      }
    });

    it("rescales a product in float32, in a fixed order, and rounds once", () => {
      for (const [m, n] of [
        [3, 5],
        [2, 1028],
        [17, 64],
      ] as const) {
        const c = integers(m * n, 1 << 22, n).map((q) => q - (1 << 21));
        const [rows, cols, bias] = [normals(m, 1), normals(n, 2), normals(n, 3)].map((v) => Float32Array.from(v));
        const exact = Float32Array.from(c, (q, i) => {
          const scaled = Math.fround(
            Math.fround(q * (rows?.[Math.floor(i / n)] as number)) * (cols?.[i % n] as number),
          );
          return Math.fround(Math.fround(scaled * 6.200012285262346e-5) + (bias?.[i % n] as number));
        });
        using sums = tensor(Int32Array.from(c), { shape: [m, n], device });
        for (const dtype of dtypes) {
          using y = int8MmDequant(sums, put(rows as Float32Array, [m]), put(cols as Float32Array, [n]), {
            bias: put(bias as Float32Array, [n]),
            dtype,
          });
          using rounded = put(exact, [m, n], dtype);
          expect(y.dataSync()).toEqual(rounded.dataSync());
        }
      }
    });

    it("fills `out`, gives it back, and refuses one of another dtype or shape", () => {
      const [a, b] = [integers(6, 200, 1), integers(8, 200, 2)].map((v) => Int8Array.from(v, (x) => x - 100));
      const [A, B] = [bytes(a as Int8Array, [3, 2]), bytes(b as Int8Array, [4, 2])];
      const out = tensor(new Int32Array(12).fill(7), { shape: [3, 4], device });
      const before = memory().tensors;
      expect(int8LinearMatmul(A, B, { out })).toBe(out);
      expect(out.dataSync()).toEqual(Int32Array.from(integerProduct(a as Int8Array, b as Int8Array, 3, 4, 2)));
      const [rows, cols] = [put([1, 2, 3], [3]), put([4, 5, 6, 7], [4])];
      const half = tensor(new Float32Array(12), { shape: [3, 4], dtype: "bfloat16", device });
      expect(int8MmDequant(out, rows, cols, { out: half })).toBe(half);
      using same = int8MmDequant(out, rows, cols, { dtype: "bfloat16" });
      expect(half.dataSync()).toEqual(same.dataSync());
      expect(() => int8LinearMatmul(A, B, { out: half })).toThrow(
        "int8LinearMatmul: out must be int32 [3, 4], got bfloat16 [3, 4]",
      );
      using wide = tensor(new Int32Array(12), { shape: [4, 3], device });
      expect(() => int8LinearMatmul(A, B, { out: wide })).toThrow("out must be int32 [3, 4], got int32 [4, 3]");
      for (const t of [rows, cols, half]) t.dispose();
      same.dispose();
      wide.dispose();
      expect(memory().tensors).toBe(before);
    });

    it("shows rows that hold NaN or infinity, and takes infinity as an outlier", () => {
      const x = [1, NaN, 2, Infinity, 1, 3, -Infinity, 2, 4, 1e-42, -3e-42, 0];
      using plain = int8VectorwiseQuant(put(x, [4, 3]));
      expect([...plain.stats.dataSync()]).toEqual([NaN, NaN, NaN, Math.fround(3e-42)]);
      expect([...plain.codes.dataSync()]).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 0, 42, -127, 0]);
      using split = int8VectorwiseQuant(put(x, [4, 3]), { threshold: 6 });
      expect([...split.stats.dataSync()]).toEqual([NaN, 3, 4, Math.fround(3e-42)]);
      expect([...split.codes.dataSync()]).toEqual([0, 0, 0, 0, 42, 127, 0, 64, 127, 0, -127, 0]);
    });

    it.each([24, 1032, 1027])("equals the rule to the bit for unusual rows of %i", (k) => {
      const random = normals(k, 3);
      const row = (make: (x: number, i: number) => number): number[] => [...random].map(make);
      const x = [
        ...row((_, i) => (i % 2 ? -0 : 0)),
        ...row((v) => v * 1e-39),
        ...row((v) => v * 1e-38),
        ...row((v) => v * 3e-37),
        ...row((v, i) => (i === 20 ? -3e38 : v * 1e36)),
        ...row((v, i) => (i === 5 ? NaN : i === 6 ? 100 : v)),
        ...row((v, i) => (i === 9 ? -Infinity : v)),
        ...row(() => 50),
      ];
      for (const threshold of [0, 6]) {
        using rows = int8VectorwiseQuant(put(x, [8, k]), { threshold });
        const expected = quantizeRows(Float32Array.from(x), 8, k, threshold);
        expect(rows.stats.dataSync()).toEqual(expected.stats);
        expect(rows.codes.dataSync()).toEqual(expected.codes);
      }
    });

    it("multiplies codes exactly, -128 and the longest sums included", () => {
      for (const [seed, [m, n, k]] of shapes.entries()) {
        const a = integers(m * k, 256, seed).map((q) => q - 128);
        const b = integers(n * k, 256, seed + 50).map((q) => q - 128);
        using c = int8LinearMatmul(bytes(a, [m, k]), bytes(b, [n, k]));
        expect([...c.dataSync()]).toEqual([...integerProduct(a, b, m, n, k)]);
      }
      const k = 131071;
      using worst = int8LinearMatmul(
        bytes(new Int8Array(2 * k).fill(-128), [2, k]),
        bytes(new Int8Array(k).fill(-128), [1, k]),
      );
      expect([...worst.dataSync()]).toEqual([128 * 128 * k, 128 * 128 * k]);
    });

    it.each(dtypes)("gives the mixed product of the same codes in %s", (dtype) => {
      for (const [seed, [m, n, k]] of shapes.entries()) {
        for (const [threshold, keepsWeight] of [
          [0, false],
          [1.5, false],
          [1.5, true],
        ] as const) {
          using x = put(normals(m * k, seed), [m, k], dtype);
          const w = normals(n * k, seed + 100, 0.5);
          const bias = normals(n, seed + 200);
          const weight = quantizeRows(w, n, k);
          using y = matmul8bit(x, bytes(weight.codes, [n, k]), put(weight.stats, [n]), {
            threshold,
            bias: put(bias, [n]),
            weight: keepsWeight ? put(w, [n, k]) : null,
          });
          const expected = mixedLinear(x.floatsSync(), weight.codes, weight.stats, [m, n, k], {
            threshold,
            bias,
            ...(keepsWeight ? { weight: w } : {}),
          });
          expect(y.dtype).toBe(dtype);
          const values = y.floatsSync();
          for (let i = 0; i < values.length; i++) {
            const limit =
              8 * 2 ** -24 * (expected.magnitude[i] as number) + unit[dtype] * Math.abs(expected.y[i] as number);
            expect(Math.abs((values[i] as number) - (expected.y[i] as number))).toBeLessThanOrEqual(limit + 1e-30);
          }
        }
      }
    });

    it("splits sums longer than an int32 holds", () => {
      const k = 131072 + 77;
      const codes = new Int8Array(2 * k).fill(127);
      codes.fill(-127, k);
      const x = new Float32Array(k).fill(2);
      using y = matmul8bit(put(x, [1, k]), bytes(codes, [2, k]), put([127, 127], [2]));
      expectClose(y.floatsSync(), [2 * 127 * k, -2 * 127 * k], { atol: 0, rtol: 1e-6 });
    });

    it("of codes that all have the largest value, at the lengths just above what an int32 holds", () => {
      for (const k of [133_144, 133_145, 139_999]) {
        const codes = new Int8Array(k).fill(127);
        using y = matmul8bit(put(new Float32Array(k).fill(2), [1, k]), bytes(codes, [1, k]), put([127], [1]));
        expectClose(y.floatsSync(), [2 * 127 * k], { atol: 0, rtol: 1e-6 });
      }
    });

    // Where the first part of a sum ends, where the last is whole, and one beside each.
    it.each([131071, 131072, 131073, 262143, 262144, 262145])("adds up each of %i products once", (k) => {
      const at = (i: number, step: number) => ((i * step) % 255) - 127;
      const codes = Int8Array.from({ length: 2 * k }, (_, i) => at(i, 7));
      const xs = Float32Array.from({ length: k }, (_, i) => (i === 0 ? 127 : at(i, 11)));
      const sums = [0, 1].map((row) => xs.reduce((total, v, i) => total + v * codes[row * k + i]!, 0));
      using y = matmul8bit(put(xs, [1, k]), bytes(codes, [2, k]), put([127, 127], [2]));
      // The sum is exact; it is rounded to float32 as it is, in the scaling, and at the end.
      expectClose(y.floatsSync(), sums, { atol: 0, rtol: 4 * 2 ** -24 });
    });

    it("does not overflow in float16 where the result fits, and passes through no narrower type", () => {
      const k = 64;
      using x = put(new Float32Array(k).fill(100), [1, k], "bfloat16");
      using y = matmul8bit(x, bytes(new Int8Array(k).fill(127), [1, k]), put([127], [1]));
      expectClose(y.floatsSync(), [100 * 127 * k], { atol: 0, rtol: 2 ** -8 });
    });
  });

  describe("fixtures", () => {
    const file = readSafetensors("functional/int8.safetensors");
    const get = (name: string): FixtureTensor => file.get(name) as FixtureTensor;

    it.each(["s0", "s1", "s2"])("quantizes %s as bitsandbytes does", async (s) => {
      for (const [name, codes, stats, threshold] of [
        ["A", "t0.CA", "t0.SCA", 0],
        ["A", "t6.CA", "t6.SCA", 6],
        ["W", "CB", "SCB", 0],
      ] as const) {
        using rows = int8VectorwiseQuant(fixture(get(`${s}.${name}`)), { threshold });
        expect(rows.codes.dataSync()).toEqual(get(`${s}.${codes}`).values);
        expect(rows.stats.dataSync()).toEqual(get(`${s}.${stats}`).values);
        if (threshold > 0) {
          // A case without outliers has no such tensor.
          const columns = file.get(`${s}.t6.outlier_cols`)?.values ?? [];
          const expected = Array.from(columns as ArrayLike<bigint>, Number);
          expect([...((await rows.outlierCols()) ?? [])]).toEqual(expected);
        }
      }
    });

    it.each(["s0", "s1", "s2"])("multiplies and rescales %s", (s) => {
      for (const t of ["t0", "t6"]) {
        using c = int8LinearMatmul(fixture(get(`${s}.${t}.CA`)), fixture(get(`${s}.CB`)));
        expect(c.dataSync()).toEqual(get(`${s}.${t}.C32`).values);
        using y = int8MmDequant(c, fixture(get(`${s}.${t}.SCA`)), fixture(get(`${s}.SCB`)));
        expect(y.dtype).toBe("float16");
        // The constant of that run is 1.8e-5 too large.
        expectClose(y.floatsSync(), toNumbers(get(`${s}.${t}.dequant_f16`)), { atol: 1e-4, rtol: 2e-3 });
        using biased = int8MmDequant(c, fixture(get(`${s}.${t}.SCA`)), fixture(get(`${s}.SCB`)), {
          bias: fixture(get(`${s}.bias`)),
        });
        expectClose(biased.floatsSync(), toNumbers(get(`${s}.${t}.dequant_f16_bias`)), { atol: 1e-3, rtol: 2e-3 });
      }
    });

    it.each(["s0", "s1", "s2"])("computes the mixed product of %s", (s) => {
      for (const [t, threshold] of [
        ["t0", 0],
        ["t6", 6],
      ] as const) {
        const exact = toNumbers(get(`${s}.${t}.mixed_bias_exact_f64`));
        for (const [dtype, tolerance] of [
          ["float32", { atol: 1e-4, rtol: 1e-4 }],
          ["float16", { atol: 1e-3, rtol: 2e-3 }],
          ["bfloat16", { atol: 1e-2, rtol: 2e-2 }],
        ] as const) {
          // The fixture's bfloat16 run rounds the activations, which moves outlier products; judged by its own limit.
          using x = tensor(toNumbers(get(`${s}.A`)), { shape: get(`${s}.A`).shape, dtype, device });
          using y = matmul8bit(x, fixture(get(`${s}.CB`)), fixture(get(`${s}.SCB`)), {
            threshold,
            bias: fixture(get(`${s}.bias`)),
          });
          if (dtype === "bfloat16") {
            expectClose(y.floatsSync(), toNumbers(get(`${s}.${t}.matmul_bf16`)), { atol: 0.15, rtol: 2e-2 });
          } else {
            expectClose(y.floatsSync(), exact, tolerance);
          }
        }
      }
    });

    it("restores weights as W_dequant", () => {
      using w = int8VectorwiseDequant(fixture(get("s0.CB")), fixture(get("s0.SCB")));
      expectClose(w.dataSync(), toNumbers(get("s0.W_dequant")), { atol: 0, rtol: 2 ** -23 });
    });

    it.each(["s0", "s1", "s2"])("propagates the gradient of %s through the codes", (s) => {
      const x = tensor(toNumbers(get(`${s}.A`)), { shape: get(`${s}.A`).shape, device, requiresGrad: true });
      const y = matmul8bit(x, fixture(get(`${s}.CB`)), fixture(get(`${s}.SCB`)));
      backward(y, fixture(get(`${s}.train_f32.grad_out`)));
      expectClose(x.grad?.floatsSync() ?? [], toNumbers(get(`${s}.train_f32.grad_A`)), { atol: 1e-4, rtol: 1e-4 });
      x.dispose();
      y.dispose();
    });
  });

  describe("gradients", () => {
    const [m, n, k] = [5, 9, 131];
    const weight = quantizeRows(normals(n * k, 7), n, k);

    it("of x, for rows on both sides of a register tile", () => {
      const dequantized = Float64Array.from(
        weight.codes,
        (q, i) => (q * (weight.stats[Math.floor(i / k)] as number)) / 127,
      );
      gradcheck(
        (x) => matmul8bit(x, bytes(weight.codes, [n, k]), put(weight.stats, [n])),
        [{ data: normals(m * k, 8), shape: [m, k] }],
        {
          device,
          // The gradient is that of the product with the dequantized weight.
          reference: (x) =>
            Array.from({ length: m * n }, (_, at) => {
              const [i, j] = [Math.floor(at / n), at % n];
              return Array.from(
                { length: k },
                (_, p) => (x[i * k + p] as number) * (dequantized[j * k + p] as number),
              ).reduce((a, b) => a + b, 0);
            }),
        },
      );
    });

    it("of a kept weight in the weight's dtype, rounded once, whatever x has", async () => {
      for (const dtype of ["float16", "bfloat16"] as const) {
        const xs = normals(m * k, 9);
        const w = tensor(normals(n * k, 10), { shape: [n, k], dtype, device, requiresGrad: true });
        const y = matmul8bit(put(xs, [m, k]), bytes(weight.codes, [n, k]), put(weight.stats, [n]), { weight: w });
        await y.sum().backward();
        const sums = Array.from({ length: n * k }, (_, at) => {
          let sum = 0;
          for (let i = 0; i < m; i++) sum += xs[i * k + (at % k)]!;
          return sum;
        });
        expect([w.grad!.dtype, w.grad!.shape]).toEqual([dtype, [n, k]]);
        expectClose(w.grad!.floatsSync(), sums, tolerance(dtype, "reduction"));
      }
    });

    it("disposes all that quantizing made", () => {
      const before = memory().tensors;
      const x = put(normals(8, 1), [2, 4]);
      for (const threshold of [0, 1]) int8VectorwiseQuant(x, { threshold }).dispose();
      x.dispose();
      expect(memory().tensors).toBe(before);
    });

    it("of the weight and the bias, where the weight is kept", () => {
      const xs = normals(m * k, 9);
      gradcheck(
        (w, bias) =>
          matmul8bit(put(xs, [m, k]), bytes(weight.codes, [n, k]), put(weight.stats, [n]), { weight: w, bias }),
        [
          { data: normals(n * k, 10), shape: [n, k] },
          { data: normals(n, 11), shape: [n] },
        ],
        {
          device,
          reference: (w, bias) =>
            Array.from({ length: m * n }, (_, at) => {
              const [i, j] = [Math.floor(at / n), at % n];
              const terms = Array.from(
                { length: k },
                (_, p) => (xs[i * k + p] as number) * ((w as Float64Array)[j * k + p] as number),
              );
              return terms.reduce((a, b) => a + b, 0) + ((bias as Float64Array)[j] as number);
            }),
        },
      );
    });
  });

  describe("errors", () => {
    it("names the op, the rule and what came", () => {
      const x = put([1, 2, 3], [1, 3]);
      const codes = bytes([1, 2], [1, 2]);
      const stats = put([1], [1]);
      expect(() => int8VectorwiseQuant(x, { threshold: -1 })).toThrow(
        "int8VectorwiseQuant: threshold must be at least 0, got -1",
      );
      expect(() => int8VectorwiseQuant(x, { threshold: NaN })).toThrow("threshold must be at least 0, got nan");
      expect(() => int8VectorwiseQuant(codes)).toThrow(
        "int8VectorwiseQuant: A must be float32, float16 or bfloat16, got int8",
      );
      expect(() => matmul8bit(x, codes, stats)).toThrow("int8Linear: the last axis of x must be 2, got [1, 3]");
      expect(() => int8LinearMatmul(codes, bytes([1], [1, 1]))).toThrow(
        "int8LinearMatmul: B must have shape [N, 2], got [1, 1]",
      );
      const long = bytes(new Int8Array(131072), [1, 131072]);
      expect(() => int8LinearMatmul(long, long)).toThrow(
        "int8LinearMatmul: K must be at most 131071 for an exact int32 sum, got 131072",
      );
      expect(() => matmul8bit(put([1, 2], [1, 2]), codes, put([1, 2], [2]))).toThrow(
        "int8Linear: weightStats must have 1 elements, got 2",
      );
    });
  });

  it("returns its memory", () => {
    const x = put(normals(12, 1), [3, 4]);
    const [codes, stats] = [bytes(new Int8Array(8), [2, 4]), put([1, 1], [2])];
    const before = memory();
    matmul8bit(x, codes, stats, { threshold: 1 }).dispose();
    expect(memory().tensors).toBe(before.tensors);
    expect(memory().liveBytes).toBe(before.liveBytes);
  });
});
