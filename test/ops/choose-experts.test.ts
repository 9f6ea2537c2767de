// The router of a mixture of experts against its float64 oracle.
import { describe, expect, it } from "vitest";
import { chooseExperts } from "../../src/ops/choose-experts.js";
import { tensor } from "../../src/tensor/create.js";
import type { DType } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { normals } from "../helpers/random.js";
import { chooseExpertsReference } from "../reference/experts.js";

describe.each(testDevices())("chooseExperts on %s", (device) => {
  const make = (values: ArrayLike<number>, shape: number[], dtype: DType = "float32") =>
    tensor(Float32Array.from(values), { shape, dtype, device });

  const cases = [
    [1, 1, 1],
    [3, 8, 2],
    [5, 8, 8],
    [2, 128, 8],
    [70, 60, 4],
    [4, 33, 1],
    [1, 300, 40],
  ].flatMap(([rows, n, k]) => [true, false].map((normalize) => ({ rows: rows!, n: n!, k: k!, normalize })));

  describe("values", () => {
    it.each(cases)("%o", ({ rows, n, k, normalize }) => {
      const logits = normals(rows * n, 2, 11);
      const { shares, experts } = chooseExperts(make(logits, [rows, n]), k, { normalize });
      const expected = chooseExpertsReference(logits, n, k, normalize);
      expect([...experts.dataSync()]).toEqual(expected.experts);
      expect(experts.shape).toEqual([rows, k]);
      expect(shares.shape).toEqual([rows, k]);
      expect(shares).toBeCloseToTensor(expected.shares);
    });

    it("takes exactly k of equals, those of the lower indices", () => {
      const rows = [
        [1, 3, 3, 1, 3],
        [2, 2, 2, 2, 2],
        [0, 1, 1, 1, 2],
        [-Infinity, -Infinity, 5, -Infinity, -Infinity],
      ];
      const { shares, experts } = chooseExperts(make(rows.flat(), [4, 5]), 3, { normalize: true });
      expect([...experts.dataSync()]).toEqual([1, 2, 4, 0, 1, 2, 4, 1, 2, 2, 0, 1]);
      expectClose(shares.floatsSync().slice(0, 3), [1 / 3, 1 / 3, 1 / 3]);
      expect([...shares.floatsSync()].slice(9)).toEqual([1, 0, 0]);
    });

    it("takes the lowest indices of a row with NaN or +infinity", () => {
      const rows = [
        [1, NaN, 3, 4],
        [NaN, NaN, NaN, NaN],
        [Infinity, 1, 2, 3],
        [1, 4, 2, 3],
      ];
      const { shares, experts } = chooseExperts(make(rows.flat(), [4, 4]), 2);
      expect([...experts.dataSync()]).toEqual([0, 1, 0, 1, 0, 1, 1, 3]);
      expect([...shares.floatsSync()].map(Number.isNaN)).toEqual([true, true, true, true, true, true, false, false]);
    });

    it("of a row does not depend on the others", () => {
      const logits = normals(40 * 64, 2, 5);
      const all = chooseExperts(make(logits, [40, 64]), 6);
      const last = chooseExperts(make(logits.slice(39 * 64), [1, 64]), 6);
      expect([...last.shares.floatsSync()]).toEqual([...all.shares.floatsSync()].slice(39 * 6));
      expect([...last.experts.dataSync()]).toEqual([...all.experts.dataSync()].slice(39 * 6));
    });
  });

  describe("gradients", () => {
    it.each(cases.filter(({ rows, n }) => rows * n < 300))("%o", ({ rows, n, k, normalize }) => {
      const data = normals(rows * n, 2, 11);
      gradcheck((x) => chooseExperts(x, k, { normalize }).shares, [{ data, shape: [rows, n] }], {
        device,
        reference: (x) => chooseExpertsReference(x!, n, k, normalize).shares,
      });
    });
  });

  describe("dtypes", () => {
    it.each(["float16", "bfloat16"] as const)("%s", (dtype) => {
      const logits = make(normals(12 * 20, 2, 3), [12, 20], dtype);
      logits.requiresGrad = true;
      const { shares, experts } = chooseExperts(logits, 3, { normalize: true });
      const expected = chooseExpertsReference(logits.floatsSync(), 20, 3, true);
      expect([shares.dtype, experts.dtype]).toEqual(["float32", "int32"]);
      expect([...experts.dataSync()]).toEqual(expected.experts);
      expect(shares).toBeCloseToTensor(expected.shares);
    });
  });

  describe("shapes", () => {
    it("of no token", () => {
      const { shares, experts } = chooseExperts(make([], [0, 4]), 2);
      expect([shares.shape, experts.shape]).toEqual([
        [0, 2],
        [0, 2],
      ]);
    });
  });

  describe("errors", () => {
    it.each([
      [() => chooseExperts(make([1, 2, 3], [3]), 1), "chooseExperts: logits must be [tokens, experts], got [3]"],
      [
        () => chooseExperts(make([1, 2], [1, 2]), 3),
        "chooseExperts: k must be from 1 to the number of experts (2), got 3",
      ],
      [() => chooseExperts(make([], [1, 0]), 1), "chooseExperts: k must be from 1 to the number of experts (0), got 1"],
      [() => chooseExperts(make([1, 2], [1, 2]), 0), "chooseExperts: k must be an integer from 1 to 2147483647, got 0"],
      [
        () => chooseExperts(make([1, 2], [1, 2], "int32"), 1),
        "chooseExperts: logits must be float32, float16 or bfloat16, got int32",
      ],
      [
        () => chooseExperts(make([1, 2], [1, 2]), 1, { normalize: 1 as unknown as boolean }),
        "chooseExperts: normalize must be true or false, got 1",
      ],
    ])("%#", (call, message) => {
      expect(call).toThrow(message);
    });
  });
});
