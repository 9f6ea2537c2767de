// The gradient of a linear layer's bias: the sum over rows, of sums that are exact in float32.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import { linear, slice, tensor, zeros } from "../../src/index.js";
import { encode } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { integers } from "../helpers/random.js";

describe.each(testDevices())("the gradient of bias on %s", (device) => {
  const cases = [
    { rows: 1, cols: 1 },
    { rows: 3, cols: 7 },
    { rows: 5000, cols: 1 },
    { rows: 600, cols: 40 },
    { rows: 300, cols: 261 },
    { rows: 17_000, cols: 132 },
  ];
  describe.each(["float32", "float16", "bfloat16"] as const)("%s", (dtype) => {
    it.each(cases)("$rows rows of $cols", ({ rows, cols }) => {
      const data = Float32Array.from(integers(rows * cols, 9, 1), (v) => v - 4);
      const expected = new Float32Array(cols);
      for (let i = 0; i < rows * cols; i++) expected[i % cols]! += data[i]!;
      const bias = zeros([cols], { dtype, device, requiresGrad: true });
      const y = linear(zeros([rows, 0], { dtype, device }), zeros([cols, 0], { dtype, device }), bias);
      backward(y, tensor(data, { shape: [rows, cols], dtype, device }));
      expect(bias.grad!.dataSync()).toEqual(encode(expected, dtype));
    });

    it("of a view that starts between two vectors", () => {
      const data = Float32Array.from({ length: 161 }, (_, i) => (i % 11) - 5);
      const bias = zeros([16], { dtype, device, requiresGrad: true });
      const y = linear(zeros([10, 0], { dtype, device }), zeros([16, 0], { dtype, device }), bias);
      backward(y, slice(tensor(data, { dtype, device }), 0, 1, 161).reshape([10, 16]));
      const expected = Array.from({ length: 16 }, (_, c) => {
        let total = 0;
        for (let i = 0; i < 10; i++) total += data[1 + i * 16 + c]!;
        return total;
      });
      expect([...bias.grad!.floatsSync()]).toEqual(expected);
    });
  });
});
