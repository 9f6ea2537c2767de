// crossEntropy against its float64 oracle.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import { crossEntropy } from "../../src/ops/cross-entropy.js";
import { tensor } from "../../src/tensor/create.js";
import type { DType } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { integers, normals } from "../helpers/random.js";
import { tolerance } from "../helpers/tolerance.js";
import { unaligned } from "../helpers/unaligned.js";
import { crossEntropyReference } from "../reference/cross-entropy.js";

describe.each(testDevices())("crossEntropy on %s", (device) => {
  const make = (values: Float32Array | Int32Array, shape: number[], dtype?: DType) =>
    tensor(values, { shape, device, ...(dtype && { dtype }) });

  describe("values", () => {
    it("is the mean over the rows that count, as a float32 scalar", () => {
      const [logits, targets] = [normals(40 * 33, 1, 4), integers(40, 33, 2)];
      targets[0] = targets[17] = -100;
      const loss = crossEntropy(make(logits, [2, 20, 33]), make(targets, [2, 20]));
      expect([loss.shape, loss.dtype]).toEqual([[], "float32"]);
      expectClose(loss.floatsSync(), [crossEntropyReference(logits, targets, 33)], tolerance("float32", "reduction"));
    });

    it("ignores another index when told", () => {
      const [logits, targets] = [normals(6 * 5, 3), Int32Array.of(0, 1, 2, 0, 4, 3)];
      const loss = crossEntropy(make(logits, [6, 5]), make(targets, [6]), { ignoreIndex: 0 });
      expectClose(loss.floatsSync(), [crossEntropyReference(logits, targets, 5, 0)]);
    });

    it("holds for logits of a million and for infinite ones", () => {
      const logits = Float32Array.of(1e6, 1e6 + 1, 0, -Infinity, 2, 1);
      const loss = crossEntropy(make(logits, [2, 3]), make(Int32Array.of(0, 2), [2]));
      expectClose(loss.floatsSync(), [crossEntropyReference(logits, [0, 2], 3)]);
    });

    it("is NaN when no row counts, with a gradient of zeros", () => {
      const logits = make(normals(6, 4), [2, 3]);
      logits.requiresGrad = true;
      const loss = crossEntropy(logits, make(Int32Array.of(-100, -100), [2]));
      expect(loss.itemSync()).toBeNaN();
      backward(loss);
      expect([...logits.grad!.floatsSync()]).toEqual([0, 0, 0, 0, 0, 0]);
    });
  });

  describe("gradients", () => {
    it.each([
      [1, 1],
      [4, 3],
      [9, 37],
    ])("of the logits for [%i, %i]", (rows, classes) => {
      const targets = integers(rows, classes, 5);
      if (rows > 1) targets[1] = -100;
      gradcheck(
        (logits) => crossEntropy(logits, make(targets, [rows])),
        [{ data: normals(rows * classes, 6, 2), shape: [rows, classes] }],
        { device, reference: (logits) => [crossEntropyReference(logits!, targets, classes)] },
      );
    });
  });

  describe("dtypes", () => {
    it.each(["float16", "bfloat16"] as const)("%s logits, float32 loss", (dtype) => {
      const [rows, classes] = [20, 101];
      const logits = make(normals(rows * classes, 7, 3), [rows, classes], dtype);
      logits.requiresGrad = true;
      const targets = integers(rows, classes, 8);
      const loss = crossEntropy(logits, make(targets, [rows]));
      expect(loss.dtype).toBe("float32");
      const values = logits.floatsSync();
      expectClose(
        loss.floatsSync(),
        [crossEntropyReference(values, targets, classes)],
        tolerance("float32", "reduction"),
      );
      backward(loss);
      expect(logits.grad!.dtype).toBe(dtype);
      const softmax = Float64Array.from(values, (v, at) => {
        const row = Math.floor(at / classes);
        const total = values.slice(row * classes, (row + 1) * classes).reduce((sum, x) => sum + Math.exp(x), 0);
        return (Math.exp(v) / total - (targets[row] === at % classes ? 1 : 0)) / rows;
      });
      expectClose(logits.grad!.floatsSync(), softmax, { ...tolerance(dtype), atol: 1e-7 });
    });
  });

  describe("shapes", () => {
    it.each([
      { rows: [], classes: 4 },
      { rows: [1, 1], classes: 1 },
      { rows: [3, 5, 2], classes: 131 },
      { rows: [300], classes: 256 },
    ])("targets $rows of $classes classes", ({ rows: shape, classes }) => {
      const rows = shape.reduce((n, d) => n * d, 1);
      const [logits, targets] = [normals(rows * classes, 9), integers(rows, classes, 10)];
      const loss = crossEntropy(make(logits, [...shape, classes]), make(targets, shape));
      expectClose(
        loss.floatsSync(),
        [crossEntropyReference(logits, targets, classes)],
        tolerance("float32", "reduction"),
      );
    });

    // Rows that begin anywhere, rows longer than one step of a block, and the gradient at the target.
    it.each([
      { rows: 5, classes: 1031, dtype: "bfloat16" },
      { rows: 3, classes: 20_011, dtype: "float16" },
      { rows: 2, classes: 9000, dtype: "float32" },
      { rows: 40, classes: 8, dtype: "float32" },
    ] as const)("[$rows, $classes] of $dtype, with gradients", ({ rows, classes, dtype }) => {
      const logits = unaligned(normals(rows * classes, 12, 3), [rows, classes], { dtype, device });
      const targets = integers(rows, classes, 13);
      targets[1] = -100;
      logits.requiresGrad = true;
      const loss = crossEntropy(logits, make(targets, [rows]));
      const values = logits.floatsSync();
      expectClose(
        loss.floatsSync(),
        [crossEntropyReference(values, targets, classes)],
        tolerance("float32", "reduction"),
      );
      backward(loss);
      const expected = new Float64Array(rows * classes);
      for (let r = 0; r < rows; r++) {
        if (targets[r] === -100) continue;
        const at = r * classes;
        let total = 0;
        for (let c = 0; c < classes; c++) total += Math.exp(values[at + c]!);
        for (let c = 0; c < classes; c++) {
          expected[at + c] = (Math.exp(values[at + c]!) / total - (targets[r] === c ? 1 : 0)) / (rows - 1);
        }
      }
      expectClose(logits.grad!.floatsSync(), expected, { ...tolerance(dtype), atol: 1e-7 });
    });

    it("is NaN for no rows", () => {
      expect(crossEntropy(make(new Float32Array(0), [0, 5]), make(new Int32Array(0), [0])).itemSync()).toBeNaN();
    });
  });

  describe("errors", () => {
    it.each([-1, 5, -101])("reports the target %i at the next read", async (target) => {
      const loss = crossEntropy(make(normals(10, 11), [2, 5]), make(Int32Array.of(1, target), [2]));
      await expect(loss.item()).rejects.toThrow(new RegExp(`${target}\\b.*\\b5\\b`));
    });
    it("names targets that do not fit", () => {
      const logits = make(normals(10, 12), [2, 5]);
      expect(() => crossEntropy(logits, make(new Int32Array(3), [3]))).toThrow(
        "crossEntropy: targets must have the shape of logits without the last axis, got [3] for [2, 5]",
      );
      expect(() => crossEntropy(logits, make(normals(2, 1), [2]))).toThrow(
        "crossEntropy: targets must be int32, got float32",
      );
    });
  });
});
