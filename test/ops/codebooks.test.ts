// The tables and maps, bit for bit: by the published CRC32s and by what bitsandbytes made.
import { describe, expect, it } from "vitest";
import { createDynamicMap, createFp8Map, createLinearMap, createNormalMap, get4bitType } from "../../src/functional.js";
import type { Tensor } from "../../src/index.js";
import { copyInto, full, quantizeBlockwise, tensor } from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { normals } from "../helpers/random.js";
import { readSafetensors } from "../helpers/safetensors.js";
import { crc32, quantize8 } from "../reference/quantize.js";

const bytesOf = (t: Tensor): Uint8Array => new Uint8Array(t.dataSync().buffer);

describe.each(testDevices())("codebooks on %s", (device) => {
  describe("values", () => {
    it.each([
      ["nf4", "c471f81a"],
      ["fp4", "0967dbc3"],
      ["af4", "8e1d711a"],
    ] as const)("%s has the published checksum", (name, crc) => {
      expect(crc32(bytesOf(get4bitType(name, { device })))).toBe(crc);
    });

    it("int4 counts sevenths down and up again, with a zero of each sign", () => {
      const values = get4bitType("int4", { device }).floatsSync();
      const sevenths = [7, 6, 5, 4, 3, 2, 1, 0].map((k) => Math.fround(k / 7));
      expect([...values]).toEqual([...sevenths, ...sevenths.map((m) => -m).reverse()]);
      expect(Object.is(values[8], -0)).toBe(true);
    });

    it.each([
      ["dynamic signed", () => createDynamicMap(), "1b137aeb"],
      ["dynamic unsigned", () => createDynamicMap(false), "e871278f"],
      ["linear signed", () => createLinearMap(true), "6e33173d"],
      ["linear unsigned", () => createLinearMap(false), "4ea85fff"],
      ["linear signed without zero", () => createLinearMap(true, 8, false), "1fd2d031"],
      ["fp8 e4m3", () => createFp8Map(true, 4, 3), "f438aee5"],
      ["fp8 e5m2", () => createFp8Map(), "c122e357"],
      ["fp8 e3m4", () => createFp8Map(true, 3, 4), "7b8d77df"],
      ["fp8 e2m5", () => createFp8Map(true, 2, 5), "8d4659f5"],
      ["fp8 unsigned e4m4", () => createFp8Map(false, 4, 4), "060c721c"],
    ] as const)("the %s map has the published checksum", (_, make, crc) => {
      expect(crc32(bytesOf(make()))).toBe(crc);
    });

    it("equals the maps that bitsandbytes makes", () => {
      const files = readSafetensors("functional/codebooks.safetensors");
      const mine: Record<string, Tensor> = {
        nf4: get4bitType("nf4"),
        fp4: get4bitType("fp4"),
        dynamic_signed: createDynamicMap(true, 7, 8, { device }),
        dynamic_unsigned: createDynamicMap(false, 7, 8, { device }),
        fp8_e4m3_signed: createFp8Map(true, 4, 3, 8, { device }),
        fp8_e5m2_signed: createFp8Map(true, 5, 2, 8, { device }),
        linear_signed: createLinearMap(true, 8, true, { device }),
        linear_unsigned: createLinearMap(false, 8, true, { device }),
      };
      expect(Object.keys(mine).sort()).toEqual([...files.keys()].sort());
      for (const [name, file] of files) expect(bytesOf(mine[name] as Tensor), name).toEqual(file.bytes);
    });

    it("known entries of the dynamic maps stand where they should", () => {
      const signed = createDynamicMap().floatsSync();
      const unsigned = createDynamicMap(false).floatsSync();
      expect([...signed.slice(0, 3)]).toEqual([-0.992968738079071, -0.9789062738418579, -0.96484375]);
      expect([...signed.slice(126, 130)]).toEqual([
        -5.500000384017767e-7, 0, 5.500000384017767e-7, 3.250000190746505e-6,
      ]);
      expect([signed[191], signed[254], signed[255]]).toEqual([0.10703125596046448, 0.992968738079071, 1]);
      expect([...unsigned.slice(0, 3)]).toEqual([0, 3.2500003044333425e-7, 7.749999895168003e-7]);
      expect([unsigned[127], unsigned[254], unsigned[255]]).toEqual([0.103515625, 0.9964843988418579, 1]);
    });

    it("a map that was changed in place is read again, and must hold again", () => {
      const x = tensor(normals(512, 7), { device });
      const code = createDynamicMap(true, 7, 8, { device });
      const compare = (): void => {
        const values = code.floatsSync();
        const [codes, { absmax }] = quantizeBlockwise(x, { code, blocksize: 64 });
        const want = quantize8(x.floatsSync(), 64, values);
        expect([...codes.dataSync()]).toEqual(want.codes);
        expect([...absmax.floatsSync()]).toEqual(want.absmax);
      };
      compare();
      copyInto(code, createLinearMap(true, 8, true, { device }));
      compare();
      copyInto(code, createDynamicMap(true, 7, 8, { device }));
      compare();
      copyInto(code, full([256], Number.NaN, { device }));
      expect(() => quantizeBlockwise(x, { code })).toThrow("quantizeBlockwise: code must be finite, got NaN at 0");
    });

    it("the normal map ends in the NF4 values", () => {
      const map = createNormalMap().floatsSync();
      const nf4 = get4bitType("nf4").floatsSync();
      expect([...map.slice(0, 7), 0, ...map.slice(248)]).toEqual([...nf4]);
      expect(map.slice(7, 248).every((value) => value === 0)).toBe(true);
      const even = createNormalMap(0.9677083, false).floatsSync();
      expect(even.filter((value) => value !== 0)).toHaveLength(14);
      expect([...even]).toEqual([...even].map((value) => -value + 0).reverse());
    });

    it("smaller formats are padded with zeros", () => {
      // Signed maps of fewer than 8 bits have an odd number of values whether a zero is asked for or not; what is missing
      // of 256 are zeros in their middle.
      for (const [signed, bits, addZero, count] of [
        ...[2, 4, 7].flatMap((b) => [true, false].map((zero) => [true, b, zero, 2 ** b - 1] as const)),
        ...[2, 4, 7].flatMap((b) => [true, false].map((zero) => [false, b, zero, 2 ** b] as const)),
      ]) {
        const values = [...createLinearMap(signed, bits, addZero).floatsSync()];
        const low = signed ? -1 : 0;
        const points = Array.from({ length: count }, (_, i) =>
          count === 1 ? low : low + ((1 - low) * i) / (count - 1),
        );
        const half = Math.floor(count / 2);
        const expected = [...points.slice(0, half), ...Array<number>(256 - count).fill(0), ...points.slice(half)];
        expectClose(values, expected, { atol: 1e-7, rtol: 0 });
      }
      const linear = createLinearMap(true, 4).floatsSync();
      expect([linear[0], linear[255], linear.filter((value) => value !== 0).length]).toEqual([-1, 1, 15]);
      for (const map of [createFp8Map(true, 2, 1, 4), createDynamicMap(true, 3, 4)]) {
        const values = map.floatsSync();
        expect(values).toHaveLength(256);
        expect(values.every((value, i) => i === 0 || value >= (values[i - 1] as number))).toBe(true);
        expect(new Set(values).size).toBeLessThanOrEqual(16);
      }
      // FP4's table has 1/192 as its smallest magnitude, this map 1/48.
      const e2m1 = createFp8Map(true, 2, 1, 4).floatsSync();
      expect(Math.min(...e2m1.filter((value) => value > 0))).toBeCloseTo(1 / 48, 8);
    });
  });

  describe("errors", () => {
    it("name what was given", () => {
      expect(() => get4bitType("nf3" as "nf4")).toThrow(
        "get4bitType: quantType must be one of nf4, fp4, af4, int4, got nf3",
      );
      expect(() => get4bitType(Object.create(null))).toThrow(
        "get4bitType: quantType must be one of nf4, fp4, af4, int4",
      );
      expect(() => get4bitType("af4", { blocksize: 128 })).toThrow("get4bitType: af4 needs blocksize 64, got 128");
      expect(() => createFp8Map(true, 4, 4)).toThrow("must add up to totalBits 8, got 9");
      expect(() => createDynamicMap(false, 6, 8)).toThrow(
        "createDynamicMap: the parameters must give 2^totalBits values",
      );
      expect(() => createLinearMap(true, 9)).toThrow("totalBits must be an integer from 1 to 8, got 9");
      expect(() => createNormalMap(0.4)).toThrow("offset must be between 0.5 and 1, got 0.4");
    });
  });
});
