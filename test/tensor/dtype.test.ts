// The conversions of 16-bit floats in TypeScript against those of the addon, which were written apart, over every bit
// pattern one way and over the range of float32 the other; and by hand where it is known what must come out.
import { describe, expect, it } from "vitest";
import { cast, tensor } from "../../src/index.js";
import { decode, encode } from "../../src/tensor/dtype.js";

const halves = ["float16", "bfloat16"] as const;
/** The bits of a NaN are the format's business, so every NaN counts as the same. */
const comparable = (values: Float32Array) =>
  Array.from(values, (v) => (Number.isNaN(v) ? "NaN" : Object.is(v, -0) ? "-0" : v));

describe.each(halves)("%s", (dtype) => {
  it("decodes every bit pattern as the addon does", () => {
    const bits = Uint16Array.from({ length: 1 << 16 }, (_, i) => i);
    const native = cast(tensor(bits, { dtype }), "float32").dataSync() as Float32Array;
    expect(comparable(decode(bits, dtype))).toEqual(comparable(native));
  });

  it("rounds float32 as the addon does, ties and borders included", () => {
    const steps = Uint32Array.from({ length: 50_000 }, (_, i) => Math.imul(i, 85_889));
    // Ties of either format: the bits below the last one kept are exactly half, or one off.
    const ties = Uint32Array.from({ length: 30_000 }, (_, i) => {
      const kept = Math.imul(i, 2_237_441) & (dtype === "float16" ? ~0x1fff : ~0xffff);
      return kept + (dtype === "float16" ? 0x1000 : 0x8000) + (i % 3) - 1;
    });
    for (const patterns of [steps, ties]) {
      const x = new Float32Array(patterns.buffer);
      const native = cast(tensor(x), dtype).dataSync();
      expect(comparable(decode(encode(x, dtype), dtype))).toEqual(comparable(decode(native, dtype)));
    }
  });
});

it("knows the ends of float16", () => {
  const read = (values: number[]) => [...decode(encode(values, "float16"), "float16")];
  expect(read([65504, 65519.99, 65520, -65520])).toEqual([65504, 65504, Infinity, -Infinity]);
  expect(read([2 ** -24, 2 ** -25, 2 ** -25 * 1.001, 2 ** -14, 1023 * 2 ** -24])).toEqual([
    ...[2 ** -24, 0, 2 ** -24, 2 ** -14, 1023 * 2 ** -24],
  ]);
});

it("item is for one element", async () => {
  const two = tensor([1, 2]);
  expect(() => two.itemSync()).toThrow("itemSync: the tensor must have one element, got [2]");
  await expect(two.item()).rejects.toThrow("item: the tensor must have one element, got [2]");
  expect(tensor([[7]]).itemSync()).toBe(7);
});
