// Sampling against its definition in float64 with the same random numbers, and against the statistics of many draws.
import { describe, expect, it } from "vitest";
import { sampleToken } from "../../src/ops/sample-token.js";
import { tensor } from "../../src/tensor/create.js";
import { devices } from "../../src/tensor/device.js";
import type { DType } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { normals } from "../helpers/random.js";
import type { Sampling } from "../reference/sample-token.js";
import { distribution, draw, uniformOf } from "../reference/sample-token.js";

describe.each(testDevices())("sampleToken on %s", (device) => {
  const make = (values: ArrayLike<number>, shape: number[] = [values.length], dtype: DType = "float32") =>
    tensor(Float32Array.from(values), { shape, dtype, device });
  const one = async (logits: ArrayLike<number>, options = {}) =>
    Number(await sampleToken(make(logits), options).item());

  /** Every row drawn as the definition does; where that is too close to call, either neighbour may be. */
  const compare = async (
    x: ArrayLike<number>,
    shape: [number, number],
    options: Sampling,
    dtype: DType = "float32",
  ) => {
    const [rows, n] = shape;
    const logits = make(x, shape, dtype);
    const values = await logits.floats();
    const tokens = await sampleToken(logits, { ...options, seed: 2 ** 40 + 7, step: 11 }).data();
    let close = 0;
    for (let r = 0; r < rows; r++) {
      const row = [...values.subarray(r * n, (r + 1) * n)];
      const expected = draw(row, options, uniformOf(2 ** 40 + 7, 11, r));
      if (expected.closest < 1e-5) close++;
      else expect(tokens[r], `row ${r}`).toBe(expected.token);
    }
    expect(close).toBeLessThan(1 + rows / 20);
  };

  const cases: Sampling[] = [
    { temperature: 1 },
    { temperature: 0.3 },
    { temperature: 2.5, topK: 1 },
    { temperature: 0.8, topK: 7 },
    { temperature: 0.8, topK: 5000 },
    { temperature: 1, topP: 0.9 },
    { temperature: 1.3, topP: 0.01 },
    { temperature: 0.7, topK: 20, topP: 0.5 },
    { temperature: 0.9, topK: 255, topP: 0.999 },
  ];

  describe("values", () => {
    it.each(cases)("draws as the definition does: %o", async (options) => {
      await compare(normals(16 * 300, 1, 3), [16, 300], options);
    });

    it("ranks equal logits by index", async () => {
      const x = normals(12 * 200, 2).map((v) => Math.round(2 * v) / 2);
      await compare(x, [12, 200], { temperature: 1, topK: 60, topP: 0.8 });
      await compare(new Float32Array(8 * 100).fill(-0), [8, 100], { temperature: 1, topK: 30 });
      expect(await one([0, -0, 0], { temperature: 1, topK: 1 })).toBe(0);
    });

    it("takes the first of the largest at temperature 0", async () => {
      expect(await one([0.5, 3, -1, 3], { topK: 2 })).toBe(1);
      expect(await one([-5, -3, -4])).toBe(1);
      expect(await one([-Infinity, -Infinity, -2])).toBe(2);
      expect(await one([-1e-45, 0, 0])).toBe(1);
    });

    it("is greedy at a temperature near 0, and does not overflow on large logits", async () => {
      expect(await one([1, 1.0000001, 0], { temperature: 1e-300 })).toBe(1);
      await compare([3e38, 3e38, -3e38, 3e38, 3e38, -3e38], [2, 3], { temperature: 0.01 });
    });

    it("never draws a token with logit -Infinity", async () => {
      const rows = 64;
      const x = Float32Array.from({ length: rows * 4 }, (_, i) => (i % 2 ? 0 : -Infinity));
      const tokens = await sampleToken(make(x, [rows, 4]), { temperature: 1, topK: 3 }).data();
      expect([...new Set(tokens)].sort()).toEqual([1, 3]);
    });

    it("gives -1 where no token can be drawn", async () => {
      const rows = [0, NaN, 1, 0, Infinity, 1, -Infinity, -Infinity, -Infinity, 1, 0, -Infinity];
      for (const temperature of [0, 1e-6]) {
        expect([...(await sampleToken(make(rows, [4, 3]), { temperature }).data())]).toEqual([-1, -1, -1, 0]);
      }
    });

    it("draws anew with another seed, step or position", async () => {
      const rows = 16;
      const logits = make(new Float32Array(rows * 50), [rows, 50]);
      const tokens = async (options: object) => [...(await sampleToken(logits, { temperature: 1, ...options }).data())];
      const first = await tokens({ seed: 1, step: 5 });
      expect(await tokens({ seed: 1, step: 5 })).toEqual(first);
      expect(await tokens({ seed: 1 + 2 ** 32, step: 5 })).not.toEqual(first);
      expect(await tokens({ seed: 1, step: 6 })).not.toEqual(first);
      const position = tensor([3], { dtype: "int32", device });
      expect(await tokens({ seed: 1, step: 2, position })).toEqual(first);
    });
  });

  // A GPU takes rows in parts of 4096 elements and so many rows at once; the definition is too slow for these, but the
  // CPU is held to it above.
  describe("long rows and many rows equal those of the CPU", () => {
    const equal = async (
      x: ArrayLike<number>,
      shape: [number, number],
      options: Sampling,
      dtype: DType = "float32",
    ) => {
      const given = { ...options, seed: 99, step: 3 };
      const there = await sampleToken(make(x, shape, dtype), given).data();
      const here = await sampleToken(tensor(Float32Array.from(x), { shape, dtype, device: "cpu" }), given).data();
      expect([...there]).toEqual([...here]);
    };

    it.each([{ temperature: 0 }, ...cases])("rows of several parts: %o", async (options) => {
      for (const n of [4095, 4096, 4097, 12289]) await equal(normals(3 * n, n, 3), [3, n], options);
    });

    it.each([{ temperature: 0 }, { temperature: 1 }, { temperature: 1, topK: 9000, topP: 0.7 }])(
      "equal logits in all parts: %o",
      async (options) => {
        const n = 10_000;
        await equal(new Float32Array(4 * n), [4, n], options);
        await equal(
          normals(2 * n, 4).map((v) => Math.round(v)),
          [2, n],
          options,
          "bfloat16",
        );
      },
    );

    it("the largest, a NaN or the only token in any part", async () => {
      const n = 9000;
      const x = new Float32Array(5 * n).fill(-Infinity);
      x[8500] = 1;
      x[n + 4096] = 1;
      x[2 * n] = 1;
      x[2 * n + 8999] = NaN;
      x[3 * n + 5000] = Infinity;
      for (const temperature of [0, 1]) {
        await equal(x, [5, n], { temperature });
        const tokens = sampleToken(make(x, [5, n]), { temperature }).dataSync();
        expect([...tokens]).toEqual([8500, 4096, -1, -1, -1]);
      }
    });

    // A block a row: an emulated GPU takes minutes for the second.
    const isEmulated = devices().some((d) => String(d) === device && d.name === "emulated GPU");
    it.each(isEmulated ? [{ temperature: 0 }] : [{ temperature: 0 }, { temperature: 1, topK: 2 }])(
      "more rows than there are counters: %o",
      async (options) => {
        await equal(normals(4100 * 3, 6), [4100, 3], options);
      },
    );
  });

  describe("dtypes", () => {
    it.each(["float16", "bfloat16"] as const)("%s", async (dtype) => {
      await compare(normals(8 * 130, 8, 2), [8, 130], { temperature: 0.9, topK: 50, topP: 0.95 }, dtype);
    });
  });

  describe("shapes", () => {
    it.each([[[1]], [[2, 3, 7]], [[0, 5]], [[5, 1]], [[3, 2049]]])("%j", (shape: number[]) => {
      const x = normals(
        shape.reduce((n, d) => n * d, 1),
        9,
      );
      const y = sampleToken(make(x, shape), { temperature: 1, topK: 4 });
      expect(y.shape).toEqual(shape.slice(0, -1));
      expect(y.dtype).toBe("int32");
      expect([...y.dataSync()].every((token) => token >= 0 && token < shape.at(-1)!)).toBe(true);
    });
  });

  describe("errors", () => {
    it.each([
      [{ temperature: -2 }, "sampleToken: temperature must be a number of at least 0, got -2"],
      [{ temperature: NaN }, "sampleToken: temperature must be a number of at least 0, got nan"],
      [{ topK: -1 }, "sampleToken: topK must be an integer of at least 0, got -1"],
      [{ topK: 1.5 }, "sampleToken: topK must be an integer, got 1.5"],
      [{ topP: 0 }, "sampleToken: topP must be above 0 and at most 1, got 0"],
      [{ topP: 1.1 }, "sampleToken: topP must be above 0 and at most 1, got 1.1"],
      [{ seed: -1 }, "sampleToken: seed and step must not be negative, got -1 and 0"],
    ])("names the option: %o", (options, message) => {
      expect(() => sampleToken(make([1, 2]), options)).toThrow(message);
    });

    it("names logits without tokens, integers, and a position out of range", async () => {
      expect(() => sampleToken(make([1], []))).toThrow("sampleToken: logits must have an axis of tokens, got []");
      expect(() => sampleToken(make([], [2, 0]))).toThrow(
        "sampleToken: the last axis of logits must have 1 to 8388608 elements, got [2, 0]",
      );
      expect(() => sampleToken(tensor([1], { dtype: "int32", device }))).toThrow(
        "sampleToken: logits must be float32, float16 or bfloat16, got int32",
      );
      const position = tensor([-1], { dtype: "int32", device });
      await expect(sampleToken(make([1, 2]), { temperature: 1, position }).data()).rejects.toThrow(
        /sample_token: index -1 is out of range/,
      );
    });
  });
});

// What other devices draw is equal, as the tests above show.
describe("sampleToken", () => {
  it("draws with the frequencies of the distribution (chi-square)", async () => {
    const logits = [...normals(32, 5, 2)];
    const options = { temperature: 1.2, topK: 12, topP: 0.97 };
    const expected = distribution(logits, options);
    const draws = 20_000;
    const x = Float32Array.from({ length: draws * 32 }, (_, i) => logits[i % 32] as number);
    const counts = new Map<number, number>();
    for (const token of await sampleToken(tensor(x, { shape: [draws, 32], device: "cpu" }), {
      ...options,
      seed: 3,
    }).data()) {
      counts.set(token, (counts.get(token) ?? 0) + 1);
    }
    expect([...counts.keys()].every((token) => expected.some((e) => e.token === token))).toBe(true);
    const chiSquare = expected.reduce((sum, { token, probability }) => {
      const want = draws * probability;
      return sum + ((counts.get(token) ?? 0) - want) ** 2 / want;
    }, 0);
    // Mean is the degrees of freedom n - 1, standard deviation sqrt(2 (n - 1)); four of them.
    const freedom = expected.length - 1;
    expect(chiSquare).toBeLessThan(freedom + 4 * Math.sqrt(2 * freedom));
  });
});
