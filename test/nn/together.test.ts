// Layers done together against the same layers one by one.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { add, noGrad, swiglu, tensor } from "../../src/index.js";
import { Linear } from "../../src/nn/linear.js";
import { Linear4bit } from "../../src/nn/linear-4bit.js";
import { linearEach, linearResidual, linearSwiglu } from "../../src/nn/together.js";
import { Generator } from "../../src/ops/random.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { noise } from "../helpers/noise.js";
import { tolerance } from "../helpers/tolerance.js";

class Doubled extends Linear4bit {
  override forward(x: Tensor): Tensor {
    return super.forward(x).mul(2);
  }
}

describe.each(testDevices())("on %s", (device) => {
  const options = { bias: false, device, generator: new Generator(3) };
  const quantized = (n: number) => new Linear4bit(64, n, { ...options, quantType: "nf4" });
  const x = () => tensor(noise(2 * 64, 2), { shape: [2, 64], device });
  const same = (actual: Tensor, expected: Tensor) =>
    expectClose(actual.floatsSync(), expected.floatsSync(), tolerance("float32", "reduction"));

  const kinds = {
    "4-bit layers": () => [quantized(24), quantized(24), quantized(24)],
    "layers with a bias": () => [24, 24, 24].map((n) => new Linear4bit(64, n, { ...options, bias: true })),
    "a dense layer among them": () => [quantized(24), new Linear(64, 24, options), quantized(24)],
    "a layer with a forward of its own": () => [quantized(24), new Doubled(64, 24, options), quantized(24)],
  };

  describe.each(Object.entries(kinds))("%s", (_, make) => {
    it("gives what each gives", () => {
      const layers = make();
      const ys = noGrad(() => linearEach(layers, x()));
      for (const [i, layer] of layers.entries()) same(ys[i]!, layer.forward(x()));
    });

    it("gives SwiGLU and the sum with a residual", () => {
      const [gate, up] = make() as [Linear, Linear];
      same(
        noGrad(() => linearSwiglu(gate, up, x())),
        swiglu(gate.forward(x()), up.forward(x())),
      );
      const residual = tensor(noise(2 * 24, 4), { shape: [2, 24], device });
      for (const layer of [gate, up]) same(linearResidual(layer, x(), residual), add(residual, layer.forward(x())));
    });

    it("goes one by one where a gradient is wanted", () => {
      const [a, b, c] = make() as [Linear, Linear, Linear];
      const input = x();
      input.requiresGrad = true;
      const ys = linearEach([a, b, c], input);
      const total = add(add(ys[0]!, ys[1]!), add(ys[2]!, linearSwiglu(a, b, input)));
      linearResidual(a, input, total).sum().backward();
      expect(input.grad!.floatsSync().some((v) => v !== 0)).toBe(true);
    });
  });
});
