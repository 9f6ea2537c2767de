// Activations as layers: what the layers of one function add to it.
import { expect, it } from "vitest";
import { arange, nn, softmax, zeros } from "../../src/index.js";

it("print as in Python", () => {
  const layers = [new nn.ReLU(), new nn.SiLU(), new nn.Tanh(), new nn.Sigmoid(), new nn.GELU(), new nn.Softmax(1)];
  const lines = ["ReLU()", "SiLU()", "Tanh()", "Sigmoid()", "GELU(approximate='none')", "Softmax(dim=1)"];
  expect([...layers, new nn.Flatten()].map(String)).toEqual([...lines, "Flatten(start_dim=1, end_dim=-1)"]);
});

it("Softmax: along any axis", () => {
  const x = arange(24).reshape([2, 3, 4]).mul(0.37);
  const y = new nn.Softmax(1).forward(x);
  const turned = softmax(x.transpose(1, 2)).transpose(1, 2);
  expect(y.shape).toEqual([2, 3, 4]);
  expect([...y.floatsSync()]).toEqual([...turned.floatsSync()]);
  // Along the axis the shares add up to one.
  const [a, b, c] = [0, 4, 8].map((i) => y.floatsSync()[i] as number) as [number, number, number];
  expect(a + b + c).toBeCloseTo(1, 6);
  expect([...new nn.Softmax(-2).forward(x).floatsSync()]).toEqual([...y.floatsSync()]);
});

it("Flatten: all but the batch, or the axes named", () => {
  const x = zeros([2, 3, 4, 5]);
  expect(new nn.Flatten().forward(x).shape).toEqual([2, 60]);
  expect(new nn.Flatten(0, 1).forward(x).shape).toEqual([6, 4, 5]);
  expect(new nn.Flatten(-2).forward(x).shape).toEqual([2, 3, 20]);
  expect(new nn.Flatten(2, 2).forward(x).shape).toEqual([2, 3, 4, 5]);
});

it("axes that x does not have", () => {
  const x = zeros([2, 3]);
  expect(() => new nn.Softmax(2).forward(x)).toThrow("Softmax: dim must be an axis of x, got 2 for [2,3]");
  expect(() => new nn.Flatten(0, -3).forward(x)).toThrow("Flatten: endDim must be an axis of x, got -3 for [2,3]");
  expect(() => new nn.Flatten(1, 0).forward(x)).toThrow(
    "Flatten: startDim must not lie behind endDim, got 1 and 0 of [2,3]",
  );
  expect(() => new nn.Softmax(0.5)).toThrow("Softmax: dim must be an integer");
});
