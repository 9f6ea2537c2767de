// Random fills against an independent Philox, and the generator's state.
import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { defaultGenerator, Generator, manualSeed, rand, randint, randn } from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { normals, philox, uniforms, words } from "../reference/random.js";

const at = (seed: number, offset: number): Generator => {
  const generator = new Generator(seed);
  generator.state = { seed, offset };
  return generator;
};
const sha = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex").slice(0, 16);
const bytesOf = (data: ArrayBufferView) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

describe("the reference generator", () => {
  // Known answers published with Random123.
  it.each([
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ])("gives the published words for %j", (counter, key, expected) => {
    expect(philox(counter, key)).toEqual(expected);
  });
});

describe.each(testDevices())("random on %s", (device) => {
  describe("values", () => {
    it("raw words are Philox, whole seeds and offsets included", () => {
      for (const [seed, offset] of [
        [0, 0],
        [42, 0],
        [2 ** 53 - 1, 5],
        [7, 2 ** 32 - 2],
      ] as const) {
        const y = randint([23], { low: -(2 ** 31), high: 2 ** 31, generator: at(seed, offset), device });
        expect([...y.dataSync()]).toEqual(words(seed, offset, 23).map((word) => word - 2 ** 31));
      }
    });

    it("rand", () => {
      const y = rand([1001], { generator: at(3, 10), device });
      expect([...y.floatsSync()]).toEqual(uniforms(3, 10, 1001));
      const scaled = rand([50], { low: -2, high: 6, generator: at(3, 10), device });
      expectClose(
        scaled.floatsSync(),
        uniforms(3, 10, 50).map((u) => u * 8 - 2),
      );
    });

    it("randn", () => {
      const y = randn([4003], { generator: at(11, 100), device });
      expectClose(y.floatsSync(), normals(11, 100, 4003), { atol: 1e-6, rtol: 1e-6 });
      const scaled = randn([40], { mean: 5, std: 0.25, generator: at(11, 100), device });
      expectClose(
        scaled.floatsSync(),
        normals(11, 100, 40).map((z) => z * 0.25 + 5),
        { atol: 1e-6, rtol: 1e-6 },
      );
    });

    it("randint", () => {
      const y = randint([5000], { low: -3, high: 4, generator: at(5, 0), device });
      expect([...y.dataSync()]).toEqual(words(5, 0, 5000).map((word) => Math.floor((word * 7) / 2 ** 32) - 3));
    });

    it("moments", () => {
      const n = 200_000;
      const z = randn([n], { generator: at(1, 0), device }).floatsSync();
      const moment = (k: number) => z.reduce((total, v) => total + v ** k, 0) / n;
      expect(Math.abs(moment(1))).toBeLessThan(0.01);
      expect(Math.abs(moment(2) - 1)).toBeLessThan(0.015);
      expect(Math.abs(moment(3))).toBeLessThan(0.04);
      expect(Math.abs(moment(4) - 3)).toBeLessThan(0.1);
    });

    it("the bits are the same on every machine and instruction set", () => {
      const generator = new Generator(2024);
      const z = randn([100_001], { generator, device }).dataSync();
      const u = rand([999], { dtype: "bfloat16", generator, device }).dataSync();
      expect([sha(bytesOf(z)), sha(bytesOf(u))]).toEqual(["a78a02081c1943f5", "b6310b62e2fc74ac"]);
    });
  });

  describe("generator", () => {
    it("moves on by blocks of four", () => {
      const generator = new Generator(8);
      rand([5], { generator, device });
      expect(generator.state).toEqual({ seed: 8, offset: 2 });
      randn([0, 3], { generator, device });
      expect(generator.state.offset).toBe(2);
      const next = rand([3], { generator, device });
      expect([...next.floatsSync()]).toEqual(uniforms(8, 2, 3));
    });

    it("its state can be saved and restored", () => {
      const generator = new Generator(8);
      rand([100], { generator, device });
      const saved = generator.state;
      const first = randn([10], { generator, device }).floatsSync();
      generator.state = saved;
      expect(randn([10], { generator, device }).floatsSync()).toEqual(first);
    });

    it("manualSeed seeds the default", () => {
      manualSeed(77);
      const first = rand([4], { device }).floatsSync();
      expect(defaultGenerator.state).toEqual({ seed: 77, offset: 1 });
      manualSeed(77);
      expect(rand([4], { device }).floatsSync()).toEqual(first);
      expect([...first]).toEqual(uniforms(77, 0, 4));
    });

    it("generators without a seed differ", () => {
      expect(new Generator().state.seed).not.toBe(new Generator().state.seed);
    });
  });

  describe.each(["float32", "float16", "bfloat16"] as const)("dtypes: %s", (dtype) => {
    it("are the float32 values, rounded", () => {
      const tolerance = { float32: 0, float16: 2 ** -11, bfloat16: 2 ** -8 }[dtype];
      const exact = randn([777], { generator: at(9, 0), device }).floatsSync();
      const y = randn([777], { dtype, generator: at(9, 0), device });
      expect(y.dtype).toBe(dtype);
      expectClose(y.floatsSync(), exact, { atol: 1e-7, rtol: tolerance });
    });
  });

  describe("shapes", () => {
    it.each([0, 1, 3, 255, 256, 257])("%d elements", (n) => {
      expect([...rand([n, 1], { generator: at(4, 0), device }).floatsSync()]).toEqual(uniforms(4, 0, n));
    });
  });

  describe("errors", () => {
    it("seeds", () => {
      for (const seed of [-1, 0.5, NaN, 2 ** 53]) {
        expect(() => new Generator(seed)).toThrow("Generator: seed and offset must be whole numbers");
      }
    });

    it("bounds and dtypes", () => {
      expect(() => randint([1], { high: 0, device })).toThrow("randint: low < high must be whole numbers");
      expect(() => randint([1], { high: 2.5, device })).toThrow("randint: low < high must be whole numbers");
      expect(() => randint([1], { high: 2, dtype: "float32", device })).toThrow("randint: dtype must be int32");
      expect(() => rand([1], { dtype: "int8", device })).toThrow(
        "rand: dtype must be float32, float16 or bfloat16, got int8",
      );
      expect(() => randn([1], { std: Infinity, device })).toThrow("randn: the bounds must be finite");
      expect(() => randint([1], { high: 2, requiresGrad: true, device })).toThrow("requiresGrad needs float32");
      expect(() => rand([-1], { device })).toThrow(expect.objectContaining({ code: "ERR_BNB_SHAPE" }) as Error);
    });
  });
});
