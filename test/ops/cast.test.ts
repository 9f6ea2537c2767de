// Conversions between all element types, against exact arithmetic.
import { describe, expect, it } from "vitest";
import type { DType } from "../../src/index.js";
import { cast, slice, tensor } from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { values } from "../helpers/values.js";

const types = ["float32", "float16", "bfloat16", "int8", "uint8", "int32"] as const;
const ranges: Partial<Record<DType, [number, number]>> = {
  int8: [-128, 127],
  uint8: [0, 255],
  int32: [-(2 ** 31), 2 ** 31 - 1],
};

// What a value becomes: through float32 for floats, cut and clamped for integers.
function expected(value: number, to: DType): number {
  const range = ranges[to];
  if (range) return Number.isNaN(value) ? 0 : Math.min(Math.max(Math.trunc(value), range[0]), range[1]) + 0;
  return tensor([Math.fround(value)], { dtype: to }).floatsSync()[0] as number;
}

describe.each(testDevices())("cast on %s", (device) => {
  describe.each(types)("values: from %s", (from) => {
    it.each(types)("to %s", (to) => {
      const range = ranges[from];
      const edges = [0, 1, -1, 0.5, -0.5, 1.5, 2.5, 127.9, -128.9, 255, 256, 300, -300, 65504, 65520, 1e-8, 3e9, -3e9];
      const exact = [2147483520, 2147483648, -2147483648, 16777217];
      const numbers = [...edges, ...exact, ...values(60, -400, 400)];
      const usable = range ? numbers.filter((v) => Number.isInteger(v) && v >= range[0] && v <= range[1]) : numbers;
      const data = range ? [...usable, range[0], range[1], 3] : [...usable, NaN, Infinity, -Infinity];
      const x = tensor(data, { dtype: from, device });
      const stored = from === "int32" ? [...x.dataSync()] : [...x.floatsSync()];
      const y = cast(x, to);
      expect(y.dtype).toBe(to);
      const got = to === "int32" ? [...y.dataSync()] : [...y.floatsSync()];
      expect(got).toEqual(stored.map((value) => expected(value, to)));
    });
  });

  describe("gradients", () => {
    it("come back in the dtype of the input", () => {
      const x = tensor([1, 2, 3], { requiresGrad: true, device });
      const weights = tensor([0.5, -1, 0.25], { dtype: "bfloat16", device });
      x.cast("bfloat16").mul(weights).sum().backward();
      expect(x.grad!.dtype).toBe("float32");
      expect([...x.grad!.floatsSync()]).toEqual([0.5, -1, 0.25]);
    });

    it("stop at an integer", () => {
      const x = tensor([1, 2], { requiresGrad: true, device });
      expect(x.cast("int32").requiresGrad).toBe(false);
    });

    it("pass through a cast to the same dtype", () => {
      const x = tensor([1, 2], { requiresGrad: true, device });
      x.cast("float32").sum().backward();
      expect([...x.grad!.floatsSync()]).toEqual([1, 1]);
    });
  });

  describe("shapes", () => {
    it.each([0, 1, 7, 16, 33, 70_001])("%d elements", (n) => {
      const data = values(n, -100, 100);
      const y = cast(tensor(data, { shape: [n, 1], device }), "int8");
      expect(y.shape).toEqual([n, 1]);
      expect(y.dataSync()).toEqual(Int8Array.from(data, Math.trunc));
    });
  });

  it.each(types)("views of %s that start between two vectors", (from) => {
    const data = values(83, from === "uint8" ? 0 : -100, 100).map(Math.trunc);
    for (const to of types) {
      if (to === "uint8" && from !== "uint8") continue;
      for (const start of [1, 4, 8]) {
        const y = cast(slice(tensor(data, { dtype: from, device }), 0, start, 83), to);
        expect([...y.floatsSync()]).toEqual([...data.slice(start)]);
      }
    }
  });

  describe("errors", () => {
    it("float64 is storage only", () => {
      const x = tensor(new Float64Array(2), { dtype: "float64", device });
      expect(() => cast(x, "float32")).toThrow("cast: float64 is storage only, got float64 to float32");
    });

    it("unknown dtype", () => {
      expect(() => cast(tensor([1], { device }), "float8" as DType)).toThrow("dtype: must be one of");
    });
  });
});
