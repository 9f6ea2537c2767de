// QuantState: its dictionary forms as checkpoints hold them, and the JSON that Python writes.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { createDynamicMap, dequantize4bit, QuantState, quantize4bit, quantizeBlockwise } from "../../src/functional.js";
import type { DType, QuantStateInit, QuantType, Tensor } from "../../src/index.js";
import { fromBytes, memory, ones, tensor, zeros } from "../../src/index.js";
import { PythonFloat, pythonFloat, pythonJson } from "../../src/ops/python-json.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { normals } from "../helpers/random.js";
import type { FixtureTensor } from "../helpers/safetensors.js";
import { fixturePath, readSafetensors } from "../helpers/safetensors.js";
import { crc32 } from "../reference/quantize.js";

const bytesOf = (t: Tensor): Uint8Array => new Uint8Array(t.dataSync().buffer);
const textOf = (t: Tensor): string => new TextDecoder().decode(bytesOf(t));
const json = (text: string): Tensor => {
  const bytes = new TextEncoder().encode(text);
  return fromBytes(bytes, { dtype: "uint8", shape: [bytes.length] });
};

describe("Python's JSON", () => {
  it.each([
    [1, "1.0"],
    [0, "0.0"],
    [-0, "-0.0"],
    [2.5, "2.5"],
    [-12.75, "-12.75"],
    [100, "100.0"],
    [1e-5, "1e-05"],
    [1.5e-7, "1.5e-07"],
    [-1.5e-7, "-1.5e-07"],
    [0.0001, "0.0001"],
    [0.00012345, "0.00012345"],
    [1e16, "1e+16"],
    [1e15, "1000000000000000.0"],
    [1234567890123456, "1234567890123456.0"],
    [1.25e22, "1.25e+22"],
    [1e100, "1e+100"],
    [5e-324, "5e-324"],
    [1.5416666269302368, "1.5416666269302368"],
  ])("writes the float %d as %s", (value, text) => {
    expect(pythonFloat(value)).toBe(text);
    expect(Object.is(Number(text), value)).toBe(true);
  });

  it("separates with spaces, keeps the order and escapes what is not ASCII", () => {
    const value = { b: [1, new PythonFloat(1), true, null], a: 'é\u007f😀\n"' };
    expect(pythonJson(value)).toBe('{"b": [1, 1.0, true, null], "a": "\\u00e9\\u007f\\ud83d\\ude00\\n\\""}');
  });
});

describe.each(testDevices())("QuantState on %s", (device) => {
  const files = readSafetensors("functional/quant_state_packed.safetensors");
  const texts = JSON.parse(readFileSync(fixturePath("functional/quant_state_packed.json"), "utf8")) as Record<
    string,
    string
  >;
  const names = ["nf4-plain-fp32", "nf4-dq-bf16", "fp4-plain-fp16", "fp4-dq-fp32"];
  const toTensor = (t: FixtureTensor): Tensor =>
    fromBytes(t.bytes, { dtype: t.dtype as DType, shape: t.shape, device });
  const dictOf = (name: string): Record<string, Tensor> =>
    Object.fromEntries(
      [...files].filter(([key]) => key.startsWith(`${name}.weight.`)).map(([key, file]) => [key, toTensor(file)]),
    );

  describe("values", () => {
    it.each(names)("%s loads, dequantizes and saves byte for byte", (name) => {
      const state = QuantState.fromDict(dictOf(name));
      const weight = files.get(`${name}.weight`) as FixtureTensor;
      const want = files.get(`${name}.dequant`) as FixtureTensor;
      const y = dequantize4bit(toTensor(weight), { quantState: state });
      expect([y.dtype, y.shape]).toEqual([want.dtype, want.shape]);
      if (state.nested) {
        const exact = dequantize4bit(toTensor(weight), { quantState: state, dtype: "float32" });
        const rtol = want.dtype === "bfloat16" ? 4e-3 : 1e-6;
        const values = toTensor(want).floatsSync();
        expectClose(exact.floatsSync(), values, { atol: 1e-12, rtol });
      } else {
        expect(y.floatsSync().map((v) => v + 0)).toEqual(
          toTensor(want)
            .floatsSync()
            .map((v) => v + 0),
        );
      }
      const packed = state.asDict({ packed: true });
      const saved = Object.entries(packed).map(([key, value]) => [`${name}.weight.${key}`, bytesOf(value)] as const);
      const given = [...files].filter(([key]) => key.startsWith(`${name}.weight.`));
      expect(saved.map(([key]) => key).sort()).toEqual(given.map(([key]) => key).sort());
      for (const [key, bytes] of saved) expect(bytes, key).toEqual(files.get(key)?.bytes);
      const jsonKey = saved.map(([key]) => key).find((key) => key.includes("quant_state")) as string;
      expect(textOf(packed[jsonKey.slice(`${name}.weight.`.length)] as Tensor)).toBe(texts[jsonKey]);
    });

    it("the worked examples of the JSON", () => {
      const x = tensor(
        Float32Array.from({ length: 80 }, (_, i) => (((37 * i) % 101) - 50) / 32),
        { shape: [4, 20], device },
      );
      const options = { quantType: "nf4", blocksize: 32 } as const;
      const plain = quantize4bit(x, options)[1].asDict({ packed: true });
      const key = "quant_state.bitsandbytes__nf4";
      expect(crc32(bytesOf(plain[key] as Tensor))).toBe("bcb71c98");
      const nested = quantize4bit(x, { ...options, compressStatistics: true })[1].asDict({ packed: true });
      expect(crc32(bytesOf(nested[key] as Tensor))).toBe("e028ba7d");
      expect(Object.keys(nested)).toEqual(["absmax", "quant_map", "nested_absmax", "nested_quant_map", key]);
    });

    it("goes through both dictionary forms unchanged", () => {
      for (const compressStatistics of [false, true]) {
        for (const quantType of ["nf4", "fp4"] as const) {
          const x = tensor(normals(640, 1), { dtype: "bfloat16", shape: [10, 64], device });
          const [, state] = quantize4bit(x, { quantType, compressStatistics });
          for (const packed of [true, false]) {
            const again = QuantState.fromDict(state.asDict({ packed }), device);
            expect(again.equals(state)).toBe(true);
            expect([again.dtype, again.shape, again.nested]).toEqual(["bfloat16", [10, 64], compressStatistics]);
          }
        }
      }
    });

    it("equals compares settings and statistics", () => {
      const x = tensor(normals(128, 1), { device });
      const [, a] = quantize4bit(x, { quantType: "nf4" });
      const same = quantize4bit(x, { quantType: "nf4" })[1];
      expect(a.equals(same)).toBe(true);
      const others = [
        quantize4bit(x, { quantType: "fp4" })[1],
        quantize4bit(x, { quantType: "nf4", blocksize: 32 })[1],
        quantize4bit(x, { quantType: "nf4", compressStatistics: true })[1],
        quantize4bit(tensor(normals(128, 2), { device }), { quantType: "nf4" })[1],
        quantizeBlockwise(x)[1],
      ];
      expect(others.map((other) => a.equals(other))).toEqual(others.map(() => false));
    });

    it("equals tells every setting from every other, also where the statistics are equal", () => {
      const [, a] = quantize4bit(tensor(normals(128, 1), { device }), { quantType: "nf4", compressStatistics: true });
      const copy = (t: Tensor): Tensor => t.detach();
      const parts = () => ({
        ...{ absmax: copy(a.absmax), blocksize: 64, dtype: "float32", shape: [128], quantType: "nf4" as QuantType },
        ...{ offset: copy(a.offset as Tensor), state2: (a.state2 as QuantState).to(device) },
      });
      const make = (change: object) => new QuantState({ ...parts(), ...change } as QuantStateInit);
      expect(make({}).equals(a)).toBe(true);
      const changes = {
        dtype: "bfloat16",
        blocksize: 32,
        shape: [2, 64],
        quantType: "fp4",
        absmax: zeros([2], { dtype: "uint8", device }),
        offset: tensor(0.5, { device }),
      };
      for (const [key, value] of Object.entries(changes)) {
        const other = make({ [key]: value });
        expect([key, a.equals(other), other.equals(a)]).toEqual([key, false, false]);
      }
      const state2 = (a.state2 as QuantState).to(device);
      const deeper = new QuantState({
        ...{ absmax: copy(state2.absmax), code: copy(state2.code) },
        blocksize: 64,
        dtype: "float32",
      });
      expect(make({ state2: deeper }).equals(a)).toBe(false);
    });

    it("to a device shares or copies, and owns its part", () => {
      const [packed, state] = quantize4bit(ones([64], { device }), { quantType: "nf4", compressStatistics: true });
      const moved = state.to(device);
      state.dispose();
      expect(dequantize4bit(packed, { quantState: moved }).floatsSync()[0]).toBe(1);
    });
  });

  describe("memory", () => {
    it("the state of a dictionary outlives the dictionary's tensors", () => {
      const dict = dictOf("nf4-dq-bf16");
      const weight = toTensor(files.get("nf4-dq-bf16.weight") as FixtureTensor);
      const before = memory().tensors;
      const state = QuantState.fromDict(dict);
      for (const t of Object.values(dict)) t.dispose();
      const y = dequantize4bit(weight, { quantState: state });
      expect(y.size).toBe(1024);
      y.dispose();
      state.dispose();
      expect(memory().tensors).toBe(before - Object.keys(dict).length);
    });
  });

  describe("errors", () => {
    const base = (): Record<string, Tensor | string | number | number[]> => ({
      quant_type: "nf4",
      blocksize: 64,
      dtype: "float32",
      shape: [2, 64],
      absmax: ones([2], { device }),
      quant_map: quantize4bit(ones([2], { device }), { quantType: "nf4" })[1].code.detach(),
    });
    const nested = (): Record<string, Tensor | string | number | number[]> => ({
      ...base(),
      absmax: tensor(new Uint8Array(2), { device }),
      nested_absmax: ones([1], { device }),
      nested_blocksize: 256,
      nested_quant_map: createDynamicMap(true, 7, 8, { device }),
      nested_dtype: "float32",
      nested_offset: 1.5,
    });

    it("accepts what is right", () => {
      expect(QuantState.fromDict(base()).nested).toBe(false);
      expect(QuantState.fromDict(nested()).offset?.itemSync()).toBe(1.5);
    });

    it.each<[object, string]>([
      [{ blocksize: 48 }, "blocksize must be a power of two from 32 to 4096, got 48"],
      [{ blocksize: 8192 }, "blocksize must be a power of two from 32 to 4096, got 8192"],
      [{ dtype: "int8" }, 'dtype must be float32, float16 or bfloat16, got "int8"'],
      [{ quant_type: "af4" }, 'quant_type must be nf4 or fp4, got "af4"'],
      [{ shape: [] }, "shape must be a list of sizes, got []"],
      [{ shape: [1.5, 2] }, "shape must be a list of sizes, got [1.5,2]"],
      [{ shape: [2 ** 52, 2 ** 20] }, "shape is too large"],
      [{ shape: [3, 64] }, '"absmax" must have 3 elements, got 2'],
      [{ absmax: undefined }, '"absmax" is missing'],
      [{ absmax: 1 }, '"absmax" must be a tensor, got 1'],
      [{ absmax: tensor(new Uint8Array(2)) }, '"absmax" must be float32, got uint8'],
      [{ absmax: tensor([1, NaN]) }, '"absmax" must be finite and not negative, got NaN at 1'],
      [{ absmax: tensor([-1, 1]) }, '"absmax" must be finite and not negative, got -1 at 0'],
      [{ quant_map: ones([16]) }, "quant_map differs from nf4 at 0"],
      [{ quant_map: (base()["quant_map"] as Tensor).add(1e-5) }, "quant_map differs from nf4 at 0"],
      [{ surprise: 1 }, 'unknown key "surprise"'],
      [{ nested_offset: 1 }, '"nested_absmax" is missing in a nested state'],
    ])("refuses %o", (change, message) => {
      const check = (): unknown => QuantState.fromDict({ ...base(), ...change });
      expect(check).toThrow(message);
      expect(check).toThrow(expect.objectContaining({ code: "ERR_BNB_FORMAT" }));
    });

    it.each<[object, string]>([
      [{ nested_blocksize: 32 }, "nested_blocksize must be a power of two from 64 to 4096, got 32"],
      [{ nested_dtype: "float16" }, 'nested_dtype must be float32, got "float16"'],
      [{ nested_offset: NaN }, "nested_offset must be a finite number"],
      [{ nested_offset: 1e300 }, "nested_offset must be a finite number"],
      [{ nested_offset: undefined }, '"nested_offset" is missing in a nested state'],
      [{ nested_absmax: tensor([Infinity]) }, '"nested_absmax" must be finite and not negative'],
      [
        { nested_quant_map: tensor(Float32Array.from({ length: 256 }, (_, i) => -i)) },
        "nested_quant_map must be ascending",
      ],
    ])("refuses a nested state with %o", (change, message) => {
      expect(() => QuantState.fromDict({ ...nested(), ...change })).toThrow(message);
    });

    it.each<[string, string]>([
      ["{", "quant_state must be JSON"],
      ["[]", "quant_state must be a JSON object"],
      ['{"quant_type": "fp4", "blocksize": 64, "dtype": "float32", "shape": [2, 64]}', 'quant_type must be "nf4"'],
      ['{"quant_type": "nf4", "blocksize": NaN, "dtype": "float32", "shape": [2, 64]}', "quant_state must be JSON"],
      [" ".repeat(65537), "quant_state must be at most 65536 bytes"],
    ])("refuses the JSON %s", (text, message) => {
      const { absmax, quant_map } = base();
      const dict = { absmax, quant_map, "quant_state.bitsandbytes__nf4": json(text) };
      expect(() => QuantState.fromDict(dict)).toThrow(message);
    });

    it("needs exactly one quant_state", () => {
      const { absmax, quant_map } = base();
      expect(() => QuantState.fromDict({ absmax, quant_map })).toThrow("neither quant_type nor a packed quant_state");
      const two = {
        absmax,
        "a.quant_state.bitsandbytes__nf4": json("{}"),
        "b.quant_state.bitsandbytes__nf4": json("{}"),
      };
      expect(() => QuantState.fromDict(two)).toThrow("one quant_state is needed, got 2");
    });

    it("refuses to save what has no format", () => {
      const x = ones([64], { device });
      const rule = "QuantState.asDict: only nf4 and fp4 have a file format, got";
      expect(() => quantize4bit(x, { quantType: "af4" })[1].asDict()).toThrow(`${rule} af4`);
      expect(() => quantizeBlockwise(x)[1].asDict({ packed: true })).toThrow(`${rule} an 8-bit state`);
      const broken = tensor([1, NaN], { device });
      const [, state] = quantize4bit(broken, { quantType: "nf4", compressStatistics: true });
      expect(() => state.asDict({ packed: true })).toThrow("the offset must be finite to be saved, got NaN");
    });

    it("an 8-bit state is no 4-bit weight", () => {
      const [codes, state] = quantizeBlockwise(ones([64], { device }));
      expect(() => dequantize4bit(codes, { quantState: state })).toThrow("a 4-bit state is needed");
    });
  });
});
