// noGrad: what it switches off, and that it gives back what it found.
import { expect, it } from "vitest";
import { isGradEnabled, mul, noGrad, tensor } from "../../src/index.js";

const x = tensor([1, 2], { requiresGrad: true });

it("records nothing inside, and again afterwards", () => {
  expect(noGrad(() => mul(x, 2)).requiresGrad).toBe(false);
  expect(mul(x, 2).requiresGrad).toBe(true);
});

it("one inside another ends the inner alone", () => {
  noGrad(() => {
    noGrad(() => undefined);
    expect(isGradEnabled()).toBe(false);
    expect(mul(x, 2).requiresGrad).toBe(false);
  });
  expect(isGradEnabled()).toBe(true);
});

it("ends with an error, too", () => {
  expect(() =>
    noGrad(() => {
      throw new Error("stopped");
    }),
  ).toThrow("stopped");
  expect(isGradEnabled()).toBe(true);
});
