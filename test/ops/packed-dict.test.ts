// packDictToTensor and unpackTensorToDict: Python's JSON to the byte, and back.
import { describe, expect, it } from "vitest";
import { packDictToTensor, unpackTensorToDict } from "../../src/ops/index.js";
import { tensor } from "../../src/tensor/create.js";
import { testDevices } from "../helpers/devices.js";

describe.each(testDevices())("on %s", (device) => {
  it("writes what json.dumps writes", () => {
    using packed = packDictToTensor(
      { quant_type: "nf4", blocksize: 64, offset: 1.5e-7, big: 1e16, list: [1, 2.5, null], on: true, é: "ü\n" },
      { device },
    );
    expect([packed.dtype, packed.shape]).toEqual(["uint8", [packed.size]]);
    expect(String(packed.device)).toBe(device);
    const text = new TextDecoder().decode(packed.dataSync() as Uint8Array);
    expect(text).toBe(
      '{"quant_type": "nf4", "blocksize": 64, "offset": 1.5e-07, "big": 10000000000000000, "list": [1, 2.5, null], ' +
        '"on": true, "\\u00e9": "\\u00fc\\n"}',
    );
  });

  it("reads back what it wrote", () => {
    const dict = { a: 1, b: [1, { c: "x" }], d: null, e: -0.25, f: "ü" };
    using packed = packDictToTensor(dict, { device });
    expect(unpackTensorToDict(packed)).toEqual(dict);
  });

  it("refuses what is no JSON object", () => {
    const bytes = (text: string) => tensor(new TextEncoder().encode(text), { device });
    for (const [text, rule] of [
      ["{", "JSON"],
      ["[1]", "a JSON object"],
      ["null", "a JSON object"],
      ["{'a': 1}", "JSON"],
    ] as const) {
      using data = bytes(text);
      expect(() => unpackTensorToDict(data)).toThrow(
        expect.objectContaining({ code: "ERR_BNB_FORMAT", message: `unpackTensorToDict: data must be ${rule}` }),
      );
    }
    using floats = tensor([1, 2], { device });
    expect(() => unpackTensorToDict(floats)).toThrow("unpackTensorToDict: data must be uint8, got float32");
    using invalid = tensor(new Uint8Array([0x7b, 0xff, 0x7d]), { device });
    expect(() => unpackTensorToDict(invalid)).toThrow("data must be JSON");
    expect(() => packDictToTensor({ x: Number.NaN }, { device })).toThrow("json: numbers must be finite, got NaN");
  });
});
