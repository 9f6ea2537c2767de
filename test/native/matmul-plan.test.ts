// Which kernel multiplies matrices on GPUs that are not here.
import { describe, expect, it } from "vitest";
import type { GpuLimits, MatmulProblem } from "../../src/ops/plans.js";
import { matmulGpuPlan } from "../../src/ops/plans.js";

const KB = 1024;
const cards: Record<string, GpuLimits> = {
  A100: { cc: 80, sms: 108, sharedPerBlock: 163 * KB, hasCublaslt: true },
  "RTX 4090": { cc: 89, sms: 128, sharedPerBlock: 99 * KB, hasCublaslt: true },
  H100: { cc: 90, sms: 132, sharedPerBlock: 227 * KB, hasCublaslt: true },
  H200: { cc: 90, sms: 132, sharedPerBlock: 227 * KB, hasCublaslt: true },
  T4: { cc: 75, sms: 40, sharedPerBlock: 64 * KB, hasCublaslt: true },
  B200: { cc: 100, sms: 148, sharedPerBlock: 227 * KB, hasCublaslt: true },
};
const own = (gpu: GpuLimits): GpuLimits => ({ ...gpu, hasCublaslt: false });
const names = (problem: MatmulProblem, gpu: GpuLimits): string => {
  const plan = matmulGpuPlan(problem, gpu)!;
  return plan.tile !== "none" ? `${plan.variant}/${plan.tile}` : plan.variant;
};

const layers: [n: number, k: number][] = [
  [1024, 4096],
  [4096, 4096],
  [14336, 4096],
  [4096, 14336],
  [8192, 28672],
  [128256, 4096],
];
const rows = [1, 2, 8, 9, 16, 17, 64, 400, 2048];
const dtypes = ["float32", "float16", "bfloat16"] as const;

describe.each(Object.entries(cards))("products on a %s", (_, gpu) => {
  const tensorCores = (dtype: string) => dtype === "float16" || (dtype === "bfloat16" && gpu.cc >= 80);

  it("leave large 16-bit products to cuBLASLt where it is there", () => {
    for (const dtype of dtypes) {
      const plan = names({ m: 2048, n: 4096, k: 4096, transposeB: true, dtype }, gpu);
      expect(plan).toBe(tensorCores(dtype) ? "cublaslt" : "simt/large");
      const alone = names({ m: 2048, n: 4096, k: 4096, transposeB: true, dtype }, own(gpu));
      expect(alone).toBe(tensorCores(dtype) ? "mma/large" : "simt/large");
    }
    const small = names({ m: 64, n: 64, k: 64, dtype: "float16" }, gpu);
    expect(small).toBe("mma/small");
    // 2^24 multiply-adds are the border.
    expect(names({ m: 256, n: 256, k: 256, dtype: "float16" }, gpu)).toBe("cublaslt");
    expect(names({ m: 256, n: 256, k: 248, dtype: "float16" }, gpu)).not.toBe("cublaslt");
    expect(names({ batch: 64, m: 64, n: 64, k: 64, dtype: "float16" }, gpu)).toBe("cublaslt");
  });

  it("stream the weight for a few rows", () => {
    const layer = { n: 4096, k: 4096, transposeB: true, dtype: "float16" } as const;
    expect([1, 16, 17].map((m) => names({ ...layer, m }, own(gpu)))).toEqual(["mma/skinny", "mma/skinny", "mma/small"]);
    expect([1, 8, 9].map((m) => names({ ...layer, m, dtype: "float32" }, gpu))).toEqual([
      "simt/rows",
      "simt/rows",
      "simt/small",
    ]);
    // Without a contiguous sum of both there is nothing to stream.
    expect(names({ ...layer, m: 1, transposeB: false }, own(gpu))).toBe("mma/small");
    expect(names({ ...layer, m: 8, transposeA: true }, own(gpu))).toBe("mma/small");
  });

  it("take any layout and any alignment", () => {
    for (const dtype of dtypes) {
      for (const transposeA of [false, true]) {
        for (const transposeB of [false, true]) {
          const problem = { m: 1024, n: 1024, k: 1024, transposeA, transposeB, dtype };
          expect(matmulGpuPlan(problem, own(gpu))!.variant).toBe(tensorCores(dtype) ? "mma" : "simt");
          expect(matmulGpuPlan({ ...problem, aligned: false }, gpu)!.variant).toBe("simt");
        }
      }
    }
  });

  it("never choose a kernel outside its needs, nor more than the card has", () => {
    for (const dtype of dtypes)
      for (const [n, k] of layers)
        for (const m of rows)
          for (const transposeB of [false, true])
            for (const aligned of [false, true])
              for (const card of [gpu, own(gpu)]) {
                const plan = matmulGpuPlan({ m, n, k, transposeB, dtype, aligned }, card)!;
                expect(plan.sharedBytes).toBeLessThanOrEqual(card.sharedPerBlock);
                if (plan.variant !== "simt") expect(aligned && tensorCores(dtype)).toBe(true);
                if (plan.variant === "cublaslt") expect(card.hasCublaslt).toBe(true);
                else expect(plan.blocks).toBeGreaterThan(0);
                expect(plan.blocks).toBeLessThan(2 ** 31);
                // Large tiles only where they occupy every multiprocessor.
                if (plan.tile === "large") expect(plan.blocks).toBeGreaterThanOrEqual(card.sms);
              }
  });

  it("keep the card busy when one row meets a weight of 4096 rows", () => {
    const plan = matmulGpuPlan({ m: 1, n: 4096, k: 4096, transposeB: true, dtype: "float16" }, own(gpu))!;
    expect(plan.blocks / gpu.sms).toBeGreaterThanOrEqual(0.85);
  });

  it("refuse a variant that cannot do it", () => {
    const problem = { m: 64, n: 64, k: 64, dtype: "bfloat16" } as const;
    expect(matmulGpuPlan(problem, gpu, "simt")).toMatchObject({ variant: "simt", tile: "small" });
    expect(matmulGpuPlan(problem, gpu, "mma")?.variant ?? null).toBe(gpu.cc >= 80 ? "mma" : null);
    expect(matmulGpuPlan({ ...problem, dtype: "float32" }, gpu, "mma")).toBeNull();
    expect(matmulGpuPlan({ ...problem, aligned: false }, gpu, "mma")).toBeNull();
    expect(matmulGpuPlan(problem, gpu, "cublaslt")?.variant ?? null).toBe(gpu.cc >= 80 ? "cublaslt" : null);
    expect(matmulGpuPlan({ ...problem, dtype: "float16" }, own(gpu), "cublaslt")).toBeNull();
    expect(matmulGpuPlan({ ...problem, dtype: "float32" }, gpu, "cublaslt")).toBeNull();
  });
});
