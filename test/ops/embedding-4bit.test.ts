// Rows of a 4-bit table: the rows of the dequantized table, whatever the row length.
import { describe, expect, it } from "vitest";
import type { DType, Tensor } from "../../src/index.js";
import { dequantize4bit, embedding4bit, quantize4bit, tensor, tidy } from "../../src/index.js";
import { dtypes, encode } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { noise } from "../helpers/noise.js";
import { decode4bit } from "../reference/linear-4bit.js";

describe.each(testDevices())("embedding4bit on %s", (device) => {
  const ids = (values: number[], shape = [values.length]): Tensor => tensor(Int32Array.from(values), { shape, device });

  describe("values", () => {
    it.each([1, 5, 64, 100, 129, 1024, 1500, 2120])("rows of %i elements, as float64 decodes them", (dim) => {
      for (const quantType of ["nf4", "fp4", "int4"] as const) {
        for (const blocksize of [32, 64, 512]) {
          tidy(() => {
            const table = tensor(noise(11 * dim), { shape: [11, dim], device });
            const [packed, state] = quantize4bit(table, { quantType, blocksize });
            const y = embedding4bit(ids([3, 0, 10, 3], [2, 2]), state.quantized(packed), "float32");
            expect(y.shape).toEqual([2, 2, dim]);
            const values = decode4bit(packed, state);
            const expected = [3, 0, 10, 3].flatMap((id) => [...values.subarray(id * dim, (id + 1) * dim)]);
            expect(y.floatsSync()).toEqual(Float32Array.from(expected));
          });
        }
      }
    });

    it("is exact for weights of one magnitude, and close for uniform ones", () => {
      tidy(() => {
        const signs = noise(8 * 60).map((v) => (v < 0 ? -1 : 1));
        const [packed, state] = quantize4bit(tensor(signs, { shape: [8, 60], device }), { quantType: "nf4" });
        const all = ids([0, 1, 2, 3, 4, 5, 6, 7]);
        expect(embedding4bit(all, state.quantized(packed), "float32").floatsSync()).toEqual(signs);
        const uniform = noise(8 * 60).map((v) => 0.5 + 0.5 * Math.sin(v));
        const [codes, scales] = quantize4bit(tensor(uniform, { shape: [8, 60], device }), { quantType: "fp4" });
        const rows = embedding4bit(all, scales.quantized(codes), "float32").floatsSync();
        expect(Math.max(...rows.map((v, i) => Math.abs(v - uniform[i]!)))).toBeLessThan(0.2);
      });
    });

    it.each([96, 1032])("expands nested scales as dequantizing does, rows of %i", (dim) => {
      tidy(() => {
        const table = tensor(noise(300 * dim), { shape: [300, dim], device });
        const [packed, state] = quantize4bit(table, { quantType: "nf4", compressStatistics: true });
        const whole = dequantize4bit(packed, { quantState: state }).floatsSync();
        const row = embedding4bit(ids([299]), state.quantized(packed), "float32").floatsSync();
        row.forEach((v, i) => {
          expect(Math.abs(v - whole[299 * dim + i]!)).toBeLessThanOrEqual(2 ** -22 * Math.abs(v));
        });
      });
    });
  });

  describe("gradients", () => {
    it("there are none: the table is frozen", () => {
      const [packed, state] = quantize4bit(tensor(noise(640), { shape: [10, 64], device }), { quantType: "nf4" });
      expect(embedding4bit(ids([1]), state.quantized(packed), "float32").requiresGrad).toBe(false);
    });
  });

  describe("dtypes", () => {
    it.each(["float16", "bfloat16"] as const)("%s is rounded once", (dtype) => {
      const [packed, state] = quantize4bit(tensor(noise(640), { shape: [10, 64], device }), { quantType: "nf4" });
      const y = embedding4bit(ids([4]), state.quantized(packed), dtype);
      expect(y.dtype).toBe(dtype);
      expect(y.dataSync()).toEqual(encode(decode4bit(packed, state).subarray(256, 320), dtype));
    });
  });

  describe("shapes", () => {
    it("no ids, a scalar id", () => {
      const [packed, state] = quantize4bit(tensor(noise(640), { shape: [10, 64], device }), { quantType: "nf4" });
      expect(embedding4bit(ids([], [0]), state.quantized(packed), "float32").shape).toEqual([0, 64]);
      expect(embedding4bit(ids([2], []), state.quantized(packed), "float32").shape).toEqual([64]);
    });
  });

  describe("errors", () => {
    const [packed, state] = quantize4bit(tensor(noise(640), { shape: [10, 64], device }), { quantType: "nf4" });
    const table = state.quantized(packed);

    it("an id outside the table", async () => {
      for (const id of [10, -1]) {
        await expect(embedding4bit(ids([id]), table, "float32").data()).rejects.toThrow(String(id));
      }
    });

    it("ids and dtypes of the wrong kind", () => {
      expect(() => embedding4bit(tensor([1], { device }), table, "float32")).toThrow(
        "embedding4bit: ids must be int32, got float32",
      );
      const wrong: DType[] = dtypes.filter((dtype) => !dtype.includes("float") || dtype === "float64");
      for (const dtype of wrong) {
        expect(() => embedding4bit(ids([1]), table, dtype)).toThrow(
          "embedding4bit: dtype must be float32, float16 or bfloat16",
        );
      }
    });
  });
});
