// Sizes whose product does not fit: refused by whatever takes a shape, before anything is made of them.
import { describe, expect, it } from "vitest";
import {
  broadcastTo,
  concat,
  empty,
  fromBytes,
  full,
  linear,
  matmul,
  ones,
  QuantState,
  quantize4bit,
  rand,
  randint,
  reshape,
  slice,
  tensor,
  zeros,
} from "../../src/index.js";
import { addon } from "../../src/tensor/addon.js";
import { run } from "../../src/tensor/run.js";
import { checkShape } from "../../src/tensor/shape.js";
import { testDevices } from "../helpers/devices.js";

// Products 1, 0 and 2^62 modulo 2^64, a product beyond 2^53, and one that a 0 hides.
const wraps = [
  [274177, 67280421310721],
  [2 ** 32, 2 ** 32],
  [2 ** 31, 2 ** 31],
  [2 ** 27, 2 ** 27],
  [0, 2 ** 40, 2 ** 40],
];

describe.each(testDevices())("sizes on %s", (device) => {
  it.each(wraps.map((shape) => [shape]))("%s is no shape", (shape) => {
    const dims = shape.join(", ");
    const shapeError = expect.objectContaining({
      name: "BnbError",
      code: "ERR_BNB_SHAPE",
      message: expect.stringContaining(`[${dims}]`) as string,
    }) as Error;
    for (const make of [empty, zeros, ones, rand]) expect(() => make(shape, { device }), make.name).toThrow(shapeError);
    expect(() => full(shape, 1, { device })).toThrow(shapeError);
    expect(() => randint(shape, { high: 2, device })).toThrow(shapeError);
    expect(() => fromBytes(new Uint8Array(4), { dtype: "float32", shape, device })).toThrow(shapeError);
    expect(() => tensor([1], { shape, device })).toThrow(shapeError);
    const x = ones([1], { device });
    expect(() => broadcastTo(x, shape)).toThrow(shapeError);
    expect(() => run(addon.view, x, shape, 0, 0)).toThrow(shapeError);
    expect(() => run(addon.sumTo, x, shape, 0)).toThrow("must broadcast");
    const [, state] = quantize4bit(ones([64], { device }), { quantType: "nf4" });
    const { absmax } = state;
    expect(() => new QuantState({ absmax, blocksize: 64, dtype: "float32", quantType: "nf4", shape })).toThrow(
      shapeError,
    );
    expect(() =>
      run(addon.quantized4bit, zeros([32], { dtype: "uint8", device }), state.scales, shape, 0, 0, 0),
    ).toThrow(shapeError);
    expect(() => QuantState.fromDict({ ...state.asDict(), shape }, device)).toThrow("shape is too large");
  });

  it("nothing is read beyond a tensor through a product that wraps around", () => {
    const x = ones([1], { device });
    expect(() => slice(slice(broadcastTo(x, [274177, 67280421310721]), 0, 0, 1), 1, 1e9, 1e9 + 4)).toThrow(
      "the size must stay below 2^53 bytes",
    );
  });

  it("results that would be too large are refused, also where no element is read", () => {
    const tall = zeros([2 ** 40, 0], { device });
    const wide = zeros([0, 2 ** 40], { device });
    expect(() => matmul(tall, wide)).toThrow("the size must stay below 2^53 bytes");
    expect(() => linear(tall, zeros([2 ** 40, 0], { device }), null)).toThrow("the size must stay below 2^53 bytes");
    expect(() => matmul(zeros([3, 2 ** 40, 0], { device }), wide)).toThrow("the size must stay below 2^53 bytes");
    expect(() =>
      concat(
        Array.from({ length: 3 }, () => zeros([2 ** 52, 0], { device })),
        0,
      ),
    ).toThrow("the joined axis must stay below 2^53");
    expect(() => reshape(zeros([0], { device }), [0, 2 ** 40, 2 ** 40])).toThrow("the size must stay below 2^53 bytes");
    expect(() => run(addon.matmulBackward, tall, wide, zeros([0], { device }), false, false, true, true)).toThrow(
      "sizes must be at least 0 and multiply to at most 2^53",
    );
  });

  it("an empty tensor may have large axes beside its 0", async () => {
    const x = zeros([2 ** 31, 0, 3], { device });
    expect(x.size).toBe(0);
    expect((await x.data()).length).toBe(0);
  });

  it.each([
    [5, "shape must be an array of sizes, got 5"],
    [undefined, "shape must be an array of sizes, got undefined"],
    [[2, -1], "sizes must be whole numbers of at least 0, got [2, -1]"],
    [[1.5], "sizes must be whole numbers of at least 0, got [1.5]"],
    [["2"], "sizes must be whole numbers of at least 0, got [2]"],
    [[null], "sizes must be whole numbers of at least 0, got [null]"],
  ])("%j is no shape", (shape, rule) => {
    expect(() => checkShape("op", shape as never)).toThrow(`op: ${rule}`);
    expect(() => fromBytes(new Uint8Array(8), { dtype: "float32", shape: shape as never, device })).toThrow(
      /^fromBytes: shape/,
    );
    expect(() => zeros(shape as never, { device })).toThrow(/^zeros: shape/);
  });
});
