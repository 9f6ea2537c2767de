// Products with 4-bit weights whose activations may be rounded: each instruction set computes the scheme that it is meant to, to
// the rounding of float32 sums, and all of them stay within the errors that the modes promise.
import { describe, expect, it } from "vitest";
import type { ActivationQuant, DType, QuantState, QuantType, Tensor } from "../../src/index.js";
import {
  backward,
  devices,
  linear4bit,
  linear4bitEach,
  linear4bitSwiglu,
  matmul4bit,
  quantize4bit,
  tensor,
  tidy,
} from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { relativeError } from "../helpers/expect-close.js";
import { noise } from "../helpers/noise.js";
import { decode4bit, linear } from "../reference/linear-4bit.js";

type Scheme = ActivationQuant;

const levels = { int16: { weight: 8191, activation: 16383 }, int8: { weight: 127, activation: 127 } } as const;
/** Relative errors that the modes promise, in the Frobenius norm. */
const promised = { none: 2e-6, int16: 2e-4, int8: 1.5e-2 } as const;

/** To the nearest integer, halves to the even one. */
const nearest = (v: number): number => {
  const floor = Math.floor(v);
  const rest = v - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
};

/** x [m, k] as its codes times their scale, which `granule` of them share. */
function roundedActivations(x: Float32Array, granule: number, most: number): Float64Array {
  const out = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += granule) {
    const part = x.subarray(at, at + granule);
    const absmax = part.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
    if (absmax === 0) continue;
    const inverse = Math.fround(most / absmax);
    part.forEach((v, i) => {
      out[at + i] = (nearest(Math.fround(v * inverse)) * absmax) / most;
    });
  }
  return out;
}

/** Decoded weights as their codes times the scale of their block, whose largest value is the scale. */
function roundedWeights(values: Float64Array, state: QuantState, most: number): Float64Array {
  const out = new Float64Array(values.length);
  for (let at = 0; at < values.length; at += state.blocksize) {
    const part = values.subarray(at, at + state.blocksize);
    const scale = part.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
    if (scale === 0) continue;
    part.forEach((v, i) => {
      out[at + i] = (nearest((most * v) / scale) * scale) / most;
    });
  }
  return out;
}

/** What the CPU's kernels do with a mode: they round where that is faster. */
function schemeOf(mode: ActivationQuant, m: number, k: number): Scheme {
  const { isa } = devices()[0] as { isa?: string };
  if (k % 64 !== 0) return "none";
  if (mode === "int8" && (isa === "avx512" || isa === "avx_vnni")) return "int8";
  if (mode === "int8" && isa === "avx2") return m <= 32 ? "int8" : "none";
  if (isa === "avx2" || isa === "avx_vnni") return mode !== "none" && m <= 8 ? "int16" : "none";
  return "none";
}

describe.each(testDevices())("activationQuant on %s", (device) => {
  const weight = (n: number, k: number, quantType: QuantType, blocksize: number, compressStatistics: boolean) => {
    const w = tensor(
      noise(n * k, 3).map((v) => v / Math.sqrt(k)),
      { shape: [n, k], device },
    );
    const [packed, state] = quantize4bit(w, { quantType, blocksize, compressStatistics });
    return { packed, state, values: decode4bit(packed, state) };
  };
  const make = (values: ArrayLike<number>, shape: readonly number[], dtype: DType = "float32"): Tensor =>
    tensor(Float64Array.from(values), { shape, dtype, device });

  const expectScheme = (scheme: Scheme, y: ArrayLike<number>, x: Float32Array, w: ReturnType<typeof weight>) => {
    const [n, k] = w.state.shape as [number, number];
    const granule = Math.min(64, w.state.blocksize);
    const near =
      scheme === "none"
        ? linear(x, w.values, n, k)
        : linear(
            roundedActivations(x, granule, levels[scheme].activation),
            roundedWeights(w.values, w.state, levels[scheme].weight),
            n,
            k,
          );
    const bound = (i: number): number => 2 ** -24 * (Math.abs(near.y[i]!) + (k + 16) * near.magnitude[i]!);
    const outside = near.y.findIndex((v, i) => !(Math.abs(y[i]! - v) <= bound(i)));
    expect(outside, `${y[outside]} is not ${near.y[outside]}`).toBe(-1);
  };

  const compare = (
    m: number,
    k: number,
    n: number,
    { quantType = "nf4" as QuantType, blocksize = 64, nested = false } = {},
  ): void => {
    const x = noise(m * k, 5);
    for (const mode of ["int16", "int8"] as const) {
      tidy(() => {
        const w = weight(n, k, quantType, blocksize, nested);
        const input = make(x, [m, k]);
        const y = matmul4bit(input, w.packed, w.state, { activationQuant: mode }).floatsSync();
        const exact = linear(x, w.values, n, k).y;
        expect(relativeError(y, exact)).toBeLessThan(promised[mode]);
        const scheme = device.startsWith("cuda") ? "none" : schemeOf(mode, m, k);
        expectScheme(scheme, y, input.floatsSync() as Float32Array, w);
      });
    }
  };

  it.each([1, 2, 3, 5, 8, 9, 12, 13, 24, 33, 200])("%i rows", (m) => compare(m, 192, 131));
  it.each([64, 128, 448, 512, 576, 1088, 4096])("K = %i", (k) => {
    compare(1, k, 37);
    compare(14, k, 37);
  });
  it.each([1, 15, 16, 17, 31, 32, 33, 64, 100])("N = %i", (n) => {
    compare(2, 128, n);
    compare(9, 128, n);
  });
  it.each([32, 64, 128, 256, 4096])("blocks of %i, single and nested", (blocksize) => {
    for (const nested of [false, true]) {
      compare(3, 448, 45, { blocksize, nested });
      compare(20, 448, 45, { blocksize, nested });
    }
  });
  it.each(["nf4", "fp4"] as const)("codes of %s", (quantType) => {
    compare(4, 320, 64, { quantType });
    compare(16, 320, 64, { quantType });
  });
  it("multiplies exactly where K has no whole 64", () => compare(3, 77, 20));

  it.each(["float32", "float16", "bfloat16"] as const)("adds a bias and a residual before it rounds to %s", (dtype) => {
    for (const m of [2, 11]) {
      tidy(() => {
        const [k, n] = [128, 37];
        const w = weight(n, k, "nf4", 64, true);
        const x = make(noise(m * k, 5), [m, k], dtype);
        const bias = make(noise(n, 6), [n], "float32");
        const residual = make(noise(m * n, 7), [m, n], dtype);
        for (const mode of ["int16", "int8"] as const) {
          const own = w.state.quantized(w.packed, mode);
          const y = linear4bit(x, own, bias, residual);
          expect(y.dtype).toBe(dtype);
          const alone = linear4bit(make(x.floatsSync(), [m, k]), own).floatsSync();
          const [b, r] = [bias.floatsSync(), residual.floatsSync()];
          const sums = Float32Array.from(alone, (v, i) => v + b[i % n]! + r[i]!);
          const roundoff = { float32: 2 ** -22, float16: 2 ** -10, bfloat16: 2 ** -7 }[dtype];
          const far = [...y.floatsSync()].findIndex(
            (v, i) => Math.abs(v - sums[i]!) > roundoff * (1 + Math.abs(sums[i]!)),
          );
          // A GPU rounds 16-bit weights before it multiplies.
          if (!device.startsWith("cuda")) expect(far).toBe(-1);
        }
      });
    }
  });

  it("goes for products of several weights, too: each is what it is alone", () => {
    tidy(() => {
      const x = make(noise(3 * 128, 5), [3, 128]);
      const [first, second] = [weight(33, 128, "nf4", 64, false), weight(33, 128, "fp4", 64, false)].map((w) =>
        w.state.quantized(w.packed, "int8"),
      ) as [ReturnType<QuantState["quantized"]>, ReturnType<QuantState["quantized"]>];
      const alone = [linear4bit(x, first).floatsSync(), linear4bit(x, second).floatsSync()] as const;
      const each = linear4bitEach(x, [first, second]).map((y) => y.floatsSync());
      expect(relativeError(each[0]!, alone[0])).toBeLessThan(2e-6);
      expect(relativeError(each[1]!, alone[1])).toBeLessThan(2e-6);
      const both = Float64Array.from(alone[0], (g, i) => (g / (1 + Math.exp(-g))) * alone[1][i]!);
      expect(relativeError(linear4bitSwiglu(x, first, second).floatsSync(), both)).toBeLessThan(2e-6);
    });
  });

  it("leaves rows that are not finite without a number, the others as they are", () => {
    tidy(() => {
      const w = weight(40, 128, "nf4", 64, false);
      for (const mode of ["int16", "int8"] as const) {
        for (const bad of [NaN, Infinity, -Infinity]) {
          const values = Float64Array.from(noise(3 * 128, 5));
          const good = matmul4bit(make(values, [3, 128]), w.packed, w.state, { activationQuant: mode }).floatsSync();
          values[128 + 70] = bad;
          const y = matmul4bit(make(values, [3, 128]), w.packed, w.state, { activationQuant: mode }).floatsSync();
          expect([...y.slice(40, 80)].some(Number.isFinite)).toBe(false);
          expect([...y.slice(0, 40), ...y.slice(80)]).toEqual([...good.slice(0, 40), ...good.slice(80)]);
        }
      }
    });
  });

  it("takes zeros, and the smallest and the largest numbers", () => {
    tidy(() => {
      const w = weight(20, 128, "nf4", 64, false);
      for (const mode of ["int16", "int8"] as const) {
        const product = (values: ArrayLike<number>) =>
          matmul4bit(make(values, [2, 128]), w.packed, w.state, { activationQuant: mode }).floatsSync();
        expect([...product(new Float64Array(256))]).toEqual(new Array(40).fill(0));
        const unit = product(noise(256, 5));
        for (const scale of [2 ** -100, 2 ** 100]) {
          const scaled = product(Float64Array.from(noise(256, 5), (v) => v * scale));
          expect(
            relativeError(
              Float64Array.from(scaled, (v) => v / scale),
              unit,
            ),
          ).toBeLessThan(promised[mode]);
        }
        const tiny = product(Float64Array.from(noise(256, 5), (v) => v * 2 ** -130));
        expect(Math.max(...tiny.map(Math.abs))).toBeLessThan(2 ** -120);
      }
    });
  });

  it("has the gradient of the exact product", () => {
    tidy(() => {
      const w = weight(24, 128, "nf4", 64, false);
      const gradient = (activationQuant: ActivationQuant) => {
        const x = make(noise(3 * 128, 5), [3, 128]);
        x.requiresGrad = true;
        backward(matmul4bit(x, w.packed, w.state, { activationQuant }), make(noise(3 * 24, 6), [3, 24]));
        return [...x.grad!.floatsSync()];
      };
      const exact = gradient("none");
      expect(gradient("int8")).toEqual(exact);
      expect(gradient("int16")).toEqual(exact);
    });
  });

  it("refuses modes that do not exist", () => {
    const w = weight(4, 64, "nf4", 64, false);
    const x = make(noise(64), [1, 64]);
    expect(() => matmul4bit(x, w.packed, w.state, { activationQuant: "int4" as "int8" })).toThrow(
      'matmul4bit: activationQuant must be one of none, int16, int8, got "int4"',
    );
    expect(() => w.state.quantized(w.packed, "int4" as "int8")).toThrow(
      'QuantState: activationQuant must be one of none, int16, int8, got "int4"',
    );
  });
});
