// Elementwise functions against float64, broadcasting, and gradients against finite differences.
import { describe, expect, it } from "vitest";
import {
  abs,
  add,
  div,
  exp,
  gelu,
  geluTanh,
  log,
  maximum,
  minimum,
  mul,
  neg,
  pow,
  reciprocal,
  relu,
  rsqrt,
  sigmoid,
  sign,
  silu,
  slice,
  sqrt,
  square,
  sub,
  tanh,
  tensor,
  tidy,
} from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { tolerance } from "../helpers/tolerance.js";
import { sizeOfShape, values } from "../helpers/values.js";
import { binaryReference, broadcastMap, broadcastShape, unaryReference } from "../reference/elementwise.js";

const unaryOps = {
  neg,
  abs,
  sign,
  square,
  reciprocal,
  sqrt,
  rsqrt,
  exp,
  log,
  sigmoid,
  tanh,
  relu,
  silu,
  gelu,
  geluTanh,
};
const binaryOps = { add, sub, mul, div, maximum, minimum };

type UnaryName = keyof typeof unaryReference;
type BinaryName = keyof typeof binaryReference;
const unaryNames = Object.keys(unaryReference) as UnaryName[];
const binaryNames = Object.keys(binaryReference) as BinaryName[];
const floats = ["float32", "float16", "bfloat16"] as const;

// Where each function is defined, away from its kinks.
const domain = (name: UnaryName): [number, number] =>
  name === "sqrt" || name === "rsqrt" || name === "log" || name === "reciprocal" ? [0.3, 4] : [-4, 4];

const broadcasts: [readonly number[], readonly number[]][] = [
  [
    [3, 5],
    [3, 5],
  ],
  [[3, 5], [5]],
  [[5], [3, 5]],
  [
    [3, 5],
    [3, 1],
  ],
  [
    [3, 1],
    [1, 5],
  ],
  [
    [2, 3, 4],
    [3, 1],
  ],
  [
    [2, 1, 4, 1],
    [3, 1, 5],
  ],
  [[7], []],
  [[1], [1, 1]],
  [
    [2, 1, 2, 1, 2, 1, 2, 1],
    [1, 3, 1, 3, 1, 3, 1, 3],
  ],
  [[0, 3], [3]],
  // Innermost axes of whole vectors.
  [[3, 16], [16]],
  [
    [3, 16],
    [3, 1],
  ],
  [
    [2, 1, 24],
    [3, 1],
  ],
];

describe.each(testDevices())("elementwise on %s", (device) => {
  describe("values", () => {
    it.each(unaryNames)("%s", (name) => {
      for (const n of [1, 5, 37, 1000]) {
        const data = values(n, ...domain(name));
        const y = unaryOps[name](tensor(data, { device }));
        expectClose(y.floatsSync(), Array.from(data, unaryReference[name]), tolerance("float32"));
      }
    });

    it.each(binaryNames)("%s broadcasts as NumPy does", (name) => {
      for (const [aShape, bShape] of broadcasts) {
        const a = values(sizeOfShape(aShape));
        const b = values(sizeOfShape(bShape), 0.5, 3, 2);
        const y = binaryOps[name](tensor(a, { shape: aShape, device }), tensor(b, { shape: bShape, device }));
        expect(y.shape).toEqual(broadcastShape(aShape, bShape));
        expectClose(y.floatsSync(), broadcastMap(binaryReference[name], a, aShape, b, bShape), tolerance("float32"));
      }
    });

    it.each(binaryNames)("%s with a number", (name) => {
      const a = values(33);
      const y = binaryOps[name](tensor(a, { device }), 0.7);
      expectClose(
        y.floatsSync(),
        Array.from(a, (v) => binaryReference[name](v, 0.7)),
        tolerance("float32"),
      );
    });

    it("pow: whole, fractional, negative and large exponents", () => {
      for (const exponent of [0, 1, 2, 3, -1, -2, 0.5, -0.5, 1.7, 16, 17, -20.5, 33]) {
        const data = values(40, 0.3, 3);
        const y = pow(tensor(data, { device }), exponent);
        const expected = Array.from(data, (v) => v ** exponent);
        expectClose(y.floatsSync(), expected, { atol: 0, rtol: 1.3e-6 });
      }
      const special = [-2, -0.5, 0, Infinity, -Infinity, NaN, 1e-40];
      for (const exponent of [2, 3, -3, 0.3, -0.3, 19, 20, -21]) {
        const y = pow(tensor(special, { device }), exponent);
        const expected = Array.from(Float32Array.from(special), (v) => Math.fround(v ** exponent));
        expectClose(y.floatsSync(), expected, { atol: 1e-37, rtol: 1.3e-6 });
      }
    });

    it("infinities and NaN follow IEEE arithmetic", () => {
      const special = [Infinity, -Infinity, NaN, 0];
      for (const name of unaryNames) {
        if (name === "silu" || name === "gelu" || name === "geluTanh") continue; // -inf * 0 is NaN, the limit is 0
        expectClose(unaryOps[name](tensor(special, { device })).floatsSync(), special.map(unaryReference[name]));
      }
      const a = tensor([NaN, 1, Infinity, -1], { device });
      const b = tensor([1, NaN, -Infinity, -1], { device });
      for (const name of ["maximum", "minimum", "add"] as const) {
        const expected = [NaN, NaN, name === "add" ? NaN : name === "maximum" ? Infinity : -Infinity];
        expectClose(binaryOps[name](a, b).floatsSync().slice(0, 3), expected);
      }
    });

    it("int32 adds, subtracts and multiplies, and wraps", () => {
      const a = [1, -2, 2147483647, 65536];
      const b = [5, 7, 1, 65536];
      const ta = tensor(a, { dtype: "int32", device });
      const tb = tensor(b, { dtype: "int32", device });
      expect([...add(ta, tb).dataSync()]).toEqual(a.map((v, i) => (v + b[i]!) | 0));
      expect([...sub(ta, tb).dataSync()]).toEqual(a.map((v, i) => (v - b[i]!) | 0));
      expect([...mul(ta, tb).dataSync()]).toEqual(a.map((v, i) => Math.imul(v, b[i]!)));
      expect([...maximum(ta, tb).dataSync()]).toEqual(a.map((v, i) => Math.max(v, b[i]!)));
      expect([...mul(ta, -3).dataSync()]).toEqual(a.map((v) => Math.imul(v, -3)));
    });

    it("methods are the functions", () => {
      const y = tensor([1, 2, 3], { device })
        .mul(2)
        .add(tensor([1, 1, 1], { device }))
        .square()
        .sub(1)
        .neg();
      expect([...y.floatsSync()]).toEqual([-8, -24, -48]);
    });
  });

  describe("gradients", () => {
    it.each(unaryNames)("%s", (name) => {
      const data = values(23, ...domain(name), 7);
      const reference = (x: Float64Array) => x.map(unaryReference[name]);
      gradcheck((x) => unaryOps[name](x), [{ data, shape: [23] }], { device, reference });
    });

    it.each([2, 3, -2, 0.5, 1.7, 1, 0])("pow %d", (exponent) => {
      const data = values(11, 0.4, 2);
      const reference = (x: Float64Array) => x.map((v) => v ** exponent);
      gradcheck((x) => pow(x, exponent), [{ data, shape: [11] }], { device, reference });
    });

    it.each(binaryNames)("%s sums over broadcast axes", (name) => {
      for (const [aShape, bShape] of broadcasts.filter(([a]) => !a.includes(0))) {
        const inputs = [
          { data: values(sizeOfShape(aShape), 0.5, 2, 3), shape: aShape },
          { data: values(sizeOfShape(bShape), 0.5, 2, 4), shape: bShape },
        ];
        const reference = (a: Float64Array, b: Float64Array) =>
          broadcastMap(binaryReference[name], a, aShape, b, bShape);
        for (const wanted of [[0, 1], [0], [1]]) {
          gradcheck((a, b) => binaryOps[name](a, b), inputs, { device, reference, inputs: wanted });
        }
      }
    });

    it.each(binaryNames)("%s with a number", (name) => {
      const reference = (x: Float64Array) => x.map((v) => binaryReference[name](v, 0.7));
      gradcheck((x) => binaryOps[name](x, 0.7), [{ data: values(17), shape: [17] }], { device, reference });
    });

    it("a tie of maximum gives half to each side", () => {
      const a = tensor([1, 2], { requiresGrad: true, device });
      const b = tensor([1, 1], { requiresGrad: true, device });
      maximum(a, b).sum().backward();
      expect([...a.grad!.floatsSync()]).toEqual([0.5, 1]);
      expect([...b.grad!.floatsSync()]).toEqual([0.5, 0]);
    });

    it("one tensor on both sides gets both gradients", () => {
      const x = tensor([3, -2], { requiresGrad: true, device });
      mul(x, x).sum().backward();
      expect([...x.grad!.floatsSync()]).toEqual([6, -4]);
      sub(x, x).sum().backward();
      expect([...x.grad!.floatsSync()]).toEqual([6, -4]);
    });

    it.each(["float16", "bfloat16"] as const)("%s gradients are summed in float32", (dtype) => {
      const rows = 3000;
      const a = tensor(new Float32Array(rows).fill(1), { shape: [rows, 1], dtype, device });
      const b = tensor([0.5], { dtype, requiresGrad: true, device });
      mul(a, b).sum().backward();
      expect(b.grad!.dtype).toBe(dtype);
      expectClose(b.grad!.floatsSync(), [rows], { atol: 0, rtol: 4e-3 });
    });

    // Each product lies half way between two numbers of its dtype, so that rounding them moves the sum to the next one.
    it.each([
      ["float16", 1 + 2 ** -10, 768, 1153],
      ["bfloat16", 1 + 2 ** -7, 96, 145],
    ] as const)("%s products of both sides are not rounded before they are summed", (dtype, factor, rows, sum) => {
      const many = () => tensor(new Float32Array(rows).fill(factor), { shape: [rows, 1], dtype, device });
      const one = () => tensor([0.5], { dtype, requiresGrad: true, device });
      const [a, b] = [one(), one()];
      const dy = () => tensor(new Float32Array(rows).fill(1.5), { shape: [rows, 1], dtype, device });
      mul(a, many()).backward(dy());
      mul(many(), b).backward(dy());
      expect([a.grad!.floatsSync()[0], b.grad!.floatsSync()[0]]).toEqual([sum, sum]);
    });
  });

  describe.each(floats)("dtypes: %s", (dtype) => {
    it.each(unaryNames)("%s", (name) => {
      const x = tensor(values(77, ...domain(name)), { dtype, device });
      const y = unaryOps[name](x);
      expect(y.dtype).toBe(dtype);
      expectClose(y.floatsSync(), Array.from(x.floatsSync(), unaryReference[name]), tolerance(dtype));
    });

    it.each(binaryNames)("%s", (name) => {
      for (const cols of [11, 16]) {
        const a = tensor(values(7 * cols), { shape: [7, cols], dtype, device });
        const b = tensor(values(cols, 0.5, 2, 3), { dtype, device });
        const y = binaryOps[name](a, b);
        expect(y.dtype).toBe(dtype);
        const expected = broadcastMap(binaryReference[name], a.floatsSync(), [7, cols], b.floatsSync(), [cols]);
        expectClose(y.floatsSync(), expected, tolerance(dtype));
      }
    });

    it("views that start between two vectors", () => {
      for (const start of [1, 2, 3, 8]) {
        const whole = tensor(values(75), { dtype, device });
        const other = tensor(values(75, 0.5, 2, 3), { dtype, device });
        const x = slice(whole, 0, start, 75);
        const b = slice(other, 0, start, 75);
        expect(exp(x).floatsSync()).toEqual(exp(whole).floatsSync().slice(start));
        expect(div(x, b).floatsSync()).toEqual(div(whole, other).floatsSync().slice(start));
        expect(pow(x, 3).floatsSync()).toEqual(pow(whole, 3).floatsSync().slice(start));
      }
    });

    it("gradients of views and of columns of vectors", () => {
      const a = tensor(values(4 * 16), { shape: [4, 16], dtype, device, requiresGrad: true });
      const b = tensor(values(4, 0.5, 2, 3), { shape: [4, 1], dtype, device, requiresGrad: true });
      const dy = slice(tensor(values(1 + 64, 0.5, 2, 4), { dtype, device }), 0, 1, 65).reshape([4, 16]);
      mul(a, b).backward(dy);
      const [da, db, d] = [a.floatsSync(), b.floatsSync(), dy.floatsSync()];
      expectClose(
        a.grad!.floatsSync(),
        d.map((v, i) => v * db[Math.floor(i / 16)]!),
        tolerance(dtype, "gradient"),
      );
      const sums = [0, 1, 2, 3].map((row) => {
        let total = 0;
        for (let i = row * 16; i < (row + 1) * 16; i++) total += d[i]! * da[i]!;
        return total;
      });
      expectClose(b.grad!.floatsSync(), sums, tolerance(dtype, "gradient"));
    });

    it("gradients have the dtype of their tensor", () => {
      const x = tensor(values(9), { dtype, requiresGrad: true, device });
      silu(x).sum().backward();
      expect(x.grad!.dtype).toBe(dtype);
      const expected = Array.from(x.floatsSync(), (v) => {
        const s = 1 / (1 + Math.exp(-v));
        return s * (1 + v * (1 - s));
      });
      expectClose(x.grad!.floatsSync(), expected, tolerance(dtype, "gradient"));
    });
  });

  describe("shapes", () => {
    it("empty tensors stay empty", () => {
      const x = tensor(new Float32Array(0), { shape: [2, 0, 3], device });
      expect(exp(x).shape).toEqual([2, 0, 3]);
      expect(add(x, tensor([1, 2, 3], { device })).shape).toEqual([2, 0, 3]);
    });

    it("large tensors use every thread and give the same bits", () => {
      const n = 100_003;
      const a = values(n);
      const b = values(n, 1, 2, 9);
      tidy(() => {
        const y = div(tensor(a, { device }), tensor(b, { device })).floatsSync();
        expect(y).toEqual(a.map((v, i) => Math.fround(v / b[i]!)));
      });
    });
  });

  describe("errors", () => {
    const x = tensor([1, 2, 3], { device });

    it("shapes that do not broadcast", () => {
      const y = tensor([1, 2], { device });
      expect(() => add(x, y)).toThrow("add: shapes must broadcast, got [3] and [2]");
    });

    it("mixed dtypes", () => {
      const y = tensor([1, 2, 3], { dtype: "float16", device });
      expect(() => mul(x, y)).toThrow("mul: a and b must have one dtype, got float32 and float16");
      expect(() => mul(x, y)).toThrow(expect.objectContaining({ code: "ERR_BNB_DTYPE" }) as Error);
    });

    it("integers where floats are needed", () => {
      const i = tensor([1, 2], { dtype: "int32", device });
      expect(() => exp(i)).toThrow("exp: x must be float32, float16 or bfloat16, got int32");
      expect(() => div(i, i)).toThrow("div: a must be float32, float16 or bfloat16, got int32");
      expect(() => add(i, 0.5)).toThrow("add: the number beside an int32 tensor must be an int32, got 0.5");
      const u = tensor([1, 2], { dtype: "uint8", device });
      expect(() => add(u, u)).toThrow("add: a must be float32, float16, bfloat16 or int32, got uint8");
    });

    it("disposed tensors", () => {
      const gone = tensor([1], { device });
      gone.dispose();
      expect(() => add(x, gone)).toThrow("add: b was disposed");
      expect(() => relu(gone)).toThrow("relu: x was disposed");
      expect(() => relu(gone)).toThrow(expect.objectContaining({ code: "ERR_BNB_DISPOSED" }) as Error);
    });
  });
});
