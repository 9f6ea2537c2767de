// Dropout: the mask against an independent generator, the same mask in the backward pass.
import { describe, expect, it } from "vitest";
import { dropout, Generator, memory, slice, tensor } from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { tolerance } from "../helpers/tolerance.js";
import { values } from "../helpers/values.js";
import { words } from "../reference/random.js";

const kept = (seed: number, offset: number, n: number, p: number): boolean[] =>
  words(seed, offset, n).map((word) => word >= Math.floor(p * 2 ** 32));

describe.each(testDevices())("dropout on %s", (device) => {
  describe("values", () => {
    it.each([0.1, 0.5, 0.9])("p = %d", (p) => {
      const data = values(3001, 1, 2);
      const y = dropout(tensor(data, { device }), p, { generator: new Generator(6) });
      const mask = kept(6, 0, 3001, p);
      expectClose(
        y.floatsSync(),
        Array.from(data, (v, i) => (mask[i] ? v / (1 - p) : 0)),
        tolerance("float32"),
      );
      const rate = mask.filter((keep) => !keep).length / 3001;
      expect(Math.abs(rate - p)).toBeLessThan(0.04);
    });

    it("calls in a row have different masks", () => {
      const generator = new Generator(6);
      const x = tensor(new Float32Array(64).fill(1), { device });
      const first = dropout(x, 0.5, { generator }).floatsSync();
      const second = dropout(x, 0.5, { generator }).floatsSync();
      expect(first).not.toEqual(second);
      expect([...second].map((v) => v !== 0)).toEqual(kept(6, 16, 64, 0.5));
    });

    it("takes the whole of a seed", () => {
      const x = tensor(new Float32Array(64).fill(1), { device });
      for (const seed of [6 + 2 ** 32, 2 ** 40 + 7, 2 ** 53 - 1]) {
        const y = dropout(x, 0.5, { generator: new Generator(seed) }).floatsSync();
        expect([...y].map((v) => v !== 0)).toEqual(kept(seed, 0, 64, 0.5));
      }
    });

    it("is the identity outside training and for p = 0", () => {
      const generator = new Generator(6);
      const x = tensor([1, 2, NaN], { device });
      expect(dropout(x, 0.5, { training: false, generator }).floatsSync()).toEqual(x.floatsSync());
      expect(dropout(x, 0, { generator }).floatsSync()).toEqual(x.floatsSync());
      expect(generator.state.offset).toBe(0);
    });

    it("p = 1 gives zeros, also from NaN and infinity", () => {
      const y = dropout(tensor([1, NaN, Infinity], { device }), 1);
      expect([...y.floatsSync()]).toEqual([0, 0, 0]);
    });
  });

  describe("gradients", () => {
    it("have the mask of the forward pass", () => {
      const x = tensor(values(777), { requiresGrad: true, device });
      const weights = values(777, 0.5, 1.5, 3);
      const y = dropout(x, 0.3, { generator: new Generator(12) });
      y.backward(tensor(weights, { device }));
      const mask = kept(12, 0, 777, 0.3);
      const expected = Array.from(weights, (w, i) => (mask[i] ? w / 0.7 : 0));
      expectClose(x.grad!.floatsSync(), expected, tolerance("float32"));
    });

    it("pass unchanged outside training", () => {
      const x = tensor([1, 2], { requiresGrad: true, device });
      dropout(x, 0.5, { training: false }).sum().backward();
      expect([...x.grad!.floatsSync()]).toEqual([1, 1]);
    });

    it("keep nothing in memory", () => {
      const x = tensor(values(1000), { requiresGrad: true, device });
      const before = memory().liveBytes;
      const y = dropout(x, 0.5);
      expect(memory().liveBytes - before).toBeLessThanOrEqual(4096);
      y.dispose();
      expect(memory().liveBytes).toBe(before);
    });
  });

  describe.each(["float32", "float16", "bfloat16"] as const)("dtypes: %s", (dtype) => {
    it("keep their dtype and share one mask", () => {
      const x = tensor(values(300, 1, 2), { dtype, device });
      const y = dropout(x, 0.25, { generator: new Generator(1) });
      expect(y.dtype).toBe(dtype);
      const mask = kept(1, 0, 300, 0.25);
      const expected = Array.from(x.floatsSync(), (v, i) => (mask[i] ? v / 0.75 : 0));
      expectClose(y.floatsSync(), expected, tolerance(dtype));
    });
  });

  it.each(["float32", "float16", "bfloat16"] as const)("views of %s that start between two vectors", (dtype) => {
    const x = slice(tensor(values(101, 1, 2), { dtype, device }), 0, 1, 101);
    const y = dropout(x, 0.25, { generator: new Generator(3) }).floatsSync();
    expect([...y].map((v) => v !== 0)).toEqual(kept(3, 0, 100, 0.25));
  });

  describe("shapes", () => {
    it.each([[[0, 3]], [[1]], [[2, 3, 43]]])("%j", (shape) => {
      const n = shape.reduce((a, b) => a * b, 1);
      expect(dropout(tensor(values(n), { shape, device }), 0.5).shape).toEqual(shape);
    });
  });

  describe("errors", () => {
    it("p outside [0, 1]", () => {
      const x = tensor([1], { device });
      for (const p of [-0.1, 1.5, NaN]) {
        expect(() => dropout(x, p)).toThrow(`dropout: p must be in [0, 1], got ${String(p).toLowerCase()}`);
      }
    });

    it("integers", () => {
      expect(() => dropout(tensor([1], { dtype: "int32", device }), 0.5)).toThrow(
        "dropout: x must be float32, float16 or bfloat16, got int32",
      );
    });
  });
});
