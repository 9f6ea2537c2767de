// arange: how many numbers there are, where they stand, and which bounds are refused. tensor: numbers that no element holds.
import { describe, expect, it } from "vitest";
import { arange, tensor } from "../../src/index.js";

describe("arange", () => {
  it.each([
    [[3], [0, 1, 2]],
    [[2.5], [0, 1, 2]],
    [
      [0, 1, 0.25],
      [0, 0.25, 0.5, 0.75],
    ],
    [
      [0, 1.01, 0.25],
      [0, 0.25, 0.5, 0.75, 1],
    ],
    [
      [1, 4, 2],
      [1, 3],
    ],
    [
      [1, 5, 2],
      [1, 3],
    ],
    [
      [1, 5.5, 2],
      [1, 3, 5],
    ],
    [
      [5, 0, -2],
      [5, 3, 1],
    ],
    [
      [5, 0.5, -2],
      [5, 3, 1],
    ],
    [
      [5, 1, -2],
      [5, 3],
    ],
    [
      [-0.5, 2],
      [-0.5, 0.5, 1.5],
    ],
    [[0], []],
    [[3, 1], []],
    [[1, 3, -1], []],
    [[0.5], [0]],
  ] as const)("arange(...%j)", (bounds, values) => {
    const [first, last, step] = bounds as readonly [number, number?, number?];
    const x = arange(first, last, step);
    expect(x.dtype).toBe("float32");
    expect([...x.floatsSync()]).toEqual(values);
  });

  it("has other types, whose numbers are those of float64 rounded once", () => {
    expect([...arange(0, 5, 1, { dtype: "int32" }).dataSync()]).toEqual([0, 1, 2, 3, 4]);
    const tenths = arange(0, 100, 0.1).floatsSync();
    expect(tenths).toEqual(Float32Array.from({ length: 1000 }, (_, i) => i * 0.1));
  });

  it.each([
    [0, 1, 0],
    [0, Infinity, 1],
    [NaN, 1, 1],
    [0, 1, NaN],
  ])("arange(%s, %s, %s) has no end", (start, end, step) => {
    expect(() => arange(start, end, step)).toThrow("arange: bounds and a non-zero step must be finite");
  });
});

describe("tensor", () => {
  it.each([
    [[300, -1], "uint8", "300 at 0"],
    [[3, -1], "uint8", "-1 at 1"],
    [[[0, 128]], "int8", "128 at 1"],
    [Float64Array.of(0, 2 ** 31), "int32", "2147483648 at 1"],
    [[Number.NaN], "int32", "NaN at 0"],
    [Infinity, "int8", "Infinity at 0"],
    [Int32Array.of(-129), "int8", "-129 at 0"],
  ] as const)("refuses %o as %s", (data, dtype, got) => {
    expect(() => tensor(data as never, { dtype })).toThrow(`tensor: data must fit ${dtype}, got ${got}`);
  });

  it.each([
    [[255.9, -0.5, 0], "uint8", [255, 0, 0]],
    [[-128.5, 127.5], "int8", [-128, 127]],
    [[-(2 ** 31), 2 ** 31 - 1], "int32", [-(2 ** 31), 2 ** 31 - 1]],
  ] as const)("takes what just fits, and cuts fractions off: %o", (data, dtype, want) => {
    using made = tensor([...data], { dtype });
    expect([...made.dataSync()]).toEqual(want);
  });

  it("names the arrays that it takes", () => {
    expect(() => tensor(new Uint32Array(1) as never)).toThrow(
      /^tensor: data must be numbers or a Float32Array, .* or BigInt64Array, got \[Uint32Array\]/,
    );
  });
});
