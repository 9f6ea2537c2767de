// The 4-bit linear product: against float64 from the same bytes, and against what bitsandbytes computed.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import type { DType, QuantState, QuantType, Tensor } from "../../src/index.js";
import {
  fromBytes,
  gemv4bit,
  linear4bit,
  matmul4bit,
  memory,
  noGrad,
  quantize4bit,
  synchronize,
  tensor,
  tidy,
} from "../../src/index.js";
import { linear4bitPlan } from "../../src/ops/plans.js";
import { QuantState as State } from "../../src/ops/quant-state.js";
import { decode, encode } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose, relativeError } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { noise } from "../helpers/noise.js";
import { fixturePath, readSafetensors, toNumbers } from "../helpers/safetensors.js";
import { errorOfSum, roundoff, sumError } from "../helpers/tolerance.js";
import { decode4bit, linear, linearBackward } from "../reference/linear-4bit.js";

interface Case {
  case: string;
  M: number;
  K: number;
  N: number;
  quant_type: "nf4" | "fp4";
  nested: boolean;
  blocksize: number;
  dtype: "fp32" | "fp16" | "bf16";
  bias: boolean;
}

interface Weight {
  packed: Tensor;
  state: QuantState;
  values: Float64Array;
}

interface Quantization {
  blocksize?: number;
  quantType?: QuantType;
  compressStatistics?: boolean;
}

describe.each(testDevices())("linear4bit on %s", (device) => {
  const weight = (n: number, k: number, options: Quantization = {}, seed = 3): Weight => {
    const w = tensor(
      noise(n * k, seed).map((v) => v / Math.sqrt(Math.max(k, 1))),
      { shape: [n, k], device },
    );
    const [packed, state] = quantize4bit(w, { quantType: "nf4", ...options });
    w.dispose();
    return { packed, state, values: decode4bit(packed, state) };
  };
  const make = (values: ArrayLike<number>, shape: readonly number[], dtype: DType = "float32"): Tensor =>
    tensor(Float64Array.from(values), { shape, dtype, device });

  // Forward and input gradient of a product, in float32 against float64: every element within its bound.
  const compare = (m: number, k: number, n: number, options: Quantization, withBias: boolean): void =>
    tidy(() => {
      const { packed, state, values } = weight(n, k, options);
      const x = make(noise(m * k, 5), [m, k]);
      const bias = withBias ? make(noise(n, 6), [n]) : null;
      x.requiresGrad = true;
      const y = matmul4bit(x, packed, state, { bias });
      expect(y.shape).toEqual([m, n]);
      const expected = linear(x.floatsSync(), values, n, k, bias?.floatsSync());
      const actual = y.floatsSync();
      expect(relativeError(actual, expected.y)).toBeLessThan(2e-6);
      const bound = (i: number): number => 2 ** -24 * (Math.abs(expected.y[i]!) + (k + 9) * expected.magnitude[i]!);
      const outside = [...actual].findIndex((v, i) => !(Math.abs(v - expected.y[i]!) <= bound(i)));
      expect(outside).toBe(-1);
      const dy = make(noise(m * n, 7), [m, n]);
      backward(y, dy);
      expect(relativeError(x.grad!.floatsSync(), linearBackward(dy.floatsSync(), values, n, k))).toBeLessThan(2e-6);
    });

  describe("values", () => {
    const { cases } = JSON.parse(readFileSync(fixturePath("functional/matmul4.json"), "utf8")) as { cases: Case[] };
    const fixtures = readSafetensors("functional/matmul4.safetensors");

    it.each(cases)("agrees with bitsandbytes: $case, $quant_type $dtype", (c) => {
      const part = (name: string) => fixtures.get(`${c.case}.${name}`)!;
      const load = (name: string): Tensor => {
        const t = part(name);
        return fromBytes(t.bytes, { dtype: t.dtype as DType, shape: t.shape, device });
      };
      const dtype = ({ fp32: "float32", fp16: "float16", bf16: "bfloat16" } as const)[c.dtype];
      const dynamic = readSafetensors("functional/codebooks.safetensors").get("dynamic_signed")!;
      const state2 = (): QuantState =>
        new State({
          absmax: load("nested_absmax"),
          code: fromBytes(dynamic.bytes, { dtype: "float32", shape: [256], device }),
          blocksize: 256,
          dtype: "float32",
        });
      const state = new State({
        absmax: load("absmax"),
        shape: [c.N, c.K],
        blocksize: c.blocksize,
        quantType: c.quant_type,
        dtype,
        offset: c.nested ? load("offset") : null,
        state2: c.nested ? state2() : null,
      });
      const x = load("A");
      x.requiresGrad = true;
      const y = matmul4bit(x, load("packed"), state, { bias: c.bias ? load("bias") : null });
      backward(y, load("grad_out"));
      expect(y.dtype).toBe(dtype);
      // In 16 bits a decoded weight may be rounded before it meets x.
      const weights = decode4bit(load("packed"), state);
      const square = (values: ArrayLike<number>) => Float64Array.from(values, (v) => v * v);
      const bounds = (exact: ArrayLike<number>, squares: ArrayLike<number>, terms: number) => ({
        atol: Float64Array.from(exact, (sum, i) => {
          const norm = Math.sqrt(squares[i]!);
          return errorOfSum(terms, sum, norm) + (dtype === "float32" ? 0 : 4 * roundoff[dtype] * norm);
        }),
        rtol: 2 * roundoff[dtype],
      });
      const [out, grad] = [toNumbers(part("out_ref_f64")), toNumbers(part("grad_ref_f64"))];
      const ofOut = linear(square(x.floatsSync()), square(weights), c.N, c.K).y;
      expectClose(y.floatsSync(), out, bounds(out, ofOut, c.K));
      const ofGrad = linearBackward(square(load("grad_out").floatsSync()), square(weights), c.N, c.K);
      expectClose(x.grad!.floatsSync(), grad, bounds(grad, ofGrad, c.N));
    });

    const types: QuantType[] = ["nf4", "fp4", "af4", "int4"];
    it.each(types)("every plan decodes %s", (quantType) => {
      for (const [m, k] of [
        [1, 192],
        [5, 128],
        [19, 320],
        [3, 77],
        [11, 77],
      ] as const) {
        compare(m, k, 37, { quantType }, true);
      }
    });

    it.each([32, 64, 128, 256, 4096])("blocks of %i, single and nested", (blocksize) => {
      for (const compressStatistics of [false, true]) {
        for (const [m, k] of [
          [2, 448],
          [20, 448],
          [4, 99],
        ] as const) {
          compare(m, k, 45, { blocksize, compressStatistics }, compressStatistics);
        }
      }
    });

    it("nested scales with several groups of 256", () => {
      compare(3, 1088, 64, { blocksize: 32, compressStatistics: true }, false);
      compare(24, 1088, 64, { blocksize: 32, compressStatistics: true }, false);
    });

    it.each([1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 33, 200])("%i rows", (m) => compare(m, 192, 131, {}, true));

    it.each([
      [1, 256, 128],
      [7, 14336, 128],
      [9, 5120, 128],
      [40, 2048, 128],
      [80, 8192, 16],
      [4, 28672, 128],
      [48, 512, 1024],
    ] as const)("stays near the unquantized product, [%i, %i] x [%i]", (m, k, n) => {
      const w = noise(n * k, 8).map((v) => v / Math.sqrt(k));
      const x = noise(m * k, 9);
      // A few outputs are enough for a mean.
      const columns = Math.min(n, 16);
      const rows = Math.min(m, 4);
      const exact = linear(x.subarray(0, rows * k), w.subarray(0, columns * k), columns, k).y;
      for (const [blocksize, limit] of [
        [64, 0.115],
        [4096, 0.16],
      ] as const) {
        tidy(() => {
          const [packed, state] = quantize4bit(make(w, [n, k]), { quantType: "nf4", blocksize });
          const y = matmul4bit(make(x, [m, k]), packed, state).floatsSync();
          const error = exact.map((v, i) => Math.abs(v - y[Math.floor(i / columns) * n + (i % columns)]!));
          expect(error.reduce((a, b) => a + b) / error.length).toBeLessThan(limit);
        });
      }
    });

    it.each([64, 128, 1024])("gemv4bit with the identity of %i gives its input", (d) => {
      const identity = new Float32Array(d * d);
      for (let i = 0; i < d; i++) identity[i * d + i] = 1;
      for (const dtype of ["float32", "float16", "bfloat16"] as const) {
        tidy(() => {
          const [packed, state] = quantize4bit(make(identity, [d, d], dtype), { quantType: "nf4" });
          const x = make(
            noise(d, 4).map((v) => 0.1 * v),
            [1, d],
            dtype,
          );
          expect(gemv4bit(x, packed, state).dataSync()).toEqual(x.dataSync());
        });
      }
    });

    it("gives the same bits every time, whatever the leading axes", () => {
      tidy(() => {
        const { packed, state } = weight(300, 256);
        const x = make(noise(12 * 256), [3, 4, 256]);
        const first = matmul4bit(x, packed, state);
        expect(first.shape).toEqual([3, 4, 300]);
        expect(matmul4bit(x, packed, state).dataSync()).toEqual(first.dataSync());
        const flat = make(x.floatsSync(), [12, 256]);
        expect(matmul4bit(flat, packed, state).dataSync()).toEqual(first.dataSync());
      });
    });

    it("ignores the shape and dtype of the packed tensor", () => {
      tidy(() => {
        const w = make(noise(16 * 64), [16, 64]);
        const x = make(noise(64), [64]);
        const [packed, state] = quantize4bit(w, { quantType: "nf4" });
        const y = matmul4bit(x, packed, state);
        expect(y.shape).toEqual([16]);
        for (const quantStorage of ["bfloat16", "float64"] as const) {
          const [stored, same] = quantize4bit(w, { quantType: "nf4", quantStorage });
          expect(matmul4bit(x, stored, same).dataSync()).toEqual(y.dataSync());
        }
      });
    });

    it("writes into out, in the dtype of out", () => {
      tidy(() => {
        const { packed, state } = weight(24, 128);
        const x = make(noise(3 * 128), [3, 128]);
        const y = matmul4bit(x, packed, state);
        const out = make(new Float32Array(72), [3, 24], "bfloat16");
        expect(matmul4bit(x, packed, state, { out })).toBe(out);
        expect(out.dataSync()).toEqual(encode(y.floatsSync(), "bfloat16"));
        const row = make(noise(128), [1, 128]);
        const single = make(new Float32Array(24), [1, 24]);
        gemv4bit(row, packed, state, { out: single });
        expect(single.dataSync()).toEqual(matmul4bit(row, packed, state).dataSync());
      });
    });
  });

  describe("gradients", () => {
    it.each([
      [3, 64, 10],
      [2, 21, 5],
      [17, 192, 4],
    ] as const)("of x [%i, %i] and the bias [%i]", (m, k, n) => {
      const { packed, state, values } = weight(n, k, { compressStatistics: true });
      const handle = state.quantized(packed);
      gradcheck(
        (x, bias) => linear4bit(x!, handle, bias),
        [
          { data: noise(m * k, 1), shape: [m, k] },
          { data: noise(n, 2), shape: [n] },
        ],
        { device, reference: (x, bias) => linear(x!, values, n, k, bias).y },
      );
    });

    it("reach only what wants one", () => {
      const { packed, state } = weight(6, 64);
      const x = make(noise(2 * 64), [2, 64]);
      const bias = make(noise(6), [6]);
      bias.requiresGrad = true;
      backward(matmul4bit(x, packed, state, { bias }), make(new Float32Array(12).fill(1), [2, 6]));
      expect(x.grad).toBe(null);
      expect([...bias.grad!.floatsSync()]).toEqual([2, 2, 2, 2, 2, 2]);
      x.requiresGrad = true;
      expect(noGrad(() => matmul4bit(x, packed, state)).requiresGrad).toBe(false);
    });

    it("outlive the tidy of the forward pass", () => {
      const { packed, state, values } = weight(6, 64);
      const x = make(noise(64), [1, 64]);
      x.requiresGrad = true;
      const y = tidy(() => matmul4bit(x, packed, state));
      const dy = noise(6);
      backward(y, make(dy, [1, 6]));
      const terms = (k: number) => Array.from(dy, (g, n) => g * values[n * 64 + k]!);
      const atol = Array.from({ length: 64 }, (_, k) => sumError(terms(k)));
      expectClose(x.grad!.floatsSync(), linearBackward(dy, values, 6, 64), { atol, rtol: 2 ** -24 });
    });
  });

  describe("dtypes", () => {
    it.each([
      ["float16", 5e-4, 21],
      ["float16", 5e-4, 3],
      ["bfloat16", 4e-3, 21],
      ["bfloat16", 4e-3, 3],
    ] as const)("%s within %d, %i rows", (dtype, limit, m) => {
      tidy(() => {
        const { packed, state, values } = weight(70, 320, { quantType: "fp4" });
        const x = make(noise(m * 320), [m, 320], dtype);
        const bias = make(noise(70), [70], dtype);
        x.requiresGrad = true;
        bias.requiresGrad = true;
        const y = matmul4bit(x, packed, state, { bias });
        expect(y.dtype).toBe(dtype);
        expect(
          relativeError(y.floatsSync(), linear(x.floatsSync(), values, 70, 320, bias.floatsSync()).y),
        ).toBeLessThan(limit);
        const dy = make(noise(m * 70, 2), [m, 70], dtype);
        backward(y, dy);
        expect([x.grad!.dtype, bias.grad!.dtype]).toEqual([dtype, dtype]);
        const dx = linearBackward(dy.floatsSync(), values, 70, 320);
        expect(relativeError(x.grad!.floatsSync(), dx)).toBeLessThan(limit);
      });
    });

    it("rounds once: a 16-bit result is the float32 result, rounded", () => {
      tidy(() => {
        for (const dtype of ["float16", "bfloat16"] as const) {
          for (const m of [2, 12]) {
            const { packed, state } = weight(40, 256);
            const x = make(noise(m * 256), [m, 256], dtype);
            const wide = matmul4bit(x, packed, state, { out: make(new Float32Array(m * 40), [m, 40]) });
            expect(matmul4bit(x, packed, state).dataSync()).toEqual(encode(wide.floatsSync(), dtype));
          }
        }
      });
    });

    it("adds a bias of another dtype in float32, and gives it a gradient of its own", () => {
      tidy(() => {
        const { packed, state } = weight(8, 64);
        const x = make(noise(2 * 64), [2, 64], "bfloat16");
        const bias = make(noise(8), [8]);
        bias.requiresGrad = true;
        const y = matmul4bit(x, packed, state, { bias });
        const bare = matmul4bit(x, packed, state, { out: make(new Float32Array(16), [2, 8]) }).floatsSync();
        const sums = bare.map((v, i) => v + bias.floatsSync()[i % 8]!);
        expect(y.floatsSync()).toEqual(decode(encode(sums, "bfloat16"), "bfloat16"));
        backward(y, make(new Float32Array(16).fill(1.5), [2, 8], "bfloat16"));
        expect(bias.grad!.dtype).toBe("float32");
        expect([...bias.grad!.floatsSync()]).toEqual(new Array(8).fill(3));
      });
    });
  });

  describe("shapes", () => {
    it.each([
      [3, 5, 7],
      [1, 17, 1001],
      [33, 1000, 136],
      [2, 1, 4096],
      [5, 64, 96],
      [1, 1, 1],
      [1, 64, 1],
      [9, 96, 40],
    ] as const)("[%i, %i] x [%i]", (m, k, n) => {
      for (const blocksize of [32, 64, 256]) compare(m, k, n, { blocksize }, true);
    });

    it("no rows, no outputs, no inputs", () => {
      tidy(() => {
        const { packed, state } = weight(7, 64);
        const none = make([], [0, 64]);
        none.requiresGrad = true;
        const y = matmul4bit(none, packed, state);
        expect(y.shape).toEqual([0, 7]);
        backward(y, make([], [0, 7]));
        expect(none.grad!.shape).toEqual([0, 64]);
        const narrow = weight(0, 64);
        expect(matmul4bit(make(noise(64), [1, 64]), narrow.packed, narrow.state).shape).toEqual([1, 0]);
        const flat = weight(3, 0);
        const bias = make([1, 2, 3], [3]);
        const sums = matmul4bit(make([], [2, 0]), flat.packed, flat.state, { bias });
        expect([...sums.floatsSync()]).toEqual([1, 2, 3, 1, 2, 3]);
      });
    });

    it("chooses how by the number of rows and inputs", () => {
      expect([1, 8, 9, 4096].map((m) => linear4bitPlan(m, 4096))).toEqual(["small", "small", "packed", "packed"]);
      expect([0, 1, 63, 65, 1000].map((k) => linear4bitPlan(1, k))).toEqual(new Array(5).fill("plain"));
      expect([64, 192, 28672].map((k) => linear4bitPlan(1, k))).toEqual(new Array(3).fill("small"));
    });
  });

  describe("errors", () => {
    const { packed, state } = weight(6, 64);
    const x = make(noise(2 * 64), [2, 64]);

    it("names what does not fit", () => {
      expect(() => matmul4bit(make(noise(63), [1, 63]), packed, state)).toThrow(
        "linear4bit: the last axis of x must be 64, got [1, 63]",
      );
      expect(() => matmul4bit(x, packed, state, { bias: make([1], [1]) })).toThrow(
        "linear4bit: bias must have shape [6], got [1]",
      );
      expect(() => matmul4bit(tensor(new Int32Array(64), { device }), packed, state)).toThrow(
        "linear4bit: x must be float32, float16 or bfloat16, got int32",
      );
      expect(() => matmul4bit(x, packed, state, { out: make(noise(6), [6]) })).toThrow(
        "linear4bitInto: out must have shape [2, 6], got [6]",
      );
      expect(() => gemv4bit(x, packed, state)).toThrow("gemv4bit: A must have a single row, got [2, 64]");
    });

    it("wants a matrix", () => {
      const [cube, cubic] = quantize4bit(make(noise(2 * 2 * 64), [2, 2, 64]), { quantType: "nf4" });
      expect(() => matmul4bit(x, cube, cubic)).toThrow(
        "linear4bit: weight must be a matrix [outFeatures, inFeatures], got [2, 2, 64]",
      );
    });

    it("refuses modes that do not exist, and out with a gradient", () => {
      const options = { activationQuant: "int2" as "none" };
      expect(() => matmul4bit(x, packed, state, options)).toThrow(/activationQuant must be/);
      const wanted = make(noise(64), [1, 64]);
      wanted.requiresGrad = true;
      expect(() => matmul4bit(wanted, packed, state, { out: make(noise(6), [1, 6]) })).toThrow(
        "matmul4bit: out cannot be given when a gradient is wanted",
      );
    });

    it("names a disposed weight", () => {
      const own = weight(6, 64);
      const handle = own.state.quantized(own.packed);
      handle.dispose();
      expect(() => linear4bit(x, handle)).toThrow("linear4bit: weight was disposed");
    });
  });

  // The handle that a graph keeps is freed when it is collected.
  const settle = async (tensors: number): Promise<void> => {
    for (let i = 0; i < 50 && memory().tensors > tensors; i++) {
      (globalThis as { gc?: () => void }).gc?.();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await synchronize();
  };

  it("returns its memory", async () => {
    await settle(0);
    const before = memory();
    tidy(() => {
      const { packed, state } = weight(64, 128);
      const x = make(noise(10 * 128), [10, 128]);
      x.requiresGrad = true;
      backward(matmul4bit(x, packed, state), make(noise(640), [10, 64]));
      matmul4bit(make(noise(128), [1, 128]), packed, state);
    });
    await settle(before.tensors);
    expect(memory().tensors).toBe(before.tensors);
    expect(memory().liveBytes).toBe(before.liveBytes);
  });
});
