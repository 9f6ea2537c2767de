// Which kernel a GPU takes, for cards that are not here: decisions and the limits of each card.
import { describe, expect, it } from "vitest";
import { layers } from "../../bench/gpu/layers.js";
import type { GpuLimits, Linear4bitGpuPlan, Linear4bitGroup, Linear4bitProblem } from "../../src/ops/plans.js";
import { linear4bitGpuPlan, linear4bitGroupGpuPlan } from "../../src/ops/plans.js";

const KB = 1024;
const cards: Record<string, GpuLimits> = {
  T4: { cc: 75, sms: 40, sharedPerBlock: 64 * KB, l2Bytes: 4 << 20, hasCublaslt: true },
  A100: { cc: 80, sms: 108, sharedPerBlock: 163 * KB, l2Bytes: 40 << 20, hasCublaslt: true },
  L4: { cc: 89, sms: 58, sharedPerBlock: 99 * KB, l2Bytes: 48 << 20, hasCublaslt: true },
  "4090": { cc: 89, sms: 128, sharedPerBlock: 99 * KB, l2Bytes: 72 << 20, hasCublaslt: true },
  H100: { cc: 90, sms: 132, sharedPerBlock: 227 * KB, l2Bytes: 50 << 20, hasCublaslt: true },
  H200: { cc: 90, sms: 132, sharedPerBlock: 227 * KB, l2Bytes: 60 << 20, hasCublaslt: true },
  B200: { cc: 100, sms: 148, sharedPerBlock: 227 * KB, l2Bytes: 126 << 20, hasCublaslt: true },
};
const rows = [1, 2, 8, 9, 32, 33, 64, 400, 401, 2048];
const halves = ["float16", "bfloat16"] as const;

// The Needs lines of the kernels, from their headers.
function fits(plan: Linear4bitGpuPlan, p: Linear4bitProblem, gpu: GpuLimits): boolean {
  const units = p.dtype === "float16" ? gpu.cc >= 75 : p.dtype === "bfloat16" && gpu.cc >= 80;
  switch (plan.variant) {
    case "small_m":
      return units && p.m >= 1 && p.m <= 32 && p.k % 64 === 0 && (!p.backward || p.n % 8 === 0) && p.aligned !== false;
    case "tile":
      return units && gpu.cc >= 80 && p.k % 64 === 0 && (!p.backward || p.n % 8 === 0) && p.aligned !== false;
    default:
      return true;
  }
}

describe.each(Object.keys(cards))("a 4-bit product on a %s", (name) => {
  const gpu = cards[name]!;

  it("stays within the card, and is what its kernel can do", () => {
    for (const [n, k] of layers) {
      for (const m of rows) {
        for (const dtype of ["float32", ...halves] as const) {
          for (const backward of [false, true]) {
            for (const blocksize of [32, 64]) {
              const problem: Linear4bitProblem = { m, n, k, dtype, backward, blocksize };
              const plan = linear4bitGpuPlan(problem, gpu);
              const text = `${JSON.stringify(problem)}: ${JSON.stringify(plan)}`;
              expect(plan.possible, text).toBe(true);
              expect(fits(plan, problem, gpu), text).toBe(true);
              expect(plan.sharedBytes, text).toBeLessThanOrEqual(gpu.sharedPerBlock);
              if (plan.variant === "small_m") {
                // All blocks are there at once, and together they cover the result.
                expect(plan.blocks, text).toBeLessThanOrEqual(gpu.sms);
                expect(plan.blocks % plan.splits, text).toBe(0);
                expect(plan.tokens, text).toBeGreaterThanOrEqual(m);
                expect(plan.splits > 1 ? Math.ceil((backward ? k : n) / plan.outputs) : 0, text).toBeLessThanOrEqual(
                  4096,
                );
              }
              if (plan.variant === "tile") {
                const tiles = Math.ceil((backward ? k : n) / plan.outputs) * Math.ceil(m / plan.tokens);
                expect(plan.blocks, text).toBe(tiles * plan.splits);
                expect(plan.splits > 1 ? tiles : 0, text).toBeLessThanOrEqual(4096);
              }
            }
          }
        }
      }
    }
  });

  it("chooses by rows", () => {
    const dtype = gpu.cc < 80 ? "float16" : "bfloat16";
    const chosen = (m: number, extra: Partial<Linear4bitProblem> = {}): string =>
      linear4bitGpuPlan({ m, n: 4096, k: 4096, dtype, ...extra }, gpu).variant;
    for (const m of [1, 2, 8, 9, 32]) {
      expect(chosen(m)).toBe("small_m");
      expect(chosen(m, { backward: true })).toBe("small_m");
    }
    const fast = gpu.cc >= 90;
    expect(chosen(33)).toBe(gpu.cc < 80 ? "dense" : "tile");
    expect(chosen(400)).toBe(gpu.cc < 80 ? "dense" : "tile");
    expect(chosen(401)).toBe(gpu.cc < 80 || fast ? "dense" : "tile");
    expect(chosen(2049)).toBe("dense");
    for (const m of [33, 64, 400]) expect(chosen(m, { backward: true })).toBe(gpu.cc < 80 ? "dense" : "tile");
    expect(chosen(401, { backward: true })).toBe("dense");
    expect(chosen(64, { backward: true, n: 4095 })).toBe("dense");
    // Exact products, shapes and addresses that the matrix units cannot take.
    for (const extra of [{ dtype: "float32" }, { k: 4095 }, { k: 4064 }, { aligned: false }] as const) {
      expect([1, 8, 9, 400].map((m) => chosen(m, extra))).toEqual(["simt", "simt", "dense", "dense"]);
    }
    expect(chosen(4, { backward: true, n: 4095 })).toBe("simt");
    expect(chosen(4, { dtype: "bfloat16" })).toBe(gpu.cc < 80 ? "simt" : "small_m");
  });

  it("keeps the card busy with a small weight", () => {
    for (const dtype of gpu.cc < 80 ? (["float16"] as const) : halves) {
      for (const m of [1, 2, 8, 9, 32]) {
        for (const backward of [false, true]) {
          const plan = linear4bitGpuPlan({ m, n: 1024, k: 4096, dtype, backward }, gpu);
          expect(plan.blocks / gpu.sms, JSON.stringify(plan)).toBeGreaterThanOrEqual(0.9);
        }
      }
    }
  });

  it("says what a variant would do, or that it cannot", () => {
    const problem: Linear4bitProblem = { m: 33, n: 1024, k: 4096, dtype: "float16" };
    expect(linear4bitGpuPlan(problem, gpu, "small_m").possible).toBe(false);
    expect(linear4bitGpuPlan(problem, gpu, "tile").possible).toBe(gpu.cc >= 80);
    const gradient = linear4bitGpuPlan({ ...problem, backward: true }, gpu, "tile");
    expect(gradient.possible).toBe(gpu.cc >= 80);
    // Two blocks of it share a multiprocessor where that has 160 KB.
    if (gpu.sharedPerBlock >= 160 * KB) expect(2 * (gradient.sharedBytes + KB)).toBeLessThanOrEqual(164 * KB);
    expect(linear4bitGpuPlan({ ...problem, n: 1020, backward: true }, gpu, "tile").possible).toBe(false);
    expect(linear4bitGpuPlan({ ...problem, dtype: "float32" }, gpu, "tile").possible).toBe(false);
    for (const variant of ["simt", "dense"] as const) {
      expect(linear4bitGpuPlan({ ...problem, k: 77 }, gpu, variant)).toMatchObject({ possible: true, variant });
    }
  });
});

describe.each(Object.keys(cards))("products of one x with several 4-bit weights on a %s", (name) => {
  const gpu = cards[name]!;
  // q, k, v and gate, up of models with 8 and 70 billion parameters.
  const groups: Pick<Linear4bitGroup, "ns" | "k" | "swiglu">[] = [
    { ns: [4096, 1024, 1024], k: 4096 },
    { ns: [8192, 1024, 1024], k: 8192 },
    { ns: [14336, 14336], k: 4096, swiglu: true },
    { ns: [28672, 28672], k: 8192, swiglu: true },
  ];

  it("are one launch that keeps the card busy, within its limits", () => {
    for (const group of groups) {
      for (const m of [1, 8, 9, 32]) {
        const plan = linear4bitGroupGpuPlan({ ...group, m, dtype: "float16" }, gpu);
        const text = `${JSON.stringify({ ...group, m })}: ${JSON.stringify(plan)}`;
        const blocks = plan.blocks.reduce((sum, n) => sum + n, 0);
        // A share of the multiprocessors cuts the sum into fewer parts: with more rows than one, its x can be too large.
        if (m > 1 && gpu.sharedPerBlock < 160 * KB && !plan.possible) continue;
        expect(plan.possible, text).toBe(true);
        expect(plan.sharedBytes, text).toBeLessThanOrEqual(gpu.sharedPerBlock);
        expect(blocks, text).toBeLessThanOrEqual(gpu.sms);
        expect(blocks, text).toBeGreaterThanOrEqual(0.8 * gpu.sms);
        if (group.swiglu) expect(plan.blocks[0], text).toBe(plan.blocks[1]);
        else expect(plan.blocks[0], text).toBeGreaterThan(plan.blocks[1]!);
      }
    }
  });

  it("are several where one kernel cannot do it", () => {
    const group: Linear4bitGroup = { ns: [4096, 1024, 1024], k: 4096, m: 1, dtype: "bfloat16" };
    expect(linear4bitGroupGpuPlan(group, gpu).possible).toBe(gpu.cc >= 80);
    for (const other of [{ dtype: "float32" }, { m: 33 }, { blocksize: 32 }, { k: 4000 }] as const) {
      expect(linear4bitGroupGpuPlan({ ...group, ...other }, gpu).possible, JSON.stringify(other)).toBe(false);
    }
  });
});
