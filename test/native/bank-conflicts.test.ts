// Wavefronts of shared memory that kernels take per element, counted by the emulated GPU (emulation/banks.h), against
// what their designs allow. The limits are those of the layouts: a change that brings conflicts fails here.
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { KvPages } from "../../src/generation/index.js";
import {
  attention,
  dequantize4bit,
  devices,
  linear4bitEach,
  linear4bitSwiglu,
  matmul,
  matmul4bit,
  quantize4bit,
  synchronize,
  tensor,
} from "../../src/index.js";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { LinearNF4 } from "../../src/nn/linear-4bit.js";
import { replaceLinear } from "../../src/nn/replace.js";
import { int8LinearMatmul } from "../../src/ops/int8.js";
import { AdamW8bit } from "../../src/optim/index.js";
import { addon } from "../../src/tensor/addon.js";
import { noise } from "../helpers/noise.js";
import { rowsOf, step } from "../helpers/step.js";

const emulated = devices().find((device) => device.name === "emulated GPU");
// Counting needs every access to be reported; the build with AddressSanitizer reports vectors only.
const counts = emulated !== undefined && process.env["BNB_SANITIZED"] !== "1";

interface Site {
  at: string;
  touch: "read" | "write" | "cp.async" | "ldmatrix";
  bytes: number;
  accesses: number;
  wavefronts: number;
  /** Wavefronts of the same accesses without conflicts. */
  least: number;
}
interface Launch {
  grid: number[];
  block: number[];
  sites: Site[];
}

const folder = mkdtempSync(join(tmpdir(), "bnb-banks-"));
const file = join(folder, "launches.jsonl");
process.env["BNB_SIMT_BANKS"] = file; // read at the first launch, and this file's tests have a process of their own

async function launchesOf(run: () => unknown): Promise<Launch[]> {
  await synchronize();
  rmSync(file, { force: true });
  await run();
  await synchronize();
  const text = existsSync(file) ? readFileSync(file, "utf8").trim() : "";
  return text === "" ? [] : text.split("\n").map((line) => JSON.parse(line) as Launch);
}

const sum = (sites: Site[], key: "accesses" | "wavefronts" | "least") =>
  sites.reduce((total, site) => total + site[key], 0);
const readsOf = (launch: Launch, bytes: number) =>
  launch.sites.filter((site) => site.touch === "read" && site.bytes === bytes);

const table: string[] = [];
function report(what: string, sites: Site[], per: number, unit: string): void {
  const factor = sum(sites, "wavefronts") / sum(sites, "least");
  const wavefronts = (sum(sites, "wavefronts") / per).toFixed(2).padStart(8);
  table.push(`${what.padEnd(44)} ${wavefronts} per ${unit}, ${factor.toFixed(2)} x conflict-free`);
}

describe.runIf(counts)("shared memory on the emulated GPU", () => {
  const device = emulated as NonNullable<typeof emulated>;
  const make = (shape: number[]) => tensor(noise(shape[0]! * shape[1]!), { shape, dtype: "bfloat16", device });

  afterAll(() => {
    console.log(["wavefronts of shared memory", ...table].join("\n"));
    rmSync(folder, { recursive: true, force: true });
  });

  it("counts what is known of a kernel made for it", async () => {
    const BANKS = 18; // bank_conflicts of enum Defect
    const [launch] = await launchesOf(() => addon.provoke(device.index, BANKS));
    const reads = launch!.sites.filter((site) => site.touch === "read");
    expect(reads.map(({ bytes, accesses, wavefronts, least }) => [bytes, accesses, wavefronts, least])).toEqual([
      [4, 1, 32, 1], // a column of a matrix of 32 columns: one bank
      [4, 1, 1, 1], // of 33
      [4, 1, 2, 1], // every second word
      [4, 1, 1, 1], // four words, each read by eight lanes
      [8, 1, 2, 2], // next to each other: a wavefront per half warp
      [8, 1, 8, 2], // four words of the same bank in each half
      [16, 1, 4, 4], // next to each other: one per quarter
      [16, 1, 8, 4], // every second: two lanes of a quarter meet
    ]);
    report("a column of a 32 x 32 matrix (on purpose)", reads.slice(0, 1), 1, "access");
  });

  // 16 for the table and 4 for each group of 8 tokens; with one token, one lane in eight reads x.
  it.each([
    [1, 17],
    [8, 20],
    [16, 24],
    [32, 32],
  ])("multiplies %i rows with 4-bit weights in at most %i wavefronts per 1024 weights", async (m, limit) => {
    const [n, k] = [512, 1024];
    const [packed, state] = quantize4bit(make([n, k]), { quantType: "nf4", blocksize: 64 });
    const x = make([m, k]);
    const [launch] = await launchesOf(() => matmul4bit(x, packed, state));
    const x16 = readsOf(launch!, 16);
    // Of the reads of 4 bytes, those of the epilogue are not of the loop: it looks up each byte, two weights, once.
    const words = readsOf(launch!, 4);
    const lookups = (n * k) / 64;
    expect(sum(words, "accesses")).toBeGreaterThanOrEqual(lookups);
    expect(sum(words, "wavefronts"), "each lane has a bank").toBe(sum(words, "accesses"));
    expect(sum(x16, "wavefronts"), "x").toBe(sum(x16, "least"));
    const loop = (lookups + sum(x16, "wavefronts")) / ((n * k) / 1024);
    expect(loop).toBeLessThanOrEqual(limit);
    table.push(`${`small_m, ${m} rows, main loop`.padEnd(44)} ${loop.toFixed(2).padStart(8)} per 1024 weights`);
    report(`small_m, ${m} rows, everything`, launch!.sites, (n * k) / 1024, "1024 weights");
  });

  it("quantizes to 4 bits without conflicts", async () => {
    const n = 1 << 16;
    const x = make([n, 1]);
    const [launch] = await launchesOf(() => quantize4bit(x, { quantType: "nf4", blocksize: 64 }));
    const bins = readsOf(launch!, 8);
    expect(sum(bins, "accesses") * 32, "one bin an element").toBe(n);
    expect(sum(bins, "wavefronts")).toBe(2 * sum(bins, "accesses"));
    report("quantize4bit, bins", bins, n / 32, "32 elements");
  });

  it("dequantizes 4 bits without conflicts", async () => {
    const n = 1 << 16;
    const [packed, quantState] = quantize4bit(make([n, 1]), { quantType: "nf4", blocksize: 64 });
    const [launch] = await launchesOf(() => dequantize4bit(packed, { quantState }));
    const values = readsOf(launch!, 4);
    expect(sum(values, "accesses") * 32, "one value an element").toBe(n);
    expect(sum(values, "wavefronts")).toBe(sum(values, "accesses"));
    report("dequantize4bit, values", values, n / 32, "32 elements");
  });

  // Codes are random, so look-ups meet: with 8 copies of the values four lanes share a copy, and the bins have none.
  it("steps 8-bit AdamW in at most 18 wavefronts per 32 elements", async () => {
    const n = 1 << 16;
    const p = tensor(noise(n), { dtype: "bfloat16", device, requiresGrad: true });
    const optimizer = new AdamW8bit([p], { min8bitSize: 0 });
    let launches: Launch[] = [];
    for (let step = 1; step <= 4; step++) {
      p.grad?.dispose();
      p.grad = tensor(noise(n, step + 1), { dtype: "bfloat16", device });
      launches = await launchesOf(() => optimizer.step());
    }
    const [launch] = launches.filter(({ sites }) => sites.length > 0);
    const [values, bins] = [readsOf(launch!, 4), readsOf(launch!, 8)];
    expect(sum(values, "accesses") * 32, "two states an element").toBe(2 * n);
    expect(sum(bins, "accesses") * 32).toBe(2 * n);
    expect(sum(values, "wavefronts") / sum(values, "accesses")).toBeLessThanOrEqual(3);
    expect((sum(values, "wavefronts") + sum(bins, "wavefronts")) / (n / 32)).toBeLessThanOrEqual(18);
    report("AdamW8bit, values of two states", values, n / 32, "32 elements");
    report("AdamW8bit, bins of two states", bins, n / 32, "32 elements");
    optimizer.dispose();
  });

  // Tiles on their way to the matrix units: rows are swizzled, so that copies, stores and ldmatrix meet no bank twice.
  it.each([
    ["matmul 128 x 128 x 128", () => matmul(make([128, 128]), make([128, 128]))],
    ["matmul 128 x 128 x 128, b transposed", () => matmul(make([128, 128]), make([128, 128]), { transposeB: true })],
    [
      "tile, 64 rows",
      () => {
        const [packed, state] = quantize4bit(make([256, 256]), { quantType: "nf4", blocksize: 64 });
        return matmul4bit(make([64, 256]), packed, state);
      },
    ],
    [
      "attention",
      () => {
        const heads = () => make([64, 256]).reshape([1, 64, 4, 64]);
        return attention(heads(), heads(), heads(), { causal: true });
      },
    ],
    [
      "int8 product 128 x 128 x 128",
      () => {
        const codes = () => tensor(new Int8Array(128 * 128).fill(3), { shape: [128, 128], device });
        return int8LinearMatmul(codes(), codes());
      },
    ],
  ] as const)("runs %s without conflicts", async (name, run) => {
    const launches = (await launchesOf(run)).filter(({ sites }) => sites.length > 0);
    const { sites } = launches.at(-1)!;
    expect(sum(sites, "accesses")).toBeGreaterThan(0);
    expect(sum(sites, "wavefronts")).toBe(sum(sites, "least"));
    report(name, sites, 1, "launch");
  });

  it("three weights of one x are one launch, and so is SwiGLU of two", async () => {
    const weight = () => {
      const [packed, state] = quantize4bit(make([128, 128]), { quantType: "nf4" });
      return state.quantized(packed);
    };
    const [a, b, c] = [weight(), weight(), weight()];
    const x = make([2, 128]);
    expect(await launchesOf(() => linear4bitEach(x, [a, b, c]))).toHaveLength(1);
    expect(await launchesOf(() => linear4bitSwiglu(x, a, b))).toHaveLength(1);
    expect(await launchesOf(() => linear4bitEach(x.cast("float32"), [a, b]))).toHaveLength(3);
  });

  it("a token of a 4-bit model is nine launches a layer, and three", async () => {
    const layers = 2;
    const model = new LlamaForCausalLM(
      {
        vocabSize: 96,
        hiddenSize: 128,
        intermediateSize: 128,
        numHiddenLayers: layers,
        numAttentionHeads: 4,
        numKeyValueHeads: 2,
      },
      { dtype: "bfloat16", device },
    ).eval();
    replaceLinear(model, (k, n, bias) => new LinearNF4(k, n, { bias, dtype: "bfloat16", device }).quantize());
    using kv = new KvPages(model.kvLayout(), { pages: 1, dtype: "bfloat16", device });
    const launches = await launchesOf(() => step(model, kv, [rowsOf([3], 0, 0)]));
    // Norm, q k v, rope into the pages, zeros for rows of nobody, attention, sum with the residual; norm, SwiGLU, sum with
    // the residual.
    expect(launches).toHaveLength(9 * layers + 3);
  });
});
