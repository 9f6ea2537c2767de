// An argument that an op does not take is an error: softmax(x, 1) would otherwise pass for a choice of axis.
import { describe, expect, it } from "vitest";
import * as ops from "../../src/ops/index.js";
import { tensor } from "../../src/tensor/create.js";
import type { Tensor } from "../../src/tensor/tensor.js";

const x = () => tensor([1, 2, 3]);
const y = () => tensor([3, 2, 1]);

const one =
  "softmax logSoftmax neg abs sign square reciprocal sqrt rsqrt exp log sigmoid tanh relu silu gelu geluTanh".split(
    " ",
  );
const calls: [name: string, args: () => unknown[], count: string][] = [
  ...one.map((name): [string, () => unknown[], string] => [name, () => [x()], "1 argument"]),
  ...["add", "sub", "mul", "div", "maximum", "minimum", "swiglu"].map((name): [string, () => unknown[], string] => [
    name,
    () => [x(), y()],
    "2 arguments",
  ]),
  ["add", () => [x(), 2], "2 arguments"],
  ["pow", () => [x(), 2], "2 arguments"],
  ["sum", () => [x(), {}], "2 arguments"],
  ["argmax", () => [x(), {}], "2 arguments"],
  ["softplus", () => [x(), {}], "2 arguments"],
  ["reshape", () => [x(), [3, 1]], "2 arguments"],
  ["permute", () => [x(), [0]], "2 arguments"],
  ["broadcastTo", () => [x(), [2, 3]], "2 arguments"],
  ["concat", () => [[x(), y()], 0], "2 arguments"],
  ["clamp", () => [x(), 1, 2], "3 arguments"],
  ["rmsNorm", () => [x(), y(), 1e-6], "3 arguments"],
  ["dropout", () => [x(), 0.5, {}], "3 arguments"],
  ["slice", () => [x(), 0, 0, 1], "4 arguments"],
];

describe("arguments an op does not take", () => {
  it.each(calls)("%s", (name, args, count) => {
    const op = (ops as unknown as Record<string, (...args: unknown[]) => Tensor>)[name] as (...a: unknown[]) => Tensor;
    expect(() => op(...args())).not.toThrow();
    const got = args().length + 1;
    expect(() => op(...args(), 1)).toThrow(`${name}: it takes ${count}, got ${got}`);
  });

  it("counts them in methods", () => {
    const method = x().softmax as (...args: unknown[]) => Tensor;
    expect(() => method.call(x(), 1)).toThrow("softmax: it takes 1 argument, got 2");
  });

  it("takes what map() gives besides, and nothing like it", async () => {
    const list = [x(), y()];
    for (const value of list) value.requiresGrad = true;
    const [a, b] = list.map(ops.square) as [Tensor, Tensor];
    await ops.add(a, b).sum().backward();
    expect([...(await list[0]!.grad!.data())]).toEqual([2, 4, 6]);
    expect([...(await list[1]!.grad!.data())]).toEqual([6, 4, 2]);
    const square = ops.square as (...args: unknown[]) => Tensor;
    expect(() => square(list[0], 1, list)).toThrow("square: it takes 1 argument, got 3");
    expect(() => square(list[0], Object.create(null), list)).toThrow("square: it takes 1 argument, got 3");
  });
});
