// LLM.int8() around the edges of the GPU's tiles, with rows that start at multiples of 16 bytes and rows that do not.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { backward, tensor } from "../../src/index.js";
import { int8LinearMatmul, matmul8bit } from "../../src/ops/int8.js";
import { addon } from "../../src/tensor/addon.js";
import { dtypeCode } from "../../src/tensor/dtype.js";
import { run } from "../../src/tensor/run.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { integers, normals } from "../helpers/random.js";
import { integerProduct, mixedLinear, quantizeRows } from "../reference/int8.js";

const dtypes = ["float32", "float16", "bfloat16"] as const;
const unit = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 };

// [m, n, k]: few rows, small tiles, as many large tiles as the emulated device has multiprocessors.
const aligned = [
  [1, 33, 256],
  [15, 31, 272],
  [16, 40, 1040],
  [17, 63, 48],
  [64, 65, 128],
  [65, 64, 144],
  [130, 70, 400],
  [250, 260, 192],
] as const;
const unaligned = [
  [1, 33, 255],
  [16, 40, 130],
  [65, 66, 127],
  [63, 129, 129],
] as const;

describe.each(testDevices())("LLM.int8() tiles on %s", (device) => {
  const put = (values: ArrayLike<number>, shape: number[], dtype: (typeof dtypes)[number] = "float32"): Tensor =>
    tensor(Float32Array.from(values), { shape, dtype, device });
  const bytes = (values: ArrayLike<number>, shape: number[]): Tensor =>
    tensor(Int8Array.from(values), { shape, device });
  const codes = (n: number, seed: number) => integers(n, 256, seed).map((q) => q - 128);

  it.each([...aligned, ...unaligned])("multiplies codes exactly: %i x %i x %i", (m, n, k) => {
    const [a, b] = [codes(m * k, m), codes(n * k, n + 1000)];
    using c = int8LinearMatmul(bytes(a, [m, k]), bytes(b, [n, k]));
    expect([...c.dataSync()]).toEqual([...integerProduct(a, b, m, n, k)]);
  });

  it("multiplies rows that start anywhere", () => {
    const [m, n, k] = [20, 24, 64];
    const [a, b] = [codes(m * k + 3, 1), codes(n * k, 2)];
    using whole = bytes(a, [m * k + 3]);
    const [part] = run(addon.view, whole, [m, k], dtypeCode("int8"), 3);
    using c = int8LinearMatmul(part, bytes(b, [n, k]));
    expect([...c.dataSync()]).toEqual([...integerProduct(a.slice(3), b, m, n, k)]);
  });

  it.each(dtypes.flatMap((dtype) => [...aligned, ...unaligned].map((sizes) => [dtype, ...sizes] as const)))(
    "gives the mixed product in %s: %i x %i x %i",
    (dtype, m, n, k) => {
      const w = normals(n * k, n + k, 0.5);
      const bias = normals(n, n);
      const weight = quantizeRows(w, n, k);
      // No outliers, a few, more than go through shared memory at once.
      for (const [threshold, columns, keepsWeight] of [
        [0, 0, false],
        [6, 3, true],
        [6, 40, false],
      ] as const) {
        const values = normals(m * k, m + columns).map((v) => Math.max(-4, Math.min(4, v)));
        for (let i = 0; i < columns; i++) values[((i * 7) % m) * k + ((i * 11 + 5) % k)] = 9 - i / 16;
        using x = put(values, [m, k], dtype);
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
        const got = y.floatsSync();
        for (let i = 0; i < got.length; i++) {
          const limit = 8 * 2 ** -24 * expected.magnitude[i]! + unit[dtype] * Math.abs(expected.y[i]!);
          if (!(Math.abs(got[i]! - expected.y[i]!) <= limit + 1e-30))
            expect.fail(`element ${i} of ${m} x ${n} x ${k}: ${got[i]}, expected ${expected.y[i]} within ${limit}`);
        }
      }
    },
  );

  it.each(dtypes)("propagates gradients of %s", (dtype) => {
    for (const [m, n, k] of [
      [1, 8, 16],
      [17, 40, 80],
      [65, 72, 144],
      [63, 200, 64],
      [20, 33, 48],
      [20, 32, 50],
      [250, 56, 272],
    ] as const) {
      const weight = quantizeRows(normals(n * k, 3, 0.1), n, k);
      const g = normals(m * n, 4);
      using x = put(normals(m * k, 5), [m, k], dtype);
      x.requiresGrad = true;
      using dy = put(g, [m, n], dtype);
      backward(matmul8bit(x, bytes(weight.codes, [n, k]), put(weight.stats, [n])), dy);
      const rounded = dy.floatsSync();
      const expected = new Float64Array(m * k);
      const size = new Float64Array(m * k);
      for (let i = 0; i < m; i++)
        for (let j = 0; j < n; j++)
          for (let p = 0; p < k; p++) {
            const term = rounded[i * n + j]! * ((weight.codes[j * k + p]! * weight.stats[j]!) / 127);
            expected[i * k + p]! += term;
            size[i * k + p]! += Math.abs(term);
          }
      const got = x.grad!.floatsSync();
      // The weight may be rounded to the type of dy, each term for itself.
      for (let i = 0; i < got.length; i++) {
        const limit = (unit[dtype] + 1e-6) * (size[i]! + Math.abs(expected[i]!));
        if (!(Math.abs(got[i]! - expected[i]!) <= limit + 1e-7))
          expect.fail(`element ${i} of ${m} x ${n} x ${k}: ${got[i]}, expected ${expected[i]} within ${limit}`);
      }
      if (dtype === "float32") expectClose(got, expected, { atol: 1e-5, rtol: 1e-5 });
    }
  });
});
