// A 4-bit layer with an adapter as one op: against float64, finite differences, and the ops that it stands for.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import type { DType, Tensor } from "../../src/index.js";
import {
  add,
  dropout,
  Generator,
  linear,
  linear4bit,
  memory,
  mul,
  quantize4bit,
  tensor,
  tidy,
} from "../../src/index.js";
import { linear4bitLora } from "../../src/ops/linear-4bit-lora.js";
import { testDevices } from "../helpers/devices.js";
import { relativeError } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { noise } from "../helpers/noise.js";
import { roundoff } from "../helpers/tolerance.js";
import { decode4bit } from "../reference/linear-4bit.js";
import type { LoraInputs } from "../reference/linear-4bit-lora.js";
import { loraBackward, loraForward } from "../reference/linear-4bit-lora.js";
import { words } from "../reference/random.js";

/** What dropout multiplies the i-th element by. */
const maskOf = (seed: number, n: number, p: number): Float64Array =>
  Float64Array.from(words(seed, 0, n), (word) => (p === 0 ? 1 : word >= Math.floor(p * 2 ** 32) ? 1 / (1 - p) : 0));

describe.each(testDevices())("linear4bitLora on %s", (device) => {
  const weightOf = (n: number, k: number) => {
    const w = tensor(
      noise(n * k, 3).map((v) => v / Math.sqrt(k)),
      { shape: [n, k], device },
    );
    const [packed, state] = quantize4bit(w, { quantType: "nf4" });
    return { weight: state.quantized(packed), values: decode4bit(packed, state) };
  };
  const inputs = (m: number, n: number, k: number, r: number, dtype: DType = "float32") => {
    const make = (count: number, seed: number, shape: readonly number[], type: DType, scale = 1): Tensor =>
      tensor(
        noise(count, seed).map((v) => v * scale),
        { shape, dtype: type, device, requiresGrad: true },
      );
    return {
      x: make(m * k, 5, [m, k], dtype),
      bias: make(n, 6, [n], dtype),
      residual: make(m * n, 7, [m, n], dtype),
      a: make(r * k, 8, [r, k], "float32", 1 / Math.sqrt(k)),
      b: make(n * r, 9, [n, r], "float32"),
    };
  };

  it.each([
    ["float32", 5, 37, 128, 4, 0],
    ["float32", 19, 48, 77, 16, 0.3],
    ["float32", 33, 200, 192, 3, 0.05],
    ["float16", 19, 48, 128, 8, 0.3],
    ["bfloat16", 40, 37, 192, 16, 0],
    ["bfloat16", 3, 64, 64, 5, 0.5],
  ] as const)("%s, %i rows to %i of %i, rank %i, dropout %d", (dtype, m, n, k, r, p) =>
    tidy(() => {
      const { weight, values } = weightOf(n, k);
      const t = inputs(m, n, k, r, dtype);
      const scaling = 1.5;
      const scale = { a: t.a, b: t.b, scaling, p, generator: new Generator(6) };
      const y = linear4bitLora(t.x, weight, t.bias, t.residual, scale);
      expect([y.dtype, y.shape]).toEqual([dtype, [m, n]]);
      const [x, bias, residual, a, b] = [t.x, t.bias, t.residual, t.a, t.b].map((one) => one.floatsSync()) as [
        ...[Float32Array, Float32Array, Float32Array, Float32Array, Float32Array],
      ];
      const exact: LoraInputs = { w: values, x, bias, residual, a, b };
      const sizes = { m, n, k, r, scaling, mask: maskOf(6, m * k, p) };
      // In 16 bits a decoded weight and each of two sums may be rounded.
      const limit = dtype === "float32" ? 2e-6 : 4 * roundoff[dtype];
      expect(relativeError(y.floatsSync(), loraForward(exact, sizes))).toBeLessThan(limit);
      const dy = tensor(noise(m * n, 10), { shape: [m, n], dtype, device });
      backward(y, dy);
      const want = loraBackward(exact, dy.floatsSync(), sizes);
      for (const name of ["x", "bias", "a", "b"] as const) {
        const grad = t[name].grad as Tensor;
        expect([name, grad.dtype, grad.shape]).toEqual([name, t[name].dtype, t[name].shape]);
        expect(relativeError(grad.floatsSync(), want[name])).toBeLessThan(limit);
      }
      expect([...(t.residual.grad as Tensor).floatsSync()]).toEqual([...dy.floatsSync()]);
    }),
  );

  it("gradients are those of finite differences, dropout on", () => {
    const [m, n, k, r] = [3, 5, 64, 2];
    const { weight, values } = weightOf(n, k);
    const mask = maskOf(11, m * k, 0.25);
    const t = inputs(m, n, k, r);
    gradcheck(
      (x, bias, residual, a, b) =>
        linear4bitLora(x as Tensor, weight, bias as Tensor, residual as Tensor, {
          ...{ a: a as Tensor, b: b as Tensor, scaling: 0.7, p: 0.25, generator: new Generator(11) },
        }),
      Object.values(t).map((one) => ({ data: one.floatsSync(), shape: one.shape })),
      {
        device,
        reference: (x, bias, residual, a, b) =>
          loraForward({ w: values, x, bias, residual, a, b } as LoraInputs, { m, n, k, r, scaling: 0.7, mask }),
      },
    );
    for (const one of Object.values(t)) one.dispose();
    weight.dispose();
  });

  it("is what the single ops give, with the same random numbers, and the same bits at each call", () =>
    tidy(() => {
      const [m, n, k, r, p, scaling] = [21, 48, 128, 8, 0.2, 2];
      const { weight } = weightOf(n, k);
      const dy = tensor(noise(m * n, 10), { shape: [m, n], device });
      const results = ([whole, single]: readonly [Generator, boolean]) => {
        const t = inputs(m, n, k, r);
        const low = (): Tensor => mul(linear(dropout(t.x, p, { generator: whole }), t.a, null), scaling);
        const y = single
          ? add(linear4bit(t.x, weight, t.bias, t.residual), linear(low(), t.b, null))
          : linear4bitLora(t.x, weight, t.bias, t.residual, { a: t.a, b: t.b, scaling, p, generator: whole });
        backward(y, dy);
        const grads = [t.x, t.bias, t.residual, t.a, t.b].map((one) => (one.grad as Tensor).floatsSync());
        return [y.floatsSync(), ...grads];
      };
      const generators = [new Generator(4), new Generator(4), new Generator(4)] as const;
      const one = results([generators[0], false]);
      expect(results([generators[1], false])).toEqual(one);
      results([generators[2], true]).forEach((values, i) => {
        expect(relativeError(one[i] as Float32Array, values)).toBeLessThan(1e-6);
      });
      expect(generators[0].state).toEqual(generators[2].state);
    }));

  it("keeps x and what is narrow, and frees both behind the backward pass", () => {
    const [m, n, k, r] = [64, 64, 64, 4];
    const { weight } = weightOf(n, k);
    const t = inputs(m, n, k, r);
    const before = memory().tensors;
    const scale = { a: t.a, b: t.b, scaling: 1, p: 0.5, generator: new Generator(1) };
    const y = linear4bitLora(t.x, weight, null, null, scale);
    // y and low; x, a and b are shared.
    expect(memory().tensors - before).toBeLessThanOrEqual(5);
    tidy(() => backward(y, tensor(noise(m * n, 2), { shape: [m, n], device })));
    for (const one of Object.values(t)) {
      one.grad?.dispose();
      one.grad = null;
    }
    y.dispose();
    expect(memory().tensors).toBe(before);
    for (const one of [...Object.values(t), weight]) one.dispose();
  });

  it("no rows, and an adapter that drops everything", () =>
    tidy(() => {
      const { weight } = weightOf(8, 64);
      const none = inputs(0, 8, 64, 2);
      const y = linear4bitLora(none.x, weight, null, null, {
        ...{ a: none.a, b: none.b, scaling: 1, p: 0, generator: new Generator(1) },
      });
      backward(y, tensor([], { shape: [0, 8], device }));
      expect([...(none.a.grad as Tensor).floatsSync()]).toEqual(new Array(128).fill(0));
      const t = inputs(3, 8, 64, 2);
      const scale = { a: t.a, b: t.b, scaling: 1, p: 1, generator: new Generator(1) };
      const all = linear4bitLora(t.x, weight, null, null, scale).floatsSync();
      expect([...all]).toEqual([...linear4bit(t.x, weight).floatsSync()]);
    }));

  it("refuses what does not fit", () =>
    tidy(() => {
      const { weight } = weightOf(8, 64);
      const t = inputs(3, 8, 64, 2);
      const call = (more: object, x = t.x) => {
        const scale = { a: t.a, b: t.b, scaling: 1, p: 0, generator: new Generator(1), ...more };
        return () => linear4bitLora(x, weight, null, null, scale);
      };
      expect(call({ a: t.b })).toThrow("linear4bitLora: a must have shape [r, 64], got [8, 2]");
      expect(call({ b: t.a })).toThrow("linear4bitLora: b must have shape [8, 2], got [2, 64]");
      expect(call({ b: t.b.cast("bfloat16") })).toThrow("linear4bitLora: a and b must have one dtype, got float32 and");
      expect(call({ p: 1.5 })).toThrow("linear4bitLora: p must be in [0, 1], got 1.5");
      expect(call({}, t.b)).toThrow("linear4bitLora: the last axis of x must be 64, got [8, 2]");
      expect(call({}, tensor([1], { dtype: "int32", device }))).toThrow("linear4bitLora: x must be float32, float16");
    }));
});
