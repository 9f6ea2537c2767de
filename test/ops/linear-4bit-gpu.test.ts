// The kernels of a GPU for 4-bit products, forced one by one over the edges of their tiles. Bounds are those of
// SPEC.md 6.1 with the coarser rounding of weights.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import type { DType, QuantState, QuantType, Tensor } from "../../src/index.js";
import {
  copyInto,
  devices,
  empty,
  matmul4bit,
  quantize4bit,
  slice,
  synchronize,
  tensor,
  tidy,
} from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { relativeError } from "../helpers/expect-close.js";
import { noise } from "../helpers/noise.js";
import { decode4bit, linear } from "../reference/linear-4bit.js";

interface Quantization {
  blocksize?: number;
  quantType?: QuantType;
  compressStatistics?: boolean;
}

// On a machine without one there is nothing to test, but a file needs a test.
it("has devices to run on", () => expect(testDevices().length).toBeGreaterThan(0));

for (const device of testDevices().filter((name) => name.startsWith("cuda"))) {
  describe(`4-bit products on ${device}`, () => {
    const make = (values: ArrayLike<number>, shape: readonly number[], dtype: DType = "float32"): Tensor =>
      tensor(Float64Array.from(values), { shape, dtype, device });
    const weight = (n: number, k: number): { packed: Tensor; state: QuantState; values: Float64Array } => {
      const [packed, state] = quantize4bit(
        make(
          noise(n * k, 3).map((v) => v / Math.sqrt(k)),
          [n, k],
        ),
        {
          quantType: "nf4",
        },
      );
      return { packed, state, values: decode4bit(packed, state) };
    };
    const unit = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 } as const;
    const largest = (dtype: Half, terms: number): number =>
      dtype === "float32" ? (terms <= 8192 ? 2e-6 : 5e-6) : dtype === "float16" ? 5e-4 : 4e-3;
    type Half = keyof typeof unit;

    const forced = <R>(variant: string, f: () => R): R => {
      process.env["BNB_PLAN_LINEAR_4BIT"] = variant;
      try {
        return f();
      } finally {
        delete process.env["BNB_PLAN_LINEAR_4BIT"];
      }
    };

    const near = (
      actual: ArrayLike<number>,
      exact: { y: Float64Array; magnitude: Float64Array },
      inputs: (i: number) => number,
      terms: number,
      dtype: Half,
      what: string,
    ): void => {
      const u = unit[dtype];
      const tiny = dtype === "float16" ? 2 ** -25 : 0;
      const weights = dtype === "float32" ? 2 ** -24 : u;
      for (let i = 0; i < exact.y.length; i++) {
        const bound =
          u * Math.abs(exact.y[i]!) +
          (weights + (terms + 9) * 2 ** -23) * exact.magnitude[i]! +
          tiny * (1 + inputs(i)) +
          2 ** -126;
        if (!(Math.abs(actual[i]! - exact.y[i]!) <= bound)) {
          expect.fail(`${what}: element ${i} is ${actual[i]}, expected ${exact.y[i]} within ${bound}`);
        }
      }
      expect(relativeError(actual, exact.y), what).toBeLessThan(largest(dtype, terms));
    };
    const magnitudes = (x: ArrayLike<number>, row: number, n: number): number => {
      let sum = 0;
      for (let i = 0; i < n; i++) sum += Math.abs(x[row * n + i]!);
      return sum;
    };

    // Forward and, where the variant can do it, backward.
    const check = (
      variant: string,
      [m, k, n]: readonly [number, number, number],
      dtype: Half,
      options: Quantization = {},
      bias: DType | null = null,
      scale = 1,
    ): void =>
      tidy(() => {
        const what = `${variant} [${m}, ${k}] x [${n}] ${dtype} ${JSON.stringify(options)}`;
        const w = make(
          noise(n * k, 13).map((v) => (v * scale) / Math.sqrt(k)),
          [n, k],
        );
        const [packed, state] = quantize4bit(w, { quantType: "nf4", ...options });
        const values = decode4bit(packed, state);
        const x = make(
          noise(m * k, 14).map((v) => v / scale),
          [m, k],
          dtype,
        );
        const b = bias === null ? null : make(noise(n, 15), [n], bias);
        const read = x.floatsSync();
        const y = forced(variant, () => matmul4bit(x, packed, state, { bias: b }));
        near(
          y.floatsSync(),
          linear(read, values, n, k, b?.floatsSync()),
          (i) => magnitudes(read, Math.floor(i / n), k),
          k,
          dtype,
          what,
        );
        expect(forced(variant, () => matmul4bit(x, packed, state, { bias: b })).dataSync()).toEqual(y.dataSync());
        if ((variant === "tile" || variant === "small_m") && n % 8 !== 0) return;
        const dy = make(
          noise(m * n, 16).map((v) => v / scale),
          [m, n],
          dtype,
        );
        const back = dy.floatsSync();
        x.requiresGrad = true;
        const again = forced(variant, () => matmul4bit(x, packed, state));
        forced(variant, () => backward(again, dy));
        const transposed = new Float64Array(n * k);
        for (let i = 0; i < n; i++) for (let j = 0; j < k; j++) transposed[j * n + i] = values[i * k + j]!;
        near(
          x.grad!.floatsSync(),
          linear(back, transposed, k, n),
          (i) => magnitudes(back, Math.floor(i / k), n),
          n,
          dtype,
          `gradient of ${what}`,
        );
      });

    // bfloat16 came to the matrix units with compute capability 8.0, and so did tiles.
    const cc = devices().find((d) => String(d) === device)!.computeCapability;
    const units: Half[] = cc < 8 ? ["float16"] : ["float16", "bfloat16"];
    const last = units[units.length - 1]!;

    describe("small_m", () => {
      it.each([1, 3, 8, 9, 16, 17, 31, 32])("%i rows", (m) => {
        for (const dtype of units) check("small_m", [m, 192, 40], dtype, {}, "float32");
      });
      it.each([
        [1, 64, 1],
        [2, 64, 31],
        [2, 128, 32],
        [9, 64, 33],
        [5, 448, 127],
        [20, 320, 129],
        [3, 1088, 264],
        [1, 2304, 520],
        [8, 64, 2056],
        [32, 576, 72],
      ] as const)("[%i, %i] x [%i]", (m, k, n) => {
        for (const dtype of units) check("small_m", [m, k, n], dtype, {}, dtype);
      });
      it.each([32, 64, 128, 4096])("blocks of %i, single and nested", (blocksize) => {
        for (const compressStatistics of [false, true]) {
          for (const m of [4, 13, 27]) {
            check("small_m", [m, 448, 72], last, { blocksize, compressStatistics, quantType: "fp4" });
          }
        }
      });
      it.each(["nf4", "fp4", "af4", "int4"] as const)("%s", (quantType) => {
        check("small_m", [6, 256, 64], "float16", { quantType });
      });
    });

    describe.runIf(cc >= 8)("tile", () => {
      it.each([1, 33, 63, 64, 65, 127, 128, 129])("%i rows", (m) => {
        check("tile", [m, 192, 40], last, {}, "float16");
      });
      it.each([
        [40, 64, 1],
        [70, 64, 127],
        [65, 128, 128],
        [33, 192, 129],
        [130, 320, 200],
        [34, 1088, 257],
      ] as const)("[%i, %i] x [%i]", (m, k, n) => {
        for (const dtype of units) check("tile", [m, k, n], dtype, {}, dtype);
      });
      it.each([32, 64, 128, 4096])("blocks of %i, single and nested", (blocksize) => {
        for (const compressStatistics of [false, true]) {
          for (const m of [35, 66]) check("tile", [m, 320, 72], "float16", { blocksize, compressStatistics });
        }
      });
      // Steps of the gradient have 32 rows of w, its tiles 128 columns; sums of 128 rows and more are split.
      it.each([
        [1, 64, 8],
        [33, 128, 24],
        [64, 192, 32],
        [65, 64, 40],
        [127, 192, 56],
        [128, 128, 64],
        [129, 320, 72],
        [40, 192, 264],
        [66, 64, 648],
      ] as const)("gradient of [%i, %i] x [%i]", (m, k, n) => {
        for (const dtype of units) check("tile", [m, k, n], dtype, {}, null);
      });
      it.each([32, 64, 128, 4096])("gradient with blocks of %i, single and nested", (blocksize) => {
        for (const compressStatistics of [false, true]) {
          for (const dtype of units) check("tile", [67, 192, 88], dtype, { blocksize, compressStatistics });
        }
      });
    });

    describe.each(["simt", "dense"] as const)("%s", (variant) => {
      it.each([
        [1, 64, 8],
        [9, 100, 33],
        [17, 77, 131],
        [3, 1, 1],
        [40, 96, 200],
      ] as const)("[%i, %i] x [%i]", (m, k, n) => {
        for (const dtype of ["float32", "float16", "bfloat16"] as const) {
          check(variant, [m, k, n], dtype, { blocksize: 32 }, "bfloat16");
          check(variant, [m, k, n], dtype, { compressStatistics: true }, null);
        }
      });
    });

    it("dense goes through slabs where the weight is large", () => {
      // A slab has 128 rows, or columns, at least.
      check("dense", [18, 16448, 136], "bfloat16", { blocksize: 4096, compressStatistics: true });
      check("dense", [2, 136, 16448], "float32", { blocksize: 4096 });
    });

    it("float16 where scales are beyond its range", () => {
      for (const variant of ["simt", "small_m", "dense"]) {
        check(variant, [4, 128, 64], "float16", { compressStatistics: false }, null, 2 ** 21);
      }
      if (cc >= 8) check("tile", [40, 128, 64], "float16", {}, null, 2 ** 21);
    });

    it("is an error where it cannot be, or does not exist", async () => {
      await synchronize();
      const { packed, state } = weight(8, 64);
      const x = make(noise(33 * 64), [33, 64], "bfloat16");
      const y = forced("small_m", () => matmul4bit(x, packed, state));
      expect(() => y.dataSync()).toThrow(
        "BNB_PLAN_LINEAR_4BIT=small_m cannot multiply 33 rows of bfloat16 with a weight of [8, 64] on this device",
      );
      expect(() => forced("fast", () => matmul4bit(x, packed, state))).toThrow(
        "linear4bit: BNB_PLAN_LINEAR_4BIT must be simt, small_m, tile or dense, got fast",
      );
    });

    it("views that start anywhere", () => {
      tidy(() => {
        for (const m of [5, 40]) {
          const { packed, state, values } = weight(24, 64);
          const all = make(noise(m * 64 + 8), [m * 64 + 8], "bfloat16");
          for (const start of [1, 4]) {
            const x = slice(all, 0, start, start + m * 64).reshape([m, 64]);
            const exact = linear(x.floatsSync(), values, 24, 64);
            expect(relativeError(matmul4bit(x, packed, state).floatsSync(), exact.y)).toBeLessThan(4e-3);
          }
          const bytes = empty([24 * 32 + 3], { dtype: "uint8", device });
          const at = slice(bytes, 0, 3, 24 * 32 + 3);
          copyInto(at, packed.reshape([24 * 32]));
          const x = make(noise(m * 64), [m, 64], "bfloat16");
          const exact = linear(x.floatsSync(), values, 24, 64);
          expect(relativeError(matmul4bit(x, at, state).floatsSync(), exact.y)).toBeLessThan(4e-3);
        }
      });
    });
  });
}
