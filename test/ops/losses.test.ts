// Losses against the same sums in float64, their gradients by differences, and what they refuse.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { backward, bceWithLogitsLoss, l1Loss, mseLoss, noGrad, tensor } from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";

const x = [
  [-3, -0.5, 0.25],
  [1.5, 4, 0.75],
];
const target = [
  [0.5, 0, 1],
  [1, 0.25, 0.75],
];
const reference = {
  mseLoss: (a: number, b: number) => (a - b) ** 2,
  l1Loss: (a: number, b: number) => Math.abs(a - b),
  bceWithLogitsLoss: (a: number, b: number) => {
    const p = 1 / (1 + Math.exp(-a));
    return -b * Math.log(p) - (1 - b) * Math.log(1 - p);
  },
};
const losses = { mseLoss, l1Loss, bceWithLogitsLoss };
type Name = keyof typeof losses;
const names = Object.keys(losses) as Name[];

describe.each(testDevices())("on %s", (device) => {
  const make = (values: number[][]): Tensor => tensor(values, { device });

  it.each(names)("%s: mean, sum and each", (name) => {
    const each = x.flatMap((row, i) => row.map((a, j) => reference[name](a, target[i]?.[j] as number)));
    const sum = each.reduce((a, b) => a + b, 0);
    const [input, wanted] = [make(x), make(target)];
    expect(losses[name](input, wanted).itemSync()).toBeCloseTo(sum / 6, 5);
    expect(losses[name](input, wanted, { reduction: "sum" }).itemSync()).toBeCloseTo(sum, 5);
    const y = losses[name](input, wanted, { reduction: "none" });
    expect(y.shape).toEqual([2, 3]);
    for (const [i, value] of [...y.floatsSync()].entries()) expect(value).toBeCloseTo(each[i] as number, 5);
  });

  it.each(names)("%s: its gradient is that of the differences", (name) => {
    const input = make(x);
    input.requiresGrad = true;
    const wanted = make(target);
    backward(losses[name](input, wanted));
    const gradient = [...(input.grad as Tensor).floatsSync()];
    const step = 1e-5;
    for (const [at, value] of gradient.entries()) {
      const [i, j] = [Math.floor(at / 3), at % 3];
      const [a, b] = [x[i]?.[j] as number, target[i]?.[j] as number];
      // At its corner |x - target| has the gradient 0, as the difference over both sides.
      const difference = (reference[name](a + step, b) - reference[name](a - step, b)) / (2 * step) / 6;
      expect(value).toBeCloseTo(difference, 5);
    }
  });

  it("bceWithLogitsLoss: logits that exp cannot take", () => {
    const y = noGrad(() =>
      bceWithLogitsLoss(make([[800, -800, 800, -800]]), make([[1, 0, 0, 1]]), { reduction: "none" }),
    );
    expect([...y.floatsSync()]).toEqual([0, 0, 800, 800]);
  });
});

it.each(names)("%s refuses shapes that differ, and unknown reductions", (name) => {
  const input = tensor([[1, 2, 3]]);
  expect(() => losses[name](input, tensor([[1], [2], [3]]))).toThrow(
    `${name}: x and target must have one shape, got [1,3] and [3,1]`,
  );
  expect(() => losses[name](input, input, { reduction: "max" as "sum" })).toThrow(
    `${name}: reduction must be one of mean, sum, none, got "max"`,
  );
});
