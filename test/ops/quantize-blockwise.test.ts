// 8-bit quantization: against the plain rule bit for bit, and against what bitsandbytes made.
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  createDynamicMap,
  createFp8Map,
  createLinearMap,
  dequantizeBlockwise,
  quantizeBlockwise,
} from "../../src/functional.js";
import type { DType, Tensor } from "../../src/index.js";
import { empty, fromBytes, memory, ones, slice, tensor, tidy } from "../../src/index.js";
import type { QuantizeBlockwiseOptions } from "../../src/ops/index.js";
import { expandAbsmax } from "../../src/ops/index.js";
import { addon } from "../../src/tensor/addon.js";
import { decode, encode } from "../../src/tensor/dtype.js";
import { run } from "../../src/tensor/run.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { normals } from "../helpers/random.js";
import type { FixtureTensor } from "../helpers/safetensors.js";
import { fixturePath, readSafetensors } from "../helpers/safetensors.js";
import { tile, tiled } from "../helpers/tiles.js";
import { code8, crc32, dequantize8, quantize8, quantizeScales } from "../reference/quantize.js";

const blocksizes = [64, 128, 256, 512, 1024, 2048, 4096];
const floats: readonly DType[] = ["float32", "float16", "bfloat16"];
const maps = readSafetensors("functional/codebooks.safetensors");
const signedMap = maps.get("dynamic_signed")?.values as Float32Array;
const unsignedMap = maps.get("dynamic_unsigned")?.values as Float32Array;

const bytesOf = (t: Tensor): Uint8Array => new Uint8Array(t.dataSync().buffer);
const toTensor = (t: FixtureTensor, device: string): Tensor =>
  fromBytes(t.bytes, { dtype: t.dtype as DType, shape: t.shape, device });
const next = (x: number, step: number): number => {
  const f = new Float32Array([x]);
  const u = new Int32Array(f.buffer);
  u[0] = (u[0] as number) + (x > 0 ? step : -step);
  return f[0] as number;
};

function compare(
  values: ArrayLike<number>,
  dtype: DType,
  map: Float32Array,
  blocksize: number,
  device: string,
  code = tensor(map, { device }),
): void {
  const stored = encode(values, dtype);
  const x = tensor(stored, { dtype, device });
  const [codes, state] = quantizeBlockwise(x, { code, blocksize });
  const expected = quantize8(decode(stored, dtype), blocksize, map);
  expect([...bytesOf(codes)], "codes").toEqual(expected.codes);
  expect([...state.absmax.floatsSync()], "absmax").toEqual(expected.absmax);
  const y = dequantizeBlockwise(codes, { quantState: state });
  expect(y.dtype).toBe(dtype);
  const back = encode(dequantize8(expected.codes, expected.absmax, blocksize, map), dtype);
  expect(decode(y.dataSync(), dtype), "dequantized").toEqual(decode(back, dtype));
  for (const t of [x, codes, state, y]) t.dispose();
}

describe.each(testDevices())("quantizeBlockwise on %s", (device) => {
  describe("values", () => {
    it("a worked example", () => {
      const x = tensor(
        Float32Array.from({ length: 80 }, (_, i) => (((37 * i) % 101) - 50) / 32),
        { shape: [4, 20], device },
      );
      const [codes, state] = quantizeBlockwise(x, { blocksize: 64 });
      expect(codes.shape).toEqual([4, 20]);
      const bytes = bytesOf(codes);
      expect([...bytes.slice(0, 16)]).toEqual([0, 52, 218, 14, 78, 232, 28, 193, 246, 42, 208, 4, 56, 222, 18, 127]);
      expect([...bytes.slice(64)]).toEqual([64, 230, 24, 190, 244, 39, 205, 0, 53, 220, 14, 85, 234, 29, 195, 249]);
      expect(crc32(bytes)).toBe("e5402efa");
      expect([...state.absmax.floatsSync()]).toEqual([1.5625, 1.53125]);
    });

    const codesOf = (values: number[], code?: Tensor): number[] =>
      [...bytesOf(quantizeBlockwise(tensor([1, ...values], { device }), code ? { code } : {})[0])].slice(1);

    it("ties and edges of the signed map", () => {
      const edges: [x: number, code: number][] = [
        [0, 127],
        [-0, 127],
        [1e-7, 127],
        [-1e-7, 127],
        [2.7500001920088835e-7, 128],
        [-2.7500001920088835e-7, 126],
        [0.9964843988418579, 254],
        [-0.9859374761581421, 0],
        [1, 255],
        [-1, 0],
        [0.5, 219],
        [-0.5, 35],
        [0.1, 190],
        [-0.1, 64],
        [0.001, 142],
      ];
      expect(codesOf(edges.map(([x]) => x))).toEqual(edges.map(([, code]) => code));
    });

    it("ties and edges of the unsigned map", () => {
      const edges: [x: number, code: number][] = [
        [0, 0],
        [1e-7, 0],
        [1.6250001522166713e-7, 0],
        [5.499999815583578e-7, 2],
        [0.998242199420929, 254],
        [1, 255],
        [0.5, 183],
        [0.1, 126],
        [0.001, 30],
        [-0.3, 0],
      ];
      const code = createDynamicMap(false, 7, 8, { device });
      expect(
        codesOf(
          edges.map(([x]) => x),
          code,
        ),
      ).toEqual(edges.map(([, c]) => c));
    });

    const repeated = Float32Array.from({ length: 256 }, (_, i) => Math.floor(i / 3) / 85);
    const custom: [name: string, map: Float32Array][] = [
      ["signed dynamic", signedMap],
      ["unsigned dynamic", unsignedMap],
      ["signed linear", createLinearMap().floatsSync()],
      ["unsigned linear", createLinearMap(false).floatsSync()],
      ["signed fp8", createFp8Map().floatsSync()],
      ["repeated values", repeated],
      ["random", Float32Array.from(normals(256, 9)).sort()],
    ];
    it.each(custom)("equals the plain rule around every threshold, %s map", (_, map) => {
      const edges: number[] = [];
      for (let i = 0; i < 255; i++) {
        const t = Math.fround(Math.fround((map[i] as number) + (map[i + 1] as number)) * 0.5);
        for (let k = -3; k <= 3; k++) if (Math.abs(t) < 0.999) edges.push(t === 0 ? k * 1.4e-45 : next(t, k));
      }
      for (const scale of [1, 2 ** 30]) {
        const x: number[] = [];
        for (const edge of edges) {
          if (x.length % 256 === 0) x.push(scale);
          x.push(edge * scale);
        }
        compare(x, "float32", map, 256, device);
        compare(tiled(x, 2 * tile), "float32", map, 256, device);
      }
    });

    const awkward = custom.flatMap(([name, map]) => [64, 1024].map((size) => [name, size, map] as const));
    it.each(awkward)("equals the plain rule on awkward blocks, %s map, blocks of %i", (_, blocksize, map) => {
      const block = (make: (i: number) => number): number[] => Array.from({ length: blocksize }, (__, i) => make(i));
      const random = normals(blocksize, 6);
      const at = (i: number): number => random[i] as number;
      const blocks = [
        ...block(() => 0),
        ...block((i) => (i % 2 ? -0 : 0)),
        ...block((i) => (i === 3 ? NaN : at(i))),
        ...block((i) => (i === 63 ? -Infinity : at(i))),
        ...block((i) => at(i) * 1e-39),
        ...block((i) => (i === 7 ? 2 ** -126 : at(i) * 1e-42)),
        ...block((i) => (i === 7 ? 1.4e-45 : 0)),
        ...block((i) => at(i) * 3e37),
      ];
      const end = random.slice(0, 33);
      compare([...blocks, ...end], "float32", map, blocksize, device);
      compare([...tiled(blocks, 2 * tile), ...end], "float32", map, blocksize, device);
    });

    it("a zero takes the code of 0 in every map", () => {
      const codes = [
        createDynamicMap(),
        createDynamicMap(false),
        createLinearMap(),
        createLinearMap(false),
        createFp8Map(),
      ];
      const found = codes.map(
        (code) => bytesOf(quantizeBlockwise(empty0(device), { code: onDevice(code, device) })[0])[0],
      );
      expect(found).toEqual([127, 0, 127, 0, 128]);
    });

    it.each(blocksizes)("sizes around the tiles of a thread block, blocks of %i", (blocksize) => {
      for (const n of [1, 2, 4].flatMap((tiles) => [-1, 0, 1, 65].map((rest) => tiles * tile + rest)))
        for (const dtype of floats) compare(normals(n, blocksize), dtype, signedMap, blocksize, device);
    });

    it.each(floats)("random %s of every blocksize equals the plain rule", (dtype) => {
      for (const map of [signedMap, unsignedMap]) {
        const code = tensor(map, { device });
        for (const blocksize of blocksizes) {
          compare(normals(blocksize + 77, blocksize), dtype, map, blocksize, device, code);
        }
      }
    });

    it("round-trips for any size, dtype, map and blocksize", () => {
      const cases = fc.record({
        n: fc.integer({ min: 0, max: 3000 }),
        seed: fc.integer({ min: 0, max: 1 << 20 }),
        exponent: fc.integer({ min: -30, max: 12 }),
        dtype: fc.constantFrom(...floats),
        map: fc.constantFrom(...custom.map(([, map]) => map)),
        blocksize: fc.constantFrom(...blocksizes),
      });
      fc.assert(
        fc.property(cases, ({ n, seed, exponent, dtype, map, blocksize }) => {
          const values = normals(n, seed).map((value) => value * 2 ** exponent);
          compare(values, dtype, map, blocksize, device);
        }),
        { numRuns: 60 },
      );
    });

    it("every code decodes to its value and encodes back", () => {
      for (const map of [signedMap, unsignedMap]) {
        const code = tensor(map, { device });
        const all = tensor(
          Uint8Array.from({ length: 256 }, (_, i) => i),
          { device },
        );
        const y = dequantizeBlockwise(all, { absmax: ones([1], { device }), code });
        expect(y.floatsSync()).toEqual(map);
        expect(bytesOf(quantizeBlockwise(y, { code })[0])).toEqual(bytesOf(all));
      }
      expect(code8(signedMap, 0)).toBe(127);
    });

    it.each([64, 256])("nested with blocks of %i equals the plain rule", (blocksize) => {
      const x = normals(blocksize * 150 + 9, 4);
      const [codes, state] = quantizeBlockwise(tensor(x, { device }), { blocksize, nested: true });
      const first = quantize8(x, blocksize, signedMap);
      const second = quantizeScales(first.absmax, blocksize, signedMap);
      expect([...bytesOf(codes)]).toEqual(first.codes);
      expect(state.state2?.blocksize).toBe(blocksize);
      expect(state.offset?.itemSync()).toBe(second.offset);
      expect([...bytesOf(state.absmax)]).toEqual(second.codes);
      expect([...(state.state2?.absmax.floatsSync() ?? [])]).toEqual(second.absmax);
      expectClose(expandAbsmax(state).floatsSync(), second.expanded, { atol: 0, rtol: 1.2e-7 });
      const y = dequantizeBlockwise(codes, { quantState: state }).floatsSync();
      expectClose(y, dequantize8(first.codes, second.expanded, blocksize, signedMap), { atol: 0, rtol: 2.4e-7 });
    });

    // More than the threads of a small GPU hold at once, so that each of them does several parts.
    it.each([
      ["float32", "signed", signedMap, 64],
      ["float16", "fp8", createFp8Map().floatsSync(), 1024],
      ["bfloat16", "unsigned", unsignedMap, 4096],
    ] as const)("a long tensor equals the plain rule, %s, %s map", (dtype, _, map, blocksize) => {
      const stored = encode(normals(2 * 65536 + 4097, blocksize), dtype);
      using x = tensor(stored, { dtype, device });
      using code = tensor(map, { device });
      const [codes, state] = quantizeBlockwise(x, { blocksize, code });
      const expected = quantize8(decode(stored, dtype), blocksize, map);
      using y = dequantizeBlockwise(codes, { quantState: state });
      const back = encode(dequantize8(expected.codes, expected.absmax, blocksize, map), dtype);
      expect(crc32(bytesOf(codes))).toBe(crc32(Uint8Array.from(expected.codes)));
      expect([...state.absmax.floatsSync()]).toEqual(expected.absmax);
      expect(crc32(bytesOf(y))).toBe(crc32(new Uint8Array(back.buffer, back.byteOffset, back.byteLength)));
      for (const t of [codes, state]) t.dispose();
    });

    it.each(floats)("views that start anywhere, %s", (dtype) => {
      const n = 4501;
      const stored = encode(normals(n + 8, 12), dtype);
      using x = tensor(stored, { dtype, device });
      for (const start of [1, 2, 4, 8]) {
        for (const blocksize of [64, 512]) {
          using view = slice(x, 0, start, start + n);
          using buffer = empty([n + 8], { dtype: "uint8", device });
          using out = slice(buffer, 0, start, start + n);
          const [, state] = quantizeBlockwise(view, { blocksize, out });
          const expected = quantize8(decode(stored, dtype).slice(start, start + n), blocksize, signedMap);
          expect([...bytesOf(out)]).toEqual(expected.codes);
          expect([...state.absmax.floatsSync()]).toEqual(expected.absmax);
          using target = empty([n + 8], { dtype, device });
          using y = slice(target, 0, start, start + n);
          dequantizeBlockwise(out, { absmax: state.absmax, blocksize, out: y });
          const back = encode(dequantize8(expected.codes, expected.absmax, blocksize, signedMap), dtype);
          expect(decode(y.dataSync(), dtype)).toEqual(decode(back, dtype));
          state.dispose();
        }
      }
    });

    it.each([0, 1, 31, 4096, 4097, 70001])("the mean of %i scales is rounded once", (n) => {
      const x = Float32Array.from(normals(n, n + 1), Math.abs);
      using given = tensor(x, { device });
      const [mean] = run(addon.meanFloat64, given);
      expect(mean.itemSync()).toBe(n ? Math.fround(x.reduce((sum, value) => sum + value, 0) / n) : 0);
      mean.dispose();
    });

    it("the round trip has the published error", () => {
      const n = 1024 * 1024;
      const normal = Float32Array.from(normals(n, 8));
      const uniform = normal.map((_, i) => ((i * 2654435761) % 2 ** 32) / 2 ** 32);
      const check = (
        data: Float32Array,
        abs: number,
        rel: number,
        options: QuantizeBlockwiseOptions,
        dtype: DType,
      ): void => {
        const stored = encode(data, dtype);
        const x = tensor(stored, { dtype, device });
        const [codes, state] = quantizeBlockwise(x, options);
        const y = dequantizeBlockwise(codes, { quantState: state });
        expect(y.dtype).toBe(dtype);
        const name = `${Object.keys(options).join(", ")} of ${options.blocksize}`;
        const [a, r] = errors(decode(stored, dtype), y.floatsSync());
        expect(a, name).toBeLessThan(abs);
        expect(r, name).toBeLessThan(rel);
        for (const t of [x, codes, state, y]) t.dispose();
      };
      for (const blocksize of blocksizes) {
        for (const nested of [false, true]) check(normal, 0.011, 0.018, { blocksize, nested }, "float32");
        check(uniform, 0.0036, 0.015, { blocksize }, "float32");
        check(uniform, 0.0023, 0.012, { blocksize, code: createDynamicMap(false, 7, 8, { device }) }, "float32");
      }
      for (const dtype of ["float16", "bfloat16"] as const) check(normal, 0.011, 0.018, { blocksize: 256 }, dtype);
    });
  });

  describe("files made by bitsandbytes", () => {
    interface Case {
      case: string;
      input: string;
      map: "signed" | "unsigned";
      blocksize: number;
      nested: boolean;
    }
    const { cases } = JSON.parse(readFileSync(fixturePath("functional/quant8.json"), "utf8")) as { cases: Case[] };
    const inputs = readSafetensors("functional/quant8_inputs.safetensors");
    const expected = readSafetensors("functional/quant8_expected.safetensors");
    const part = (c: Case, name: string): FixtureTensor => expected.get(`${c.case}.${name}`) as FixtureTensor;

    it.each(cases)("$case", (c) => {
      const x = toTensor(inputs.get(c.input) as FixtureTensor, device);
      const map = c.map === "signed" ? signedMap : unsignedMap;
      const code = createDynamicMap(c.map === "signed", 7, 8, { device });
      const [codes, state] = quantizeBlockwise(x, { code, blocksize: c.blocksize, nested: c.nested });
      const values = x.floatsSync();
      const reference = quantize8(values, c.blocksize, map);
      expect([...bytesOf(codes)]).toEqual(reference.codes);
      // Theirs takes the lower index of a tie and may differ within two ulp of a threshold.
      const theirs = part(c, "codes").bytes;
      const differing = reference.codes.filter((mine, i) => {
        const other = theirs[i] as number;
        if (mine === other) return false;
        const scale = reference.absmax[Math.floor(i / c.blocksize)] as number;
        const v = scale > 0 ? (values[i] as number) / scale : 0;
        const distance = (q: number): number => Math.abs((map[q] as number) - v);
        return Math.abs(mine - other) > 1 || Math.abs(distance(mine) - distance(other)) > 4e-7 * Math.abs(v);
      });
      expect(differing).toEqual([]);
      if (!c.nested) {
        const tail = Math.floor(values.length / c.blocksize);
        const mine = [...state.absmax.floatsSync()].map((s, b) => (b === tail && s === 0 ? Math.fround(1e-38) : s));
        expect(mine).toEqual([...(part(c, "absmax").values as Float32Array)]);
      } else {
        const offset = state.offset?.itemSync() as number;
        expectClose([offset], part(c, "offset").values as Float32Array, { atol: 0, rtol: 1e-6 });
        const given = part(c, "absmax").bytes;
        bytesOf(state.absmax).forEach((q, b) => {
          expect(Math.abs(q - (given[b] as number)), `scale ${b}`).toBeLessThanOrEqual(1);
        });
      }
    });

    it.each(cases.filter((c) => !c.nested))("$case, dequantized from their codes", (c) => {
      const want = part(c, "dequant");
      const y = dequantizeBlockwise(toTensor(part(c, "codes"), device), {
        absmax: toTensor(part(c, "absmax"), device),
        code: createDynamicMap(c.map === "signed", 7, 8, { device }),
        blocksize: c.blocksize,
        out: empty(want.shape, { dtype: want.dtype as DType, device }),
      });
      expect(bytesOf(y)).toEqual(want.bytes);
    });
  });

  describe("dtypes", () => {
    it("a bare absmax gives float32", () => {
      const [codes, state] = quantizeBlockwise(tensor(normals(100, 1), { dtype: "float16", device }));
      expect(dequantizeBlockwise(codes, { quantState: state }).dtype).toBe("float16");
      expect(dequantizeBlockwise(codes, { absmax: state.absmax }).dtype).toBe("float32");
    });
  });

  describe("shapes", () => {
    it("codes have the shape of the input; empty tensors are fine", () => {
      for (const shape of [[], [1], [7, 3, 5], [2, 0, 3]]) {
        for (const nested of [false, true]) {
          const [codes, state] = quantizeBlockwise(ones(shape, { device }), { nested });
          expect([codes.shape, codes.dtype]).toEqual([shape, "uint8"]);
          expect(dequantizeBlockwise(codes, { quantState: state }).shape).toEqual(shape);
        }
      }
    });

    it("out and absmax receive the result", () => {
      const x = tensor(normals(130, 2), { device });
      const [codes, state] = quantizeBlockwise(x, { blocksize: 64 });
      const out = empty([130], { dtype: "uint8", device });
      const absmax = empty([3], { device });
      expect(quantizeBlockwise(x, { blocksize: 64, out, absmax })[0]).toBe(out);
      expect(bytesOf(out)).toEqual(bytesOf(codes));
      expect(absmax.floatsSync()).toEqual(state.absmax.floatsSync());
    });
  });

  describe("memory", () => {
    it("everything is given back", () => {
      const x = ones([300], { device });
      const code = createLinearMap(true, 8, true, { device });
      const before = memory().tensors;
      for (const options of [{}, { nested: true }, { code }]) {
        const [codes, state] = quantizeBlockwise(x, options);
        const y = dequantizeBlockwise(codes, { quantState: state });
        for (const t of [codes, state, y]) t.dispose();
      }
      const [codes, state] = tidy(() => quantizeBlockwise(x, { nested: true }));
      const scales = expandAbsmax(state);
      const y = dequantizeBlockwise(codes, { absmax: scales });
      expect(y.floatsSync()[0]).toBe(1);
      for (const t of [scales, y]) t.dispose();
      codes.dispose();
      state.dispose();
      tidy(() => void quantizeBlockwise(x, { nested: true }));
      expect(memory().tensors).toBe(before);
      expect(code.disposed).toBe(false);
    });
  });

  describe("errors", () => {
    it("name the op, the rule and what came", () => {
      const x = ones([10], { device });
      expect(() => quantizeBlockwise(x, { blocksize: 32 })).toThrow(
        "quantizeBlockwise: blocksize must be one of 64, 128, 256, 512, 1024, 2048, 4096, got 32",
      );
      expect(() => quantizeBlockwise(tensor([1], { dtype: "uint8", device }))).toThrow(
        "quantizeBlockwise: A must be float32, float16 or bfloat16, got uint8",
      );
      expect(() => quantizeBlockwise(x, { code: ones([16], { device }) })).toThrow(
        "quantizeBlockwise: code must have 256 values, got 16",
      );
      const descending = Float32Array.from({ length: 256 }, (_, i) => -i);
      expect(() => quantizeBlockwise(x, { code: tensor(descending, { device }) })).toThrow(
        "quantizeBlockwise: code must be ascending, got -1 at 1",
      );
      const infinite = Float32Array.from({ length: 256 }, (_, i) => (i === 255 ? Infinity : i));
      expect(() => quantizeBlockwise(x, { code: tensor(infinite, { device }) })).toThrow(
        "quantizeBlockwise: code must be finite, got Infinity at 255",
      );
      expect(() => quantizeBlockwise(x, { code: tensor(new Uint8Array(256), { device }) })).toThrow(
        "quantizeBlockwise: code must be float32, got uint8",
      );
      expect(() => quantizeBlockwise(x, { out: empty([9], { dtype: "uint8", device }) })).toThrow(
        "quantizeBlockwise: out must have 10 elements, got 9",
      );
      const [codes, state] = quantizeBlockwise(x);
      expect(() => dequantizeBlockwise(codes, {})).toThrow("dequantizeBlockwise: quantState or absmax must be given");
      expect(() => dequantizeBlockwise(x, { quantState: state })).toThrow(
        "dequantizeBlockwise: A must be uint8, got float32",
      );
      expect(() => dequantizeBlockwise(codes, { absmax: ones([2], { device }) })).toThrow(
        "dequantizeBlockwise: absmax must have 1 elements, got 2",
      );
    });
  });
});

function empty0(device: string): Tensor {
  return tensor(new Float32Array(1), { device });
}

function onDevice(code: Tensor, device: string): Tensor {
  return tensor(code.floatsSync(), { device });
}

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
