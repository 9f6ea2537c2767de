// 4-bit quantization against files made by bitsandbytes: codes, scales, and values from their bytes.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { dequantize4bit, get4bitType, QuantState, quantize4bit } from "../../src/functional.js";
import type { DType, Tensor } from "../../src/index.js";
import { fromBytes } from "../../src/index.js";
import { decode } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import type { FixtureTensor } from "../helpers/safetensors.js";
import { fixturePath, readSafetensors } from "../helpers/safetensors.js";
import { quantize4, tables } from "../reference/quantize.js";

const bytesOf = (t: Tensor): Uint8Array => new Uint8Array(t.dataSync().buffer);
const toTensor = (t: FixtureTensor, device: string): Tensor =>
  fromBytes(t.bytes, { dtype: t.dtype as DType, shape: t.shape, device });

describe.each(testDevices())("quantize4bit on %s", (device) => {
  describe("files made by bitsandbytes", () => {
    interface Case {
      case: string;
      input: string;
      dtype: string;
      quant_type: "nf4" | "fp4";
      blocksize: number;
      nested: boolean;
      shape: number[];
    }
    const { cases } = JSON.parse(readFileSync(fixturePath("functional/quant4.json"), "utf8")) as { cases: Case[] };
    const inputs = readSafetensors("functional/quant4_inputs.safetensors");
    const expected = readSafetensors("functional/quant4_expected.safetensors");
    const part = (c: Case, name: string): FixtureTensor => expected.get(`${c.case}.${name}`) as FixtureTensor;

    it.each(cases)("$case", (c) => {
      const x = toTensor(inputs.get(c.input) as FixtureTensor, device);
      const [packed, state] = quantize4bit(x, {
        quantType: c.quant_type,
        blocksize: c.blocksize,
        compressStatistics: c.nested,
      });
      const values = x.floatsSync();
      const reference = quantize4(values, c.blocksize, c.quant_type);
      // Codes: equal where bitsandbytes' own backends agree. The reference decides the rest: x within two ulp of a
      // threshold, FP4 around zero and at negative ties, zero blocks.
      const theirs = [...part(c, "packed").bytes].flatMap((b) => [b >> 4, b & 15]);
      expect(bytesOf(packed)).toEqual(reference.packed);
      const scales = reference.absmax;
      const differing = reference.codes.filter((code, i) => {
        if (code === theirs[i]) return false;
        const scale = scales[Math.floor(i / c.blocksize)] as number;
        const v = scale > 0 ? (values[i] as number) / scale : 0;
        if (c.quant_type === "fp4" && Math.abs(v) <= 0.00261) return false;
        // A neighbouring code that decodes as near as the one chosen.
        const table = tables[c.quant_type];
        const distance = (q: number): number => Math.abs((table[q] as number) - v);
        return Math.abs(distance(code) - distance(theirs[i] as number)) > 2e-6;
      });
      expect(differing).toEqual([]);
      if (!c.nested) {
        const given = part(c, "absmax").values as Float32Array;
        const tail = Math.floor(values.length / c.blocksize);
        // An all-zero partial tail has the scale 1e-38 there.
        const mine = [...state.absmax.floatsSync()].map((s, b) => (b === tail && s === 0 ? Math.fround(1e-38) : s));
        expect(mine).toEqual([...given]);
      } else {
        expectClose([state.offset?.itemSync() as number], part(c, "offset").values as Float32Array, {
          atol: 0,
          rtol: 1e-6,
        });
        const codes = bytesOf(state.absmax);
        const given = part(c, "absmax").bytes;
        const sameOffset = state.offset?.itemSync() === (part(c, "offset").values[0] as number);
        codes.forEach((code, b) => {
          expect(Math.abs(code - (given[b] as number)), `scale ${b}`).toBeLessThanOrEqual(sameOffset ? 0 : 1);
        });
      }
    });

    it.each(cases)("$case, dequantized from their bytes", (c) => {
      const packed = toTensor(part(c, "packed"), device);
      const dict: Record<string, Tensor | string | number | readonly number[]> = {
        quant_type: c.quant_type,
        blocksize: c.blocksize,
        dtype: { fp32: "float32", fp16: "float16", bf16: "bfloat16" }[c.dtype] as string,
        shape: c.shape,
        absmax: toTensor(part(c, "absmax"), device),
        quant_map: get4bitType(c.quant_type, { device }),
      };
      if (c.nested) {
        Object.assign(dict, {
          nested_absmax: toTensor(part(c, "nested_absmax"), device),
          nested_blocksize: 256,
          nested_quant_map: toTensor(
            readSafetensors("functional/codebooks.safetensors").get("dynamic_signed") as FixtureTensor,
            device,
          ),
          nested_dtype: "float32",
          nested_offset: part(c, "offset").values[0] as number,
        });
      }
      const state = QuantState.fromDict(dict);
      const y = dequantize4bit(packed, { quantState: state });
      const want = part(c, "dequant");
      if (!c.nested) {
        // +0 and -0 are one value here.
        const mine = y.floatsSync().map((value) => value + 0);
        expect(mine).toEqual(decode(want.values as Float32Array, want.dtype as DType).map((value) => value + 0));
      }
      const full = expected.get(`${c.case}.dequant_f32`) ?? want;
      const exact = dequantize4bit(packed, { quantState: state, dtype: "float32" });
      expectClose(exact.floatsSync(), full.values as Float32Array, { atol: 1e-12, rtol: 1e-6 });
    });
  });
});
