// Grids of kernels that go round their work hold as many blocks as stay on a card: the plan by card, and that the
// registers and the shared memory which it reckons with are those of the compiled kernels.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { GpuLimits } from "../../src/ops/plans.js";
import { residentBlocks } from "../../src/ops/plans.js";
import { parseTable } from "../../tools/cuda/cubin.mjs";

const KB = 1024;
// By compute capability: threads that a multiprocessor holds, and KB of shared memory that one block may have. From the
// tables of the CUDA programming guide.
const cards: Record<string, { threads: number; shared: number }> = {
  75: { threads: 1024, shared: 64 },
  80: { threads: 2048, shared: 163 },
  86: { threads: 1536, shared: 99 },
  89: { threads: 1536, shared: 99 },
  90: { threads: 2048, shared: 227 },
  100: { threads: 2048, shared: 227 },
  120: { threads: 1536, shared: 99 },
};
const gpu = (cc: string): GpuLimits => ({ cc: Number(cc), sms: 100, sharedPerBlock: (cards[cc]?.shared ?? 0) * KB });

const budget = parseTable(readFileSync(join(import.meta.dirname, "..", "..", "tools", "cuda", "budget.tsv"), "utf8"));

describe.each(Object.keys(cards))("blocks on a multiprocessor of compute capability %s", (cc) => {
  const card = cards[cc] as { threads: number; shared: number };

  it("is what threads, registers and shared memory leave", () => {
    const blocks = (threads: number, registers: number, sharedBytes = 0): number =>
      residentBlocks({ threads, registers, sharedBytes }, gpu(cc));
    expect(blocks(512, 16)).toBe(card.threads / 512);
    expect(blocks(256, 128)).toBe(2);
    expect(blocks(256, 255)).toBe(1);
    expect(blocks(512, 40)).toBe(Math.min(3, card.threads / 512));
    expect(blocks(512, 33)).toBe(blocks(512, 40));
    // 1 KB of each block is the card's own.
    expect(blocks(128, 32, card.shared * KB)).toBe(1);
    expect(blocks(128, 32, (card.shared * KB - KB) / 2)).toBe(2);
    expect(blocks(128, 32, (card.shared * KB - KB) / 2 + 1024)).toBe(1);
  });

  // The kernel, what its launcher reckons with, and the bytes of dynamic shared memory that it asks for.
  it.each([
    ["kernels/quantize_4bit.cu", "quantize_4bit_kernel", 512, 40, 4096 + 128, 0],
    ["kernels/quantize_blockwise.cu", "quantize_blockwise_kernel", 512, 40, 24576 + 128, 0],
    ["kernels/optimizer_8bit.cu", "squares_kernel", 256, 128, 53 * KB, 53 * KB],
    ["kernels/optimizer_32bit.cu", "squares_kernel", 256, 128, 0, 0],
    ["kernels/matmul/fma_peak.cu", "fma_peak_kernel", 256, 32, 0, 0],
  ])("%s %s", (file, name, threads, registers, sharedBytes, dynamic) => {
    const planned = residentBlocks({ threads, registers, sharedBytes }, gpu(cc));
    let kernels = 0;
    for (const [key, cells] of budget.rows) {
      if (!key.startsWith(`${file}\t${name}`)) continue;
      kernels++;
      const cell = cells.get(cc) as { registers: number; shared: number };
      const perWarp = Math.ceil((cell.registers * 32) / 256) * 256;
      const byRegisters = Math.floor(65536 / ((perWarp * threads) / 32));
      const byShared = Math.floor(((card.shared + 1) * KB) / (cell.shared + dynamic + KB));
      expect(Math.min(card.threads / threads, byRegisters, byShared), key).toBeGreaterThanOrEqual(planned);
    }
    expect(kernels).toBeGreaterThan(0);
  });
});
