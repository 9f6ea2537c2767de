// The tape: order, accumulation, what is freed when, and what it refuses. Values of gradients are tested per op.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { backward, memory, noGrad, tensor, tidy } from "../../src/index.js";
import { add, mul, square } from "../../src/ops/elementwise.js";
import { sum } from "../../src/ops/reduce.js";
import { testDevices } from "../helpers/devices.js";

describe.each(testDevices())("backward on %s", (device) => {
  const leaf = (values: number[]): Tensor => tensor(values, { device, requiresGrad: true });
  const grad = (t: Tensor): number[] => [...(t.grad?.floatsSync() ?? [])];

  it("adds the gradients of every path to a leaf", () => {
    tidy(() => {
      const x = leaf([1, 2, 3]);
      // y = x * x + x, through a diamond
      backward(sum(add(mul(x, x), x)));
      expect(grad(x)).toEqual([3, 5, 7]);
      backward(sum(mul(x, 10)));
      expect(grad(x)).toEqual([13, 15, 17]);
    });
  });

  it("runs a node when the last that it fed has run, not as it is found", () => {
    tidy(() => {
      const x = leaf([1, 2]);
      // y is both next to the root and behind z; of the two paths, one is as long as it can be.
      const y = mul(x, 2);
      const z = mul(y, 3);
      backward(sum(add(y, z)));
      expect(grad(x)).toEqual([8, 8]);
      const w = leaf([1]);
      let last = mul(w, 1);
      const all = [last];
      for (let i = 0; i < 5; i++) {
        last = all.reduce((a, b) => add(b, a));
        all.push(last);
      }
      // Each is the sum of all before it: 1, 1, 2, 4, 8, 16.
      backward(sum(add(all[0] as Tensor, last)));
      expect(grad(w)).toEqual([17]);
    });
  });

  it("takes a gradient for a result that is no scalar", () => {
    tidy(() => {
      const x = leaf([1, 2]);
      backward(square(x), tensor([10, 100], { device }));
      expect(grad(x)).toEqual([20, 400]);
    });
  });

  it("gives each leaf of a sum its own gradient", () => {
    tidy(() => {
      const [a, b] = [leaf([1, 2]), leaf([3, 4])];
      backward(sum(add(a, b)));
      a.grad?.dispose();
      expect(grad(b)).toEqual([1, 1]);
    });
  });

  it("runs a graph deeper than the call stack, and frees it without recursion", () => {
    const before = memory().tensors;
    const x = leaf([1]);
    let y = mul(x, 1);
    for (let i = 0; i < 20_000; i++) {
      const next = add(y, 1);
      y.dispose();
      y = next;
    }
    backward(y);
    expect(grad(x)).toEqual([1]);
    y.dispose();
    let z = mul(x, 1);
    for (let i = 0; i < 20_000; i++) {
      const next = mul(z, z);
      z.dispose();
      z = next;
    }
    z.dispose();
    x.dispose();
    expect(memory().tensors).toBe(before);
  });

  it("leaves nothing behind, with and without a backward pass", () => {
    const before = memory().tensors;
    const x = leaf([1, 2, 3]);
    tidy(() => {
      backward(sum(mul(x, square(x))));
    });
    // x and its gradient
    expect(memory().tensors).toBe(before + 2);
    tidy(() => {
      sum(mul(x, square(x)));
    });
    expect(memory().tensors).toBe(before + 2);
    const kept = tidy(() => sum(mul(x, square(x))));
    backward(kept);
    expect(grad(x)).toEqual([6, 24, 54]);
    kept.dispose();
    x.dispose();
    expect(memory().tensors).toBe(before);
  });

  it("keeps what it saved when the inputs are disposed or updated meanwhile", () => {
    const x = leaf([2, 3]);
    const y = square(x);
    const z = mul(y, y);
    y.dispose();
    const total = sum(z);
    z.dispose();
    backward(total);
    expect(grad(x)).toEqual([32, 108]);
    x.dispose();
    total.dispose();
  });

  it("records nothing under noGrad and nothing for constants", () => {
    tidy(() => {
      const x = leaf([1]);
      expect(noGrad(() => mul(x, x)).requiresGrad).toBe(false);
      expect(mul(tensor([1], { device }), 2).requiresGrad).toBe(false);
      expect(mul(x, x).isLeaf).toBe(false);
      expect(x.isLeaf).toBe(true);
      expect(mul(x.detach(), 2).requiresGrad).toBe(false);
    });
  });

  it("names what is wrong", () => {
    tidy(() => {
      const x = leaf([1, 2]);
      expect(() => backward(tensor([1], { device }))).toThrow(
        "backward: the tensor must require a gradient; nothing it depends on does",
      );
      expect(() => backward(square(x))).toThrow(
        "backward: a tensor without a given gradient must have one element, got [2]",
      );
      expect(() => backward(square(x), tensor([1], { device }))).toThrow(
        "backward: the gradient must be float32 [2], got float32 [1]",
      );
      expect(() => backward(square(x), tensor([1, 1], { device, dtype: "float16" }))).toThrow(
        expect.objectContaining({
          code: "ERR_BNB_DTYPE",
          message: "backward: the gradient must be float32 [2], got float16 [2]",
        }),
      );
      expect(() => backward(square(x), tensor([[1, 1]], { device }))).toThrow("got float32 [1, 2]");
      const y = sum(square(x));
      backward(y);
      expect(() => backward(y)).toThrow(
        "backward: the graph was freed by an earlier backward; run the forward pass again (at sum)",
      );
      y.dispose();
      expect(() => backward(y)).toThrow("backward: the tensor was disposed");
    });
  });
});
