// Groups 1 and 2: products with 4-bit weights, and their gradient for x, against the dense bfloat16 product of the
// same build on the same shape, in the same process.
import type { DType, Quantized4Bit, QuantState, QuantType, Tensor } from "bitsandbytes-node";
import { backward, dequantizeBlockwise, linear, linear4bit, noGrad, quantize4bit, tidy } from "bitsandbytes-node";
import type { Check, Context } from "./context.js";
import { bytesOf, readRows } from "./context.js";
import { layers } from "./layers.js";
import { relativeError } from "./report.js";

export interface Format {
  dtype: DType;
  quantType: QuantType;
  blocksize: number;
  nested: boolean;
}
const usual: Format = { dtype: "bfloat16", quantType: "nf4", blocksize: 64, nested: false };

// One rounding of the result and one of the decoded weight, as the kernels document.
const limits: Partial<Record<DType, number>> = { float32: 1e-5, float16: 2e-3, bfloat16: 1e-2 };

interface Weight {
  packed: Tensor;
  state: QuantState;
  handle: Quantized4Bit;
}

export const weightBytes = (n: number, k: number, f: Format): number =>
  (n * k) / 2 + (n * k * (f.nested ? 1 + 4 / 256 : 4)) / f.blocksize;

function makeWeight(context: Context, n: number, k: number, f: Format): Weight {
  const dense = context.random([n, k], f.dtype, 0.05);
  const [packed, state] = noGrad(() =>
    quantize4bit(dense, { quantType: f.quantType, blocksize: f.blocksize, compressStatistics: f.nested }),
  );
  dense.dispose();
  return { packed, state, handle: state.quantized(packed) };
}

function release(weights: Weight[]): void {
  for (const { packed, state, handle } of weights) {
    handle.dispose();
    packed.dispose();
    state.dispose();
  }
}

/** Rows of a weight, decoded on the host from its bytes in float64. */
async function decodeRows(weight: Weight, rows: number[], k: number): Promise<Float64Array[]> {
  const { packed, state } = weight;
  const table = await (state.code as Tensor).floats();
  let scales = await state.absmax.floats();
  if (state.state2) {
    const expanded = dequantizeBlockwise(state.absmax, { quantState: state.state2 });
    const offset = (await (state.offset as Tensor).floats())[0]!;
    scales = (await expanded.floats()).map((scale) => scale + offset);
    expanded.dispose();
  }
  return Promise.all(
    rows.map(async (row) => {
      const bytes = await readRows(packed, (row * k) / 2, ((row + 1) * k) / 2);
      return Float64Array.from({ length: k }, (_, i) => {
        const code = i % 2 === 0 ? bytes[i >> 1]! >> 4 : bytes[i >> 1]! & 15;
        return table[code]! * scales[Math.floor((row * k + i) / state.blocksize)]!;
      });
    }),
  );
}

/** Some outputs of the product against float64. */
function checkForward(weight: Weight, x: Tensor, [m, n, k]: Shape, dtype: DType): Check {
  return {
    limit: limits[dtype] ?? 0,
    error: async () => {
      const columns = [0, 1, 7, Math.floor(n / 2), n - 2, n - 1];
      const w = await decodeRows(weight, columns, k);
      const y = tidy(() => noGrad(() => linear4bit(x, weight.handle)));
      const rows = [...new Set([0, m - 1])];
      const actual: number[] = [];
      const expected: number[] = [];
      for (const row of rows) {
        const [input, output] = [await readRows(x, row, row + 1), await readRows(y, row, row + 1)];
        for (const [i, column] of columns.entries()) {
          actual.push(output[column]!);
          expected.push(w[i]!.reduce((sum, value, j) => sum + value * input[j]!, 0));
        }
      }
      y.dispose();
      return relativeError(actual, expected);
    },
  };
}

/** dx = dy W on a weight whose rows are all decoded: small shapes only; large ones rest on the suite. */
function checkBackward(weight: Weight, x: Tensor, dy: Tensor, [m, n, k]: Shape, dtype: DType): Check {
  return {
    limit: limits[dtype] ?? 0,
    error: async () => {
      const run = (): Tensor => {
        backward(linear4bit(x, weight.handle), dy);
        const grad = x.grad as Tensor;
        x.grad = null;
        return grad;
      };
      const dx = tidy(run);
      const [actual, output] = [await readRows(dx, m - 1, m), await readRows(dy, m - 1, m)];
      dx.dispose();
      const expected = new Float64Array(k);
      const step = 256;
      for (let start = 0; start < n; start += step) {
        const rows = Array.from({ length: Math.min(step, n - start) }, (_, i) => start + i);
        for (const [i, row] of (await decodeRows(weight, rows, k)).entries()) {
          const factor = output[start + i]!;
          for (let j = 0; j < k; j++) expected[j] = expected[j]! + factor * row[j]!;
        }
      }
      return relativeError(actual, expected);
    },
  };
}

type Shape = [m: number, n: number, k: number];

type Cache = "cold" | "warm";

function forward(context: Context, group: number, shape: Shape, f: Format, cache: Cache = "cold"): Promise<void> {
  const [m, n, k] = shape;
  return context.attempt("linear4bit", { n, k, m, ...f }, () => timeForward(context, group, shape, f, cache));
}

async function timeForward(context: Context, group: number, shape: Shape, f: Format, cache: Cache): Promise<void> {
  const [m, n, k] = shape;
  const nbytes = weightBytes(n, k, f);
  const weights = Array.from({ length: context.copies(nbytes, cache) }, () => makeWeight(context, n, k, f));
  const dense = Array.from({ length: context.copies(n * k * 2, cache) }, () =>
    context.random([n, k], "bfloat16", 0.05),
  );
  const [x, x16] = [context.random([m, k], f.dtype), context.random([m, k], "bfloat16")];
  const size = bytesOf[f.dtype] ?? 4;
  await context.measure(
    {
      group,
      op: "linear4bit",
      case: { n, k, m, ...f },
      cache,
      requiredBytes: nbytes + (m * k + m * n) * size,
      flops: 2 * m * n * k,
    },
    checkForward(weights[0]!, x, shape, f.dtype),
    (i) => linear4bit(x, weights[i % weights.length]!.handle),
    { impl: "dense bf16, this build", work: (i) => linear(x16, dense[i % dense.length]!, null) },
  );
  release(weights);
  for (const t of [...dense, x, x16]) t.dispose();
}

function withGradient(context: Context, shape: Shape): Promise<void> {
  const [m, n, k] = shape;
  return context.attempt("linear4bit, forward and dx", { n, k, m, ...usual }, () => timeWithGradient(context, shape));
}

async function timeWithGradient(context: Context, shape: Shape): Promise<void> {
  const [m, n, k] = shape;
  const nbytes = weightBytes(n, k, usual);
  const weights = Array.from({ length: context.copies(nbytes) }, () => makeWeight(context, n, k, usual));
  const dense = Array.from({ length: context.copies(n * k * 2) }, () => context.random([n, k], "bfloat16", 0.05));
  const [x, dy] = [context.random([m, k], "bfloat16"), context.random([m, n], "bfloat16")];
  x.requiresGrad = true;
  const step = (product: () => Tensor): void => {
    backward(product(), dy);
    x.grad?.dispose();
    x.grad = null;
  };
  await context.measure(
    {
      group: 2,
      op: "linear4bit, forward and dx",
      case: { n, k, m, ...usual },
      cache: "cold",
      requiredBytes: 2 * nbytes + 4 * (m * k + m * n),
      flops: 4 * m * n * k,
    },
    n * k <= 4096 * 4096
      ? checkBackward(weights[0]!, x, dy, shape, "bfloat16")
      : checkForward(weights[0]!, x, shape, "bfloat16"),
    (i) => step(() => linear4bit(x, weights[i % weights.length]!.handle)),
    { impl: "dense bf16, this build", work: (i) => step(() => linear(x, dense[i % dense.length]!, null)) },
  );
  release(weights);
  for (const t of [...dense, x, dy]) t.dispose();
}

export async function smallM(context: Context): Promise<void> {
  const shapes = context.pick<readonly (readonly [number, number])[]>({
    tiny: [[128, 128]],
    quick: [
      [4096, 4096],
      [14336, 4096],
      [28672, 8192],
    ],
    full: layers,
  });
  const rows = context.pick({ tiny: [1, 9], quick: [1, 8, 64], full: [1, 2, 4, 8, 16, 32, 64] });
  for (const [n, k] of shapes) for (const m of rows) await forward(context, 1, [m, n, k], usual);
  const variants: Partial<Format>[] = [
    { nested: true },
    { quantType: "fp4" },
    { blocksize: 32 },
    { blocksize: 128 },
    { dtype: "float16" },
    { dtype: "float32" },
  ];
  const varied = context.pick<readonly (readonly [number, number])[]>({
    tiny: shapes,
    quick: [[4096, 4096]],
    full: [
      [4096, 4096],
      [14336, 4096],
      [28672, 8192],
    ],
  });
  for (const [n, k] of varied) {
    for (const variant of context.pick({ tiny: variants, quick: variants.slice(0, 2), full: variants })) {
      for (const m of context.pick({ tiny: [1], quick: [1], full: [1, 8, 32] })) {
        await forward(context, 1, [m, n, k], { ...usual, ...variant });
      }
    }
    await forward(context, 1, [1, n, k], usual, "warm");
  }
}

export async function prefill(context: Context): Promise<void> {
  const shapes = context.pick<[number, number][]>({
    tiny: [[128, 192]],
    quick: [[4096, 4096]],
    full: [
      [4096, 4096],
      [14336, 4096],
      [4096, 14336],
      [8192, 8192],
      [28672, 8192],
    ],
  });
  const rows = context.pick({ tiny: [40], quick: [128, 512, 2048], full: [128, 256, 512, 1024, 2048, 4096, 8192] });
  for (const [n, k] of shapes) {
    for (const m of rows) {
      await forward(context, 2, [m, n, k], usual);
      await withGradient(context, [m, n, k]);
    }
  }
}
