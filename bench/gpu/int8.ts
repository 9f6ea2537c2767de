// Group 4: LLM.int8(): quantizing the rows, and the whole linear layer with and without outlier columns, against a copy
// and against the dense bfloat16 product of the same build.
import type { Int8Rows, Tensor } from "bitsandbytes-node";
import { int8VectorwiseQuant, linear, matmul8bit, noGrad, tensor, tidy } from "bitsandbytes-node";
import type { Check, Context } from "./context.js";
import { readRows } from "./context.js";
import { copyOf } from "./quantize.js";
import { relativeError } from "./report.js";

const threshold = 6;

/** Rows [m, k] of which `outliers` columns hold values beyond the threshold. */
function activations(context: Context, m: number, k: number, outliers: number): Tensor {
  // 12 standard deviations lie below the threshold: the other columns hold no outlier.
  const scale = new Float32Array(k).fill(0.5);
  for (let i = 0; i < outliers; i++) scale[Math.floor((i * k) / outliers)] = 40;
  return tidy(() => {
    const factors = tensor(scale, { shape: [k], dtype: "bfloat16", device: context.device });
    return context.random([m, k], "bfloat16").mul(factors);
  });
}

/** Both ends' codes and scales against the CPU's: equal bits. */
function checkRows(x: Tensor): Check {
  return {
    limit: 0,
    error: async () => {
      const host = x.to("cpu");
      const [ours, theirs] = noGrad(() => [
        int8VectorwiseQuant(x, { threshold }),
        int8VectorwiseQuant(host, { threshold }),
      ]);
      let different = 0;
      for (const [a, b] of [
        [ours!.codes, theirs!.codes],
        [ours!.stats, theirs!.stats],
      ] as const) {
        const [p, q] = [await a.floats(), await b.floats()];
        for (let i = 0; i < q.length; i++) if (!Object.is(p[i], q[i])) different++;
      }
      host.dispose();
      ours!.dispose();
      theirs!.dispose();
      return different / x.size;
    },
  };
}

/** Some outputs of the layer against float64, from the codes: outlier columns take part as they are. */
function checkLinear(x: Tensor, w: Int8Rows, m: number, n: number, k: number): Check {
  return {
    limit: 1e-2,
    error: async () => {
      const rows = noGrad(() => int8VectorwiseQuant(x, { threshold }));
      const outlier = new Set((await rows.outlierCols()) ?? []);
      const y = noGrad(() => matmul8bit(x, w.codes, w.stats, { threshold }));
      const [xs, ws] = [await rows.stats.floats(), await w.stats.floats()];
      const at = m - 1;
      const [input, codes, output] = [
        await readRows(x, at, m),
        await readRows(rows.codes, at, m),
        await readRows(y, at, m),
      ];
      const columns = [0, 1, Math.floor(n / 2), n - 1];
      const expected: number[] = [];
      for (const column of columns) {
        const weight = await readRows(w.codes, column, column + 1);
        let sum = 0;
        for (let i = 0; i < k; i++) {
          const value = outlier.has(i) ? input[i]! : (codes[i]! * xs[at]!) / 127;
          sum += (value * weight[i]! * ws[column]!) / 127;
        }
        expected.push(sum);
      }
      rows.dispose();
      y.dispose();
      return relativeError(
        columns.map((column) => output[column]!),
        expected,
      );
    },
  };
}

export async function int8(context: Context): Promise<void> {
  for (const k of context.pick({ tiny: [256], quick: [4096], full: [4096, 8192, 14336] })) {
    for (const m of context.pick({ tiny: [3], quick: [16, 2048], full: [1, 16, 128, 2048] })) {
      const requiredBytes = 3 * m * k + 4 * m;
      const copies = context.copies(requiredBytes);
      const inputs = Array.from({ length: Math.min(copies, 512) }, () => activations(context, m, k, 6));
      const copy = copyOf(context, requiredBytes);
      await context.measure(
        {
          group: 4,
          op: "int8VectorwiseQuant",
          case: { m, k, outliers: 6, dtype: "bfloat16" },
          cache: "cold",
          requiredBytes,
          flops: 0,
        },
        checkRows(inputs[0]!),
        (i) => int8VectorwiseQuant(inputs[i % inputs.length]!, { threshold }).dispose(),
        copy.peer,
      );
      copy.dispose();
      for (const x of inputs) x.dispose();
    }
  }
  const shapes = context.pick<[number, number][]>({
    tiny: [[64, 128]],
    quick: [[4096, 4096]],
    full: [
      [4096, 4096],
      [14336, 4096],
      [4096, 14336],
      [8192, 8192],
    ],
  });
  for (const [n, k] of shapes) {
    const count = context.copies(n * k);
    const weights = Array.from({ length: count }, () => {
      const w = context.random([n, k], "bfloat16", 0.05);
      const rows = noGrad(() => int8VectorwiseQuant(w));
      w.dispose();
      return rows;
    });
    const dense = Array.from({ length: context.copies(2 * n * k) }, () => context.random([n, k], "bfloat16", 0.05));
    for (const outliers of context.pick({ tiny: [0, 2], quick: [0, 6], full: [0, 6, 64] })) {
      for (const m of context.pick({ tiny: [3], quick: [1, 128, 2048], full: [1, 16, 128, 512, 2048] })) {
        const x = activations(context, m, k, outliers);
        await context.measure(
          {
            group: 4,
            op: "matmul8bit",
            case: { n, k, m, outliers, dtype: "bfloat16" },
            cache: "cold",
            requiredBytes: n * k + 4 * n + 2 * m * (n + k),
            // Integer products may reach twice the rate: this floor is that of the dense product.
            flops: 2 * m * n * k,
          },
          checkLinear(x, weights[0]!, m, n, k),
          (i) => matmul8bit(x, weights[i % count]!.codes, weights[i % count]!.stats, { threshold }),
          { impl: "dense bf16, this build", work: (i) => linear(x, dense[i % dense.length]!, null) },
        );
        x.dispose();
      }
    }
    for (const t of [...weights, ...dense]) t.dispose();
  }
}
