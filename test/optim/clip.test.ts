// Gradient clipping against norms computed in float64.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { memory, tensor } from "../../src/index.js";
import { clipGradNorm, clipGradValue } from "../../src/optim/index.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { normals } from "../helpers/optimizers.js";
import { tolerance } from "../helpers/tolerance.js";
import { unaligned } from "../helpers/unaligned.js";

const dtypes = ["float32", "float16", "bfloat16"] as const;

describe.each(testDevices())("clip_gradients on %s", (device) => {
  const sizes = [0, 1, 7, 300, 20_011];
  function params(dtype: (typeof dtypes)[number] | "mixed"): { list: Tensor[]; values: number[] } {
    const list = sizes.map((n, i) => {
      const p = tensor(new Float32Array(n), { device, requiresGrad: true });
      p.grad = tensor(normals(n, 0.5, n), { dtype: dtype === "mixed" ? dtypes[i % 3]! : dtype, device });
      return p;
    });
    return { list, values: list.flatMap((p) => [...p.grad!.floatsSync()]) };
  }
  const grads = (list: Tensor[]) => list.flatMap((p) => [...p.grad!.floatsSync()]);

  describe("values", () => {
    it.each([...dtypes, "mixed"] as const)("scales %s gradients to the norm and returns what it was", (dtype) => {
      const { list, values } = params(dtype);
      const norm = Math.hypot(...values);
      const got = clipGradNorm(list, 1.5)!;
      expectClose([got.itemSync()], [norm], { atol: 0, rtol: 1e-6 });
      const bound = tolerance(dtype === "mixed" ? "bfloat16" : dtype);
      expectClose(
        grads(list),
        values.map((x) => (x * 1.5) / (norm + 1e-6)),
        bound,
      );
    });

    it("knows the norm of numbers whose squares are no float32, and of unaligned tensors", () => {
      for (const [scale, dtype] of [
        [1e-30, "float32"],
        [1e30, "float32"],
        [1e30, "bfloat16"],
        [1, "float16"],
      ] as const) {
        const p = tensor(new Float32Array(1000), { device, requiresGrad: true });
        p.grad = unaligned(
          normals(1000, 0.5, 5).map((v) => v * scale),
          [1000],
          { dtype, device },
        );
        const before = [...p.grad.floatsSync()];
        const norm = Math.hypot(...before);
        expectClose([clipGradNorm([p], scale)!.itemSync() / norm], [1], { atol: 0, rtol: 1e-6 });
        const factor = Math.min(1, scale / (norm + 1e-6));
        expectClose(
          grads([p]).map((x) => x / scale),
          before.map((x) => (x * factor) / scale),
          tolerance(dtype),
        );
      }
    });

    it("leaves gradients below the norm as they are", () => {
      const { list, values } = params("float32");
      clipGradNorm(list, 1e6);
      expect(grads(list)).toEqual(values);
    });

    it("knows the largest magnitude as a norm", () => {
      const { list, values } = params("float32");
      const largest = Math.max(...values.map(Math.abs));
      expect(clipGradNorm(list, 0.1, { normType: Infinity })!.itemSync()).toBe(Math.fround(largest));
      expectClose(
        grads(list),
        values.map((x) => (x * 0.1) / (largest + 1e-6)),
      );
    });

    it("a NaN makes the norm NaN", () => {
      for (const normType of [2, Infinity] as const) {
        const { list } = params("float32");
        list[2]!.grad = tensor([1, Number.NaN, Infinity, 1, 1, 1, 1], { device });
        expect(clipGradNorm(list, 1, { normType })!.itemSync()).toBeNaN();
      }
    });

    it.each(dtypes)("limits %s values", (dtype) => {
      const { list, values } = params(dtype);
      clipGradValue(list, 0.25);
      expect(grads(list)).toEqual(values.map((x) => Math.max(-0.25, Math.min(0.25, x))));
    });
  });

  describe("shapes", () => {
    it("takes one tensor, and answers null when there is no gradient", () => {
      const p = tensor([3, 4], { device, requiresGrad: true });
      expect(clipGradNorm([p], 1)).toBeNull();
      clipGradValue([p], 1);
      p.grad = tensor([3, 4], { device });
      expect(clipGradNorm(p, 1)!.itemSync()).toBe(5);
      expectClose(p.grad.floatsSync(), [0.6, 0.8], { atol: 1e-6, rtol: 0 });
    });

    it("leaves no memory behind", () => {
      const { list } = params("float32");
      const before = memory();
      clipGradNorm(list, 1)!.dispose();
      clipGradValue(list, 1);
      expect(memory().liveBytes).toBe(before.liveBytes);
      expect(memory().tensors).toBe(before.tensors);
    });
  });

  describe("errors", () => {
    it("names what must hold", () => {
      const { list } = params("float32");
      expect(() => clipGradNorm(list, -1)).toThrow("clipGradNorm: maxNorm must be a number of at least 0, got -1");
      expect(() => clipGradNorm(list, Number.NaN)).toThrow("got NaN");
      expect(() => clipGradValue(list, -1)).toThrow("clipGradValue: clipValue must be a number of at least 0, got -1");
      expect(() => clipGradNorm(list, 1, { normType: 3 as never })).toThrow(
        "clipGradNorm: normType must be one of 2, Infinity, got 3",
      );
      list[1]!.grad = tensor([1], { dtype: "int32", device });
      expect(() => clipGradNorm(list, 1)).toThrow(
        "clipGradients: gradients must be float32, float16 or bfloat16, got int32",
      );
    });
  });
});
