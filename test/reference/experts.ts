// A mixture of experts in float64: the router's choice, and the sum of the gated MLPs that a token chose.

/** The k largest of softmax(logits) of each row, equal ones by index, a NaN last; on request divided by their sum. */
export function chooseExpertsReference(
  logits: ArrayLike<number>,
  n: number,
  k: number,
  normalize: boolean,
): { shares: Float64Array; experts: number[] } {
  const rows = n === 0 ? 0 : logits.length / n;
  const shares = new Float64Array(rows * k);
  const experts: number[] = [];
  for (let r = 0; r < rows; r++) {
    const row = Array.from({ length: n }, (_, i) => logits[r * n + i]!);
    const top = Math.max(...row);
    const exps = row.map((v) => Math.exp(v - top));
    const total = exps.reduce((a, b) => a + b, 0);
    const order = row.map((_, i) => i).sort((i, j) => exps[j]! - exps[i]! || i - j);
    const chosen = order.slice(0, k);
    const sum = normalize ? chosen.reduce((a, i) => a + exps[i]!, 0) : total;
    chosen.forEach((e, j) => {
      shares[r * k + j] = exps[e]! / sum;
      experts.push(e);
    });
  }
  return { shares, experts };
}

export interface ExpertMatrices {
  gate: ArrayLike<number>; // [width, hidden]
  up: ArrayLike<number>; // [width, hidden]
  down: ArrayLike<number>; // [hidden, width]
}

const times = (w: ArrayLike<number>, n: number, x: ArrayLike<number>): number[] =>
  Array.from({ length: n }, (_, i) => {
    let sum = 0;
    for (let k = 0; k < x.length; k++) sum += w[i * x.length + k]! * x[k]!;
    return sum;
  });

/** residual + the sum over a row's choices of share * down(silu(gate(x)) * up(x)). */
export function expertsSwigluReference(
  x: ArrayLike<number>,
  shares: ArrayLike<number>,
  experts: readonly number[],
  weights: readonly ExpertMatrices[],
  sizes: { hidden: number; width: number; choices: number },
  residual?: ArrayLike<number>,
): Float64Array {
  const { hidden, width, choices } = sizes;
  const y = Float64Array.from({ length: x.length }, (_, i) => residual?.[i] ?? 0);
  experts.forEach((e, pair) => {
    const row = Math.floor(pair / choices);
    const { gate, up, down } = weights[e]!;
    const values = Array.from({ length: hidden }, (_, i) => x[row * hidden + i]!);
    const u = times(up, width, values);
    const h = times(gate, width, values).map((g, i) => (g / (1 + Math.exp(-g))) * u[i]!);
    times(down, hidden, h).forEach((v, i) => {
      y[row * hidden + i]! += shares[pair]! * v;
    });
  });
  return y;
}
