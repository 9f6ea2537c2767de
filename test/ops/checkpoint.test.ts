// Parts of a model that are computed again in the backward pass: the same bits, with less memory.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import { noGrad } from "../../src/autograd/no-grad.js";
import { checkpoint } from "../../src/ops/checkpoint.js";
import { copyInto, dropout, Generator, linear, randn, sum, tanh } from "../../src/ops/index.js";
import { full } from "../../src/tensor/create.js";
import { toDevice } from "../../src/tensor/device.js";
import { emptyCache, memory, tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";

describe.each(testDevices())("on %s", (name) => {
  const device = toDevice(name);
  const made = (seed: number, shape: number[], learns = true): Tensor => {
    const x = randn(shape, { generator: new Generator(seed), device });
    x.requiresGrad = learns;
    return x;
  };
  const layer = (w: Tensor, generator: Generator) => (x: Tensor) =>
    tanh(linear(dropout(x, 0.3, { generator }), w, null));
  const bits = (x: Tensor | null): number[] | null => x && [...x.floatsSync()];

  it.each([
    ["input and weights", true, true],
    ["weights alone", false, true],
    ["the input alone", true, false],
  ])(
    "gradients of %s are those of the plain pass, to the bit, and so is the stream of random numbers",
    (_, ofX, ofW) => {
      const run = (recompute: boolean) => {
        const [x, w, v] = [made(1, [6, 8], ofX), made(2, [8, 8], ofW), made(3, [8, 8], ofW)];
        const generator = new Generator(4);
        const through = (w: Tensor, x: Tensor): Tensor =>
          recompute ? checkpoint(layer(w, generator), x, [w]) : layer(w, generator)(x);
        const result = tidy(() => {
          const y = sum(through(v, through(w, x)));
          // What is drawn between does not matter to what is computed again.
          generator.take(100);
          backward(y);
          return [y.itemSync(), bits(x.grad), bits(w.grad), bits(v.grad), generator.state];
        });
        for (const used of [x, w, v]) used.dispose();
        return result;
      };
      expect(run(true)).toEqual(run(false));
    },
  );

  it("within one another, and with the same weight twice", () => {
    const run = (recompute: boolean) => {
      const [x, w] = [made(1, [6, 8]), made(2, [8, 8])];
      const generator = new Generator(4);
      const part = layer(w, generator);
      const once = (x: Tensor): Tensor => (recompute ? checkpoint(part, x, [w]) : part(x));
      const twice = (x: Tensor): Tensor => once(once(x));
      const result = tidy(() => {
        backward(sum(recompute ? checkpoint(twice, x, [w]) : twice(x)));
        return [bits(x.grad), bits(w.grad)];
      });
      x.dispose();
      w.dispose();
      return result;
    };
    expect(run(true)).toEqual(run(false));
  });

  it("keeps nothing of what is between, and leaves nothing behind", () => {
    const before = memory().tensors;
    const [x, w] = [made(1, [256, 64]), made(2, [64, 64])];
    const part = (x: Tensor): Tensor => [1, 2, 3, 4, 5, 6].reduce((h) => tanh(linear(h, w, null)), x);
    const peakOf = (through: (x: Tensor) => Tensor): number => {
      emptyCache();
      const live = memory().liveBytes;
      tidy(() => backward(sum([1, 2, 3, 4].reduce((h) => through(h), x))));
      for (const used of [x, w]) {
        used.grad?.dispose();
        used.grad = null;
      }
      return memory().peakBytes - live;
    };
    const plain = peakOf(part);
    expect(peakOf((x) => checkpoint(part, x, [w]))).toBeLessThan(0.6 * plain);
    x.dispose();
    w.dispose();
    expect(memory().tensors).toBe(before);
  });

  it("without gradients it is the part alone", () => {
    using x = made(1, [2, 8], false);
    using w = made(2, [8, 8], false);
    using y = checkpoint((x) => linear(x, w, null), x, [w]);
    expect(y.requiresGrad).toBe(false);
    w.requiresGrad = true;
    using z = noGrad(() => checkpoint((x) => linear(x, w, null), x, [w]));
    expect(z.requiresGrad).toBe(false);
  });

  it("notices what changed meanwhile", () => {
    using x = made(1, [2, 8]);
    using w = made(2, [8, 8]);
    using y = sum(checkpoint((x) => linear(x, w, null), x, [w]));
    noGrad(() => tidy(() => copyInto(w, full([8, 8], 1, { device }))));
    expect(() => backward(y)).toThrow("of checkpoint, float32 [8, 8], must be as it was in the forward pass");
  });
});
