// 4-bit quantization: against the plain rule bit for bit, and against what bitsandbytes made.

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  dequantize4bit,
  dequantizeFp4,
  dequantizeNf4,
  quantize4bit,
  quantizeFp4,
  quantizeNf4,
} from "../../src/functional.js";
import type { DType, Tensor } from "../../src/index.js";
import { empty, fromBytes, memory, ones, slice, tensor, tidy } from "../../src/index.js";
import { decode, encode } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { normals } from "../helpers/random.js";
import type { FixtureTensor } from "../helpers/safetensors.js";
import { readSafetensors } from "../helpers/safetensors.js";
import { tile, tiled } from "../helpers/tiles.js";
import type { Type } from "../reference/quantize.js";
import { crc32, dequantize4, quantize4, quantizeScales, tables } from "../reference/quantize.js";

const types: readonly Type[] = ["nf4", "fp4", "af4", "int4"];
const blocksizes = [32, 64, 128, 256, 512, 1024, 2048, 4096];
const floats: readonly DType[] = ["float32", "float16", "bfloat16"];

const bytesOf = (t: Tensor): Uint8Array => {
  const data = t.dataSync();
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
};
const toTensor = (t: FixtureTensor, device: string): Tensor =>
  fromBytes(t.bytes, { dtype: t.dtype as DType, shape: t.shape, device });
const above = (x: number): number => {
  const f = new Float32Array([x]);
  const u = new Int32Array(f.buffer);
  u[0] = (u[0] as number) + (x > 0 ? 1 : -1);
  return f[0] as number;
};

// Quantizes values of a dtype and compares codes, scales and the way back with the plain rule.
function compare(values: ArrayLike<number>, dtype: DType, type: Type, blocksize: number, device: string): void {
  const stored = encode(values, dtype);
  const x = tensor(stored, { dtype, device });
  const widened = decode(stored, dtype);
  const [packed, state] = quantize4bit(x, { quantType: type, blocksize });
  const expected = quantize4(widened, blocksize, type);
  expect(bytesOf(packed), "packed").toEqual(expected.packed);
  expect([...state.absmax.floatsSync()], "absmax").toEqual(expected.absmax);
  const y = dequantize4bit(packed, { quantState: state });
  expect(y.dtype).toBe(dtype);
  const back = encode(dequantize4(expected.codes, expected.absmax, blocksize, type), dtype);
  expect(decode(y.dataSync(), dtype), "dequantized").toEqual(decode(back, dtype));
  for (const t of [x, packed, state, y]) t.dispose();
}

describe.each(testDevices())("quantize4bit on %s", (device) => {
  describe("values", () => {
    const small = Float32Array.from({ length: 80 }, (_, i) => (((37 * i) % 101) - 50) / 32);
    const hex = (t: Tensor): string => Buffer.from(bytesOf(t)).toString("hex");

    it("a worked example, NF4", () => {
      const x = tensor(small, { shape: [4, 20], device });
      const [packed, state] = quantizeNf4(x, { blocksize: 32 });
      expect(hex(packed)).toBe("04c16e29f3b05d17e29f3c05d18e2af4c16e19f3b05d17e29f3b05d18e2af4c06e18e3b04d17e29f");
      expect([...state.absmax.floatsSync()]).toEqual([1.5625, 1.53125, 1.53125]);
      const y = dequantize4bit(packed, { quantState: state });
      expect(y.shape).toEqual([4, 20]);
      expect(crc32(bytesOf(y))).toBe("4b913f6e");
    });

    it("a worked example, FP4", () => {
      const [packed, state] = quantizeFp4(tensor(small, { device }), { blocksize: 32 });
      expect(hex(packed)).toBe("bf5a92a63c4be5a02d63c4be2a12d73f5b92a63d4bf5a92d63c4be2a12d73c5be2a63d4bf5a92a63");
      expect(crc32(bytesOf(dequantizeFp4(packed, { quantState: state })))).toBe("71df781c");
    });

    it("a worked example of odd length pads with the code of 0", () => {
      const x = tensor(small.slice(0, 15), { shape: [3, 5], device });
      expect(hex(quantizeNf4(x)[0])).toBe("04c16e29f3b05d17");
      expect(hex(quantizeFp4(x)[0])).toBe("bf5a92a63c4be5a0");
    });

    it("a worked example of double quantization", () => {
      const [packed, state] = quantizeNf4(tensor(small, { device }), { blocksize: 32, compressStatistics: true });
      expect(state.nested).toBe(true);
      expect([...bytesOf(state.absmax)]).toEqual([255, 35, 35]);
      expect(state.offset?.itemSync()).toBe(1.5416666269302368);
      expect([...(state.state2?.absmax.floatsSync() ?? [])]).toEqual([0.020833373069763184]);
      expect(state.state2?.blocksize).toBe(256);
      const y = dequantize4bit(packed, { quantState: state }).floatsSync();
      // Elements of magnitude 1 in their block show the expanded scales.
      expect([y[0], Math.max(...y.slice(32, 64).map(Math.abs))]).toEqual([-1.5625, 1.5312336683273315]);
    });

    const inNf4 = [
      0,
      -0,
      0.03979014977812767,
      above(0.03979014977812767),
      0.1202552504837513,
      -0.045525018125772476,
      -0.8480964004993439,
      -0.8480963,
      0.8614784181118011,
      0.9,
      1,
      -1,
    ];
    const fp4Numbers = [
      0, -0, 0.00260417, -0.00260417, -1e-6, 0.0859375, -0.0859375, 0.4166667, -0.4166667, 0.583333, 0.58333335, 1, -1,
      0.8333333, 0.2,
    ];
    const inFp4 = [...fp4Numbers, above(Math.fround(0.00260417))];
    it.each([
      ["nf4", inNf4, [7, 7, 7, 8, 8, 6, 0, 1, 14, 15, 15, 0]],
      ["fp4", inFp4, [0, 0, 0, 8, 8, 1, 9, 4, 12, 5, 2, 3, 11, 2, 6, 1]],
    ] as const)("ties and edges of %s", (type, edges, expected) => {
      const [packed] = quantize4bit(tensor([1, ...edges], { device }), { quantType: type });
      const codes = [...bytesOf(packed)].flatMap((byte) => [byte >> 4, byte & 15]).slice(1, 1 + edges.length);
      expect(codes).toEqual(expected);
    });

    it.each(types)("equals the plain rule around every threshold of %s", (type) => {
      const table = [...tables[type]].sort((a, b) => a - b);
      const near = table.slice(1).flatMap((value, i) => {
        const t = Math.fround(Math.fround(value + (table[i] as number)) * 0.5);
        return [t, above(t), -above(-t), -t, value];
      });
      const published = [0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333].flatMap((t) => {
        const f = Math.fround(t);
        return [f, above(f), -above(-f), -f, -above(f)];
      });
      const edges = [...near, ...published].filter(Number.isFinite);
      for (const scale of [1, 2 ** -20, 3.3e7]) {
        const x: number[] = [];
        edges.forEach((edge, i) => {
          if (x.length % 64 === 0) x.push(i % 2 ? scale : -scale);
          x.push(edge * scale);
        });
        compare(x, "float32", type, 64, device);
        compare(tiled(x, 2 * tile), "float32", type, 64, device);
      }
    });

    const awkward = types.flatMap((type) => (type === "af4" ? [64] : [64, 1024]).map((size) => [type, size] as const));
    it.each(awkward)("equals the plain rule on awkward blocks, %s of %i", (type, blocksize) => {
      const block = (make: (i: number) => number): number[] => Array.from({ length: blocksize }, (_, i) => make(i));
      const random = normals(blocksize, 5);
      const at = (i: number): number => random[i] as number;
      const blocks = [
        ...block(() => 0),
        ...block((i) => (i % 2 ? -0 : 0)),
        ...block((i) => (i === 3 ? NaN : at(i))),
        ...block((i) => (i === 63 ? Infinity : at(i))),
        ...block((i) => (i === 0 ? -Infinity : i === 1 ? NaN : at(i))),
        ...block((i) => at(i) * 1e-39), // subnormal scale
        ...block((i) => (i === 7 ? 2 ** -126 : at(i) * 1e-42)), // the smallest normal scale
        ...block((i) => (i === 7 ? 1.4e-45 : 0)), // the smallest scale of all
        ...block((i) => at(i) * 3e37),
        ...block((i) => (i === 9 ? 3.4028234663852886e38 : at(i))),
        ...block(() => -1.5),
      ];
      const end = random.slice(0, 33); // a partial block of odd length
      compare([...blocks, ...end], "float32", type, blocksize, device);
      compare([...tiled(blocks, 2 * tile), ...end], "float32", type, blocksize, device);
    });

    it("a block that is not finite dequantizes to NaN and leaves its neighbours alone", () => {
      const x = new Float32Array(96).fill(1);
      x[40] = NaN;
      const [packed, state] = quantizeNf4(tensor(x, { device }), { blocksize: 32 });
      const absmax = state.absmax.dataSync();
      expect(new Uint32Array(absmax.buffer)[1]).toBe(0x7fc00000);
      const y = dequantize4bit(packed, { quantState: state }).floatsSync();
      expect([...y].map(Number.isNaN)).toEqual(Array.from({ length: 96 }, (_, i) => i >= 32 && i < 64));
    });

    it("a negative value near zero keeps its sign in FP4", () => {
      const [packed, state] = quantizeFp4(tensor([1, -1e-4, 0], { device }));
      const y = dequantize4bit(packed, { quantState: state }).floatsSync();
      expect(Object.is(y[1], -0) && Object.is(y[2], 0)).toBe(true);
    });

    it.each(floats)("random %s of every blocksize equals the plain rule", (dtype) => {
      for (const type of types) {
        for (const blocksize of type === "af4" ? [64] : blocksizes) {
          compare(normals(2 * blocksize + 77, blocksize), dtype, type, blocksize, device);
        }
      }
    });

    it.each(blocksizes)("sizes around the tiles of a thread block, blocks of %i", (blocksize) => {
      for (const n of [1, 2, 4].flatMap((tiles) => [-1, 0, 1, 33].map((rest) => tiles * tile + rest)))
        for (const dtype of floats) compare(normals(n, blocksize), dtype, "nf4", blocksize, device);
    });

    it("packing round-trips for any size, dtype, type and blocksize", () => {
      const cases = fc.record({
        n: fc.integer({ min: 0, max: 5000 }),
        seed: fc.integer({ min: 0, max: 1 << 20 }),
        exponent: fc.integer({ min: -30, max: 12 }),
        dtype: fc.constantFrom(...floats),
        type: fc.constantFrom<Type>("nf4", "fp4", "int4"),
        blocksize: fc.constantFrom(...blocksizes),
      });
      fc.assert(
        fc.property(cases, ({ n, seed, exponent, dtype, type, blocksize }) => {
          compare(
            normals(n, seed).map((value) => value * 2 ** exponent),
            dtype,
            type,
            blocksize,
            device,
          );
        }),
        { numRuns: 150 },
      );
    });

    it("requantizing what was dequantized gives the same bytes", () => {
      fc.assert(
        fc.property(fc.integer({ min: 1, max: 700 }), fc.constantFrom<"nf4" | "fp4">("nf4", "fp4"), (n, quantType) => {
          const [packed, state] = quantize4bit(tensor(normals(n, n), { device }), { quantType });
          const [again] = quantize4bit(dequantize4bit(packed, { quantState: state }), { quantType });
          // Codes 0 and 8 of FP4 are one value.
          const plain = (bytes: Uint8Array): number[] =>
            [...bytes].flatMap((b) => [b >> 4, b & 15]).map((c) => (quantType === "fp4" && c === 8 ? 0 : c));
          expect(plain(bytesOf(again))).toEqual(plain(bytesOf(packed)));
        }),
        { numRuns: 40 },
      );
    });

    it("double quantization equals the plain rule", () => {
      const map = readSafetensors("functional/codebooks.safetensors").get("dynamic_signed") as FixtureTensor;
      const x = normals(64 * 700 + 5, 3);
      const [packed, state] = quantizeNf4(tensor(x, { device }), { compressStatistics: true });
      const first = quantize4(x, 64, "nf4");
      const second = quantizeScales(first.absmax, 256, map.values as Float32Array);
      expect(bytesOf(packed)).toEqual(first.packed);
      expect(state.offset?.itemSync()).toBe(second.offset);
      expect([...bytesOf(state.absmax)]).toEqual(second.codes);
      expect([...(state.state2?.absmax.floatsSync() ?? [])]).toEqual(second.absmax);
      const y = dequantize4bit(packed, { quantState: state }).floatsSync();
      expectClose(y, dequantize4(first.codes, second.expanded, 64, "nf4"), { atol: 0, rtol: 2.4e-7 });
    });

    it("one block, or equal scales, expand to their offset exactly", () => {
      for (const n of [10, 64, 640]) {
        const [packed, state] = quantizeNf4(ones([n], { device }), { compressStatistics: true });
        expect(new Set(bytesOf(state.absmax))).toEqual(new Set([127]));
        expect(state.state2?.absmax.floatsSync().every((s) => s === 0)).toBe(true);
        expect(
          dequantize4bit(packed, { quantState: state })
            .floatsSync()
            .every((y) => y === 1),
        ).toBe(true);
      }
    });

    it("the round trip of normal data has the published error", () => {
      // Per blocksize: mean absolute error and its deviation, mean relative error and its deviation.
      const published = {
        fp4: [
          0.088925, 0.000091, 0.242443, 0.00033, 0.096543, 0.000111, 0.260125, 0.000379, 0.102969, 0.000134, 0.275817,
          0.000433, 0.108684, 0.000182, 0.289831, 0.000497, 0.114115, 0.000234, 0.302881, 0.000583, 0.119333, 0.00032,
          0.315, 0.000757, 0.124556, 0.000455, 0.326607, 0.000955, 0.129536, 0.000612, 0.337169, 0.001239,
        ],
        nf4: [
          0.067746, 0.000069, 0.189726, 0.000304, 0.072798, 0.000074, 0.203339, 0.00034, 0.076831, 0.000091, 0.215237,
          0.000391, 0.080337, 0.000102, 0.226105, 0.000398, 0.083547, 0.000143, 0.236079, 0.000544, 0.08661, 0.000187,
          0.24537, 0.0006, 0.089592, 0.000251, 0.254163, 0.000747, 0.092547, 0.00036, 0.262473, 0.000999,
        ],
      };
      const n = 1024 * 1024;
      const data = Float32Array.from(normals(n, 77));
      for (const dtype of floats) {
        const stored = encode(data, dtype);
        const x = tensor(stored, { dtype, device });
        const values = decode(stored, dtype);
        for (const quantType of ["fp4", "nf4"] as const) {
          for (const [i, blocksize] of (dtype === "float32" ? blocksizes : [64]).entries()) {
            const row = 4 * (dtype === "float32" ? i : 1);
            const [abs, absSigma, rel, relSigma] = published[quantType].slice(row, row + 4) as [
              number,
              number,
              number,
              number,
            ];
            for (const compressStatistics of blocksize <= 128 ? [false, true] : [false]) {
              const [packed, state] = quantize4bit(x, { quantType, blocksize, compressStatistics });
              const y = dequantize4bit(packed, { quantState: state });
              const [a, r] = errors(values, y.floatsSync());
              const name = `${quantType} ${blocksize} ${dtype}`;
              expect(a, `mean error of ${name}`).toBeLessThan(compressStatistics ? 0.11 : abs + 7 * absSigma);
              expect(r, `relative error of ${name}`).toBeLessThan(compressStatistics ? 0.28 : rel + 7 * relSigma);
              for (const t of [packed, state, y]) t.dispose();
            }
          }
        }
      }
    });
  });

  describe("dtypes", () => {
    it("quantStorage only declares the same bytes differently", () => {
      const files = readSafetensors("functional/quant4_storage.safetensors");
      const weight = toTensor(files.get("weight") as FixtureTensor, device);
      const shapes: Record<string, number[]> = {
        uint8: [512, 1],
        int8: [512, 1],
        float16: [256, 1],
        bfloat16: [256, 1],
        float32: [128, 1],
        float64: [64, 1],
      };
      for (const [quantStorage, shape] of Object.entries(shapes)) {
        const [packed, state] = quantizeNf4(weight, { quantStorage: quantStorage as "uint8" });
        expect([packed.dtype, packed.shape]).toEqual([quantStorage, shape]);
        expect(bytesOf(packed)).toEqual((files.get("packed_uint8") as FixtureTensor).bytes);
        const file = files.get(`packed_${quantStorage}`);
        if (file) expect(bytesOf(packed)).toEqual(file.bytes);
        expect(bytesOf(dequantize4bit(packed, { quantState: state })).length).toBe(4096);
      }
    });

    it("the result can have another dtype, rounded once", () => {
      const [packed, state] = quantizeNf4(tensor(normals(100, 1), { device }));
      const exact = dequantize4bit(packed, { quantState: state }).floatsSync();
      for (const dtype of ["float16", "bfloat16"] as const) {
        const y = dequantize4bit(packed, { quantState: state, dtype });
        expect(y.dataSync()).toEqual(encode(exact, dtype));
      }
    });
  });

  describe("shapes", () => {
    it("any shape is flattened; the state remembers it", () => {
      for (const shape of [[], [1], [7, 3, 5], [2, 0, 3], [0]]) {
        const [packed, state] = quantizeNf4(ones(shape, { device }));
        expect(packed.shape).toEqual([Math.ceil(shape.reduce((a, b) => a * b, 1) / 2), 1]);
        expect(state.shape).toEqual(shape);
        expect(dequantizeNf4(packed, { quantState: state }).shape).toEqual(shape);
      }
    });

    it("an empty tensor has no blocks, also with double quantization", () => {
      const [packed, state] = quantizeNf4(empty([0, 5], { device }), { compressStatistics: true });
      expect([packed.size, state.absmax.size, state.state2?.absmax.size]).toEqual([0, 0, 0]);
      expect(dequantize4bit(packed, { quantState: state }).size).toBe(0);
    });

    it("out and absmax receive the result", () => {
      const x = tensor(normals(130, 2), { device });
      const [packed, state] = quantizeNf4(x);
      const out = empty([13, 5], { dtype: "uint8", device });
      const absmax = empty([3], { device });
      const [given, second] = quantizeNf4(x, { out, absmax });
      expect(given).toBe(out);
      expect(bytesOf(out)).toEqual(bytesOf(packed));
      expect(absmax.floatsSync()).toEqual(state.absmax.floatsSync());
      second.dispose();
      const y = empty([130], { device });
      expect(dequantize4bit(out, { absmax, out: y, quantType: "nf4" })).toBe(y);
      expect(y.floatsSync()).toEqual(dequantize4bit(packed, { quantState: state }).floatsSync());
      expect(absmax.disposed).toBe(false);
    });
  });

  describe("memory", () => {
    // More than the threads of a small GPU hold at once, so that each of them does several parts.
    it.each([
      ["float32", 64],
      ["float16", 1024],
      ["bfloat16", 4096],
    ] as const)("a long tensor equals the plain rule, %s in blocks of %i", (dtype, blocksize) => {
      const stored = encode(normals(2 * 65536 + 4097, blocksize), dtype);
      using x = tensor(stored, { dtype, device });
      const [packed, state] = quantizeNf4(x, { blocksize });
      const expected = quantize4(decode(stored, dtype), blocksize, "nf4");
      using y = dequantize4bit(packed, { quantState: state });
      const back = encode(dequantize4(expected.codes, expected.absmax, blocksize, "nf4"), dtype);
      expect(crc32(bytesOf(packed))).toBe(crc32(expected.packed));
      expect([...state.absmax.floatsSync()]).toEqual(expected.absmax);
      expect(crc32(bytesOf(y))).toBe(crc32(new Uint8Array(back.buffer, back.byteOffset, back.byteLength)));
      for (const t of [packed, state]) t.dispose();
    });

    it.each(floats)("views that start anywhere, %s", (dtype) => {
      const n = 4500;
      const stored = encode(normals(n + 8, 11), dtype);
      using x = tensor(stored, { dtype, device });
      for (const start of [1, 2, 4, 8]) {
        for (const blocksize of [32, 512]) {
          using view = slice(x, 0, start, start + n);
          using buffer = empty([n], { dtype: "uint8", device });
          using out = slice(buffer, 0, start, start + n / 2);
          const [, state] = quantize4bit(view, { quantType: "fp4", blocksize, out });
          const expected = quantize4(decode(stored, dtype).slice(start, start + n), blocksize, "fp4");
          expect(bytesOf(out)).toEqual(expected.packed);
          expect([...state.absmax.floatsSync()]).toEqual(expected.absmax);
          using target = empty([n + 8], { dtype, device });
          using y = slice(target, 0, start, start + n);
          dequantize4bit(out, { absmax: state.absmax, blocksize, quantType: "fp4", out: y });
          const back = encode(dequantize4(expected.codes, expected.absmax, blocksize, "fp4"), dtype);
          expect(decode(y.dataSync(), dtype)).toEqual(decode(back, dtype));
          state.dispose();
        }
      }
    });

    it("everything is given back", () => {
      const x = ones([300], { device });
      const before = memory().tensors;
      for (const compressStatistics of [false, true]) {
        const [packed, state] = quantize4bit(x, { compressStatistics });
        const y = dequantize4bit(packed, { quantState: state });
        void state.code;
        for (const t of [packed, state, y]) t.dispose();
        expect(state.disposed).toBe(true);
      }
      expect(memory().tensors).toBe(before);
      const [packed, state] = tidy(() => quantize4bit(x, { compressStatistics: true }));
      expect(
        dequantize4bit(packed, { quantState: state })
          .floatsSync()
          .every((y) => y === 1),
      ).toBe(true);
      tidy(() => {
        const inner = quantize4bit(x, { compressStatistics: true });
        return inner[0].size;
      });
    });
  });

  describe("errors", () => {
    it("name the op, the rule and what came", () => {
      const x = ones([10], { device });
      expect(() => quantize4bit(x, { blocksize: 48 })).toThrow(
        "quantize4bit: blocksize must be one of 32, 64, 128, 256, 512, 1024, 2048, 4096, got 48",
      );
      expect(() => quantize4bit(x, { quantType: "nf5" as "nf4" })).toThrow(
        'quantize4bit: quantType must be one of nf4, fp4, af4, int4, got "nf5"',
      );
      expect(() => quantize4bit(x, { quantType: "af4", blocksize: 128 })).toThrow(
        "quantize4bit: af4 needs blocksize 64, got 128",
      );
      expect(() => quantize4bit(x, { quantStorage: "int32" as "int8" })).toThrow(
        'quantize4bit: quantStorage must be one of uint8, int8, float16, bfloat16, float32, float64, got "int32"',
      );
      expect(() => quantize4bit(x, { quantStorage: "float32" })).toThrow(
        "quantize4bit: the 5 packed bytes of shape [10] must be a multiple of the size of quantStorage float32, 4",
      );
      expect(() => quantize4bit(tensor([1, 2], { dtype: "int32", device }))).toThrow(
        "quantize4bit: A must be float32, float16 or bfloat16, got int32",
      );
      expect(() => quantize4bit(x, { out: empty([4], { dtype: "uint8", device }) })).toThrow(
        "quantize4bit: out must have 5 bytes, got 4",
      );
      expect(() => quantize4bit(x, { absmax: empty([2], { device }) })).toThrow(
        "quantize4bit: absmax must have 1 elements, got 2",
      );
      const [packed, state] = quantizeNf4(x);
      expect(() => dequantize4bit(packed, {})).toThrow("dequantize4bit: quantState, or absmax and out, must be given");
      expect(() => dequantizeFp4(packed, { quantState: state })).toThrow(
        "dequantizeFp4: quantState must be of type fp4, got nf4",
      );
      expect(() => dequantize4bit(packed, { quantState: state, dtype: "int8" })).toThrow(
        "dequantize4bit: the result must be float32, float16 or bfloat16, got int8",
      );
      expect(() => dequantize4bit(packed, { quantState: state, out: empty([9], { device }) })).toThrow(
        "dequantize4bit: out must have shape [10], got [9]",
      );
      expect(() => dequantize4bit(empty([4], { dtype: "uint8", device }), { quantState: state })).toThrow(
        "quantized4bit: packed must have 5 bytes for shape [10], got 4",
      );
      packed.dispose();
      expect(() => dequantize4bit(packed, { quantState: state })).toThrow("packed was disposed");
    });
  });
});

function errors(x: Float32Array, y: Float32Array): [abs: number, rel: number] {
  let abs = 0;
  let rel = 0;
  for (let i = 0; i < x.length; i++) {
    const difference = Math.abs((x[i] as number) - (y[i] as number));
    abs += difference;
    rel += difference / (Math.abs(x[i] as number) + 1e-8);
  }
  return [abs / x.length, rel / x.length];
}
