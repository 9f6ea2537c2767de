// Products on the tensor cores, forced, around the edges of every tile. Sums of small integers are exact, so that a
// result can differ from the definition by its one rounding only.
import { describe, expect, it, vi } from "vitest";

// Read by the addon once, at its first product.
vi.hoisted(() => {
  process.env["BNB_PLAN_MATMUL"] = "mma";
});

import { backward } from "../../src/autograd/backward.js";
import { devices, tensor } from "../../src/index.js";
import { linear, matmul } from "../../src/ops/matmul.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { integers } from "../helpers/random.js";
import type { ProductSizes } from "../reference/matmul.js";
import { matmulReference } from "../reference/matmul.js";

type Half = "float16" | "bfloat16";
const gpu = devices().find((device) => device.type === "cuda");
// bfloat16 needs compute capability 8.0.
const halves: Half[] = gpu && gpu.computeCapability < 8 ? ["float16"] : ["float16", "bfloat16"];
const flags = [false, true];
const layouts = flags.flatMap((transposeA) => flags.map((transposeB) => ({ transposeA, transposeB })));
const small = (n: number, seed: number) => Float32Array.from(integers(n, 9, seed), (v) => v - 4);

describe.each(testDevices().filter((device) => device.startsWith("cuda")))("matmul on tensor cores of %s", (device) => {
  const round = (values: ArrayLike<number>, dtype: Half) =>
    tensor(Float32Array.from(values), { dtype, device: "cpu" }).floatsSync();

  function check(sizes: ProductSizes, dtype: Half): void {
    const { batch, m, n, k, transposeA = false, transposeB = false, sharedB } = sizes;
    const x = small(batch * m * k, m + k);
    const y = small((sharedB ? 1 : batch) * n * k, n + k + 1);
    const lead = batch === 1 && !sharedB ? [] : [batch];
    using a = tensor(x, { shape: [...lead, ...(transposeA ? [k, m] : [m, k])], dtype, device });
    using b = tensor(y, { shape: [...(sharedB ? [] : lead), ...(transposeB ? [n, k] : [k, n])], dtype, device });
    using c = matmul(a, b, { transposeA, transposeB });
    expect(c.floatsSync(), JSON.stringify(sizes)).toEqual(round(matmulReference(x, y, sizes), dtype));
  }

  it.each(halves)("streams b for up to 16 rows, in %s", (dtype) => {
    for (const m of [1, 2, 15, 16])
      for (const n of [1, 31, 32, 33, 70])
        for (const k of [0, 8, 120, 128, 136, 1032]) check({ batch: 1, m, n, k, transposeB: true }, dtype);
  });

  it.each(halves.flatMap((dtype) => layouts.map((layout) => ({ dtype, ...layout }))))(
    "multiplies around the edges of its tiles, %o",
    ({ dtype, ...layout }) => {
      // A contiguous axis must be a multiple of 8, the others are free.
      const ms = layout.transposeA ? [8, 64, 72, 136] : [17, 63, 64, 65, 130];
      const ns = layout.transposeB ? [1, 63, 64, 65, 129] : [8, 56, 64, 72, 136];
      const ks = layout.transposeA && !layout.transposeB ? [1, 31, 33, 64, 65, 129] : [8, 56, 64, 72, 200];
      for (const m of ms)
        for (const n of ns) for (const k of ks.slice(0, 2)) check({ batch: 1, m, n, k, ...layout }, dtype);
      for (const k of ks) check({ batch: 1, m: ms[3]!, n: ns[3]!, k, ...layout }, dtype);
      // As many large tiles as the emulated device has multiprocessors.
      for (const k of ks) check({ batch: 1, m: 248, n: 264, k, ...layout }, dtype);
    },
  );

  it.each(layouts)("runs batches, %o", (layout) => {
    for (const dtype of halves) {
      check({ batch: 3, m: 24, n: 40, k: 16, ...layout }, dtype);
      check({ batch: 2, m: 16, n: 72, k: 136, ...layout }, dtype);
      check({ batch: 3, m: 24, n: 40, k: 16, sharedB: true, ...layout }, dtype);
    }
  });

  it.each(halves)("adds the bias and what c holds, in %s", (dtype) => {
    for (const rows of [3, 40]) {
      const x = small(rows * 48, 1);
      const w = small(56 * 48, 2);
      const bias = small(56, 3);
      using y = linear(
        tensor(x, { shape: [rows, 48], dtype, device }),
        tensor(w, { shape: [56, 48], dtype, device }),
        tensor(bias, { dtype, device }),
      );
      const product = matmulReference(x, w, { batch: 1, m: rows, n: 56, k: 48, transposeB: true });
      expect(y.floatsSync()).toEqual(
        round(
          Array.from(product, (v, i) => v + bias[i % 56]!),
          dtype,
        ),
      );
    }
    // The gradient of a shared b collects the batch, product by product.
    const a = small(3 * 16 * 8, 4);
    const b = tensor(small(16 * 24, 5), { shape: [16, 24], dtype, device, requiresGrad: true });
    const dy = small(3 * 8 * 24, 6);
    backward(
      matmul(tensor(a, { shape: [3, 16, 8], dtype, device }), b, { transposeA: true }),
      tensor(dy, { shape: [3, 8, 24], dtype, device }),
    );
    const expected = new Float64Array(16 * 24);
    for (let i = 0; i < 3; i++) {
      const part = matmulReference(a.subarray(i * 128, (i + 1) * 128), dy.subarray(i * 192, (i + 1) * 192), {
        batch: 1,
        m: 16,
        n: 24,
        k: 8,
      });
      for (let j = 0; j < expected.length; j++) expected[j]! += part[j]!;
    }
    expectClose(b.grad!.floatsSync(), expected, { atol: 0, rtol: dtype === "float16" ? 0 : 2 ** -7 });
  });

  it("keeps NaN and infinity in their row", () => {
    const x = new Float32Array(17 * 8).fill(1);
    x[0] = NaN;
    x[8] = Infinity;
    using a = tensor(x, { shape: [17, 8], dtype: "float16", device });
    using b = tensor(new Float32Array(9 * 8).fill(1), { shape: [9, 8], dtype: "float16", device });
    const y = matmul(a, b, { transposeB: true }).floatsSync();
    expect([...y.slice(0, 27)]).toEqual([
      ...new Array(9).fill(NaN),
      ...new Array(9).fill(Infinity),
      ...new Array(9).fill(8),
    ]);
  });

  it("refuses what the tensor cores cannot do", () => {
    const a = tensor(new Float32Array(4), { shape: [2, 2], device });
    expect(() => matmul(a, a).dataSync()).toThrow(
      "BNB_PLAN_MATMUL=mma cannot multiply [2, 2] float32 by [2, 2] float32",
    );
  });
});

it("has devices to run on", () => expect(testDevices().length).toBeGreaterThan(0));
