// The product with a 4-bit weight in float64, from the packed bytes and the statistics.
import type { Tensor } from "../../src/index.js";
import type { QuantState } from "../../src/ops/quant-state.js";
import { tables } from "./quantize.js";

const bytesOf = (t: Tensor): Uint8Array => {
  const data = t.dataSync();
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
};

/** table[code] * scale of every element, in float64; the expanded scale itself is a float32. */
export function decode4bit(packed: Tensor, state: QuantState): Float64Array {
  const bytes = bytesOf(packed);
  const table = tables[state.quantType!];
  const stored = state.absmax.floatsSync();
  let scales: ArrayLike<number> = stored;
  if (state.state2) {
    const map = state.state2.code.floatsSync();
    const scales2 = state.state2.absmax.floatsSync();
    const offset = state.offset!.itemSync();
    scales = Array.from(stored, (code, block) =>
      Math.fround(map[code]! * scales2[Math.floor(block / state.state2!.blocksize)]! + offset),
    );
  }
  const n = state.shape!.reduce((a, b) => a * b, 1);
  return Float64Array.from({ length: n }, (_, i) => {
    const code = (bytes[i >> 1]! >> (i % 2 ? 0 : 4)) & 15;
    return table[code]! * scales[Math.floor(i / state.blocksize)]!;
  });
}

/** x[M, K] @ w[N, K]^T + bias and, per element, the sum of magnitudes that its rounding error is measured by. */
export function linear(
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  n: number,
  k: number,
  bias?: ArrayLike<number> | null,
): { y: Float64Array; magnitude: Float64Array } {
  const m = k === 0 ? 0 : x.length / k;
  const y = new Float64Array(m * n);
  const magnitude = new Float64Array(m * n);
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let sum = bias ? bias[j]! : 0;
      let total = Math.abs(sum);
      for (let p = 0; p < k; p++) {
        const term = x[i * k + p]! * w[j * k + p]!;
        sum += term;
        total += Math.abs(term);
      }
      y[i * n + j] = sum;
      magnitude[i * n + j] = total;
    }
  }
  return { y, magnitude };
}

/** dy[M, N] @ w[N, K]. */
export function linearBackward(dy: ArrayLike<number>, w: ArrayLike<number>, n: number, k: number): Float64Array {
  const m = dy.length / n;
  const dx = new Float64Array(m * k);
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      for (let p = 0; p < k; p++) dx[i * k + p]! += dy[i * n + j]! * w[j * k + p]!;
    }
  }
  return dx;
}
