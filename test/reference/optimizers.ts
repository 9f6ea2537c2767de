// Float64 oracle of the update rules, written from the papers' formulas with m / c1 and v / c2 spelled out, and of
// 8-bit states. Shares nothing with src.

export type Rule = "adam" | "ademamix" | "lion" | "momentum" | "rmsprop" | "adagrad" | "lamb" | "lars";

export interface Hyper {
  rule: Rule;
  lr: number;
  betas: readonly number[];
  eps: number;
  weightDecay: number;
  alpha?: number;
  tAlpha?: number | null;
  tBeta3?: number | null;
  maxUnorm?: number;
  skipZeros?: boolean;
  trustRatio?: boolean;
}

/** Moments in the order state1 (two for ademamix), state2. */
export function stateCount(rule: Rule): number {
  if (rule === "ademamix") return 3;
  return rule === "adam" || rule === "lamb" ? 2 : 1;
}

const norm = (x: number[]): number => Math.sqrt(x.reduce((sum, a) => sum + a * a, 0));

/**
 * One step from p and states; returns the new ones and which elements took part. The inputs stay as they are. A new
 * parameter beyond `largest` keeps its element as it is.
 */
export function referenceStep(
  h: Hyper,
  t: number,
  p: ArrayLike<number>,
  g: ArrayLike<number>,
  states: ArrayLike<number>[],
  largest = 3.4028235677973366e38,
) {
  const { lr, eps, weightDecay: wd, rule, maxUnorm = 0 } = h;
  const [b1 = 0, b2 = 0] = h.betas;
  const alpha = h.tAlpha ? Math.min((t * h.alpha!) / h.tAlpha, h.alpha!) : (h.alpha ?? 0);
  let b3 = h.betas[2] ?? 0;
  if (h.tBeta3) {
    const r = t / h.tBeta3;
    b3 = Math.min(Math.exp((Math.log(b1) * Math.log(b3)) / ((1 - r) * Math.log(b3) + r * Math.log(b1))), b3);
  }
  const c1 = 1 - b1 ** t;
  const c2 = 1 - b2 ** t;
  const n = p.length;
  const isFiniteFloat = (x: number) => Number.isFinite(Math.fround(x));

  // The trust ratio of LARS scales the gradient, so it comes first.
  let eta = 1;
  if (rule === "lars" && h.trustRatio) {
    const used = [...Array(n).keys()].filter((i) => isFiniteFloat(g[i]!) && !(h.skipZeros && g[i] === 0));
    const np = norm(used.map((i) => p[i]!));
    const ng = norm(used.map((i) => g[i]!));
    if (np > 0 && ng > 0) eta = (maxUnorm * np) / (ng + wd * np + eps);
  }

  const update = new Array<number>(n).fill(0);
  const news = states.map((s) => Array.from({ length: n }, (_, i) => s[i]!));
  const touched = new Array<boolean>(n).fill(false);
  for (let i = 0; i < n; i++) {
    const x = g[i]!;
    if (h.skipZeros && x === 0) continue;
    const old = states.map((s) => s[i]!);
    let next: number[];
    let u: number;
    const d = x + wd * p[i]!;
    switch (rule) {
      case "adam":
      case "lamb": {
        next = [b1 * old[0]! + (1 - b1) * x, b2 * old[1]! + (1 - b2) * x * x];
        u = next[0]! / c1 / (Math.sqrt(next[1]! / c2) + eps);
        if (rule === "lamb" && h.trustRatio) u += wd * p[i]!;
        break;
      }
      case "ademamix":
        next = [b1 * old[0]! + (1 - b1) * x, b3 * old[1]! + (1 - b3) * x, b2 * old[2]! + (1 - b2) * x * x];
        u = (next[0]! / c1 + alpha * next[1]!) / (Math.sqrt(next[2]! / c2) + eps);
        break;
      case "lion":
        next = [b2 * old[0]! + (1 - b2) * x];
        u = Math.sign(b1 * old[0]! + (1 - b1) * x);
        break;
      case "momentum":
      case "lars":
        next = [t === 1 ? eta * d : b1 * old[0]! + eta * d];
        u = next[0]!;
        break;
      case "rmsprop":
        next = [b1 * old[0]! + (1 - b1) * d * d];
        u = d / (Math.sqrt(next[0]!) + eps);
        break;
      case "adagrad":
        next = [old[0]! + d * d];
        u = d / (Math.sqrt(next[0]!) + eps);
        break;
    }
    if (!isFiniteFloat(x) || !next.every(isFiniteFloat)) continue;
    touched[i] = true;
    update[i] = u;
    next.forEach((value, k) => {
      news[k]![i] = value;
    });
  }

  let scale = 1;
  const taken = [...touched.keys()].filter((i) => touched[i]);
  const np = norm(taken.map((i) => p[i]!));
  const nu = norm(taken.map((i) => update[i]!));
  if (rule === "lamb" && h.trustRatio) {
    if (np > 0 && nu > 0) scale = np / nu;
  } else if (!h.trustRatio && maxUnorm > 0 && np > 0 && nu > 0) {
    scale = Math.min(1, (maxUnorm * np + (stateCount(rule) === 1 ? eps : 0)) / nu);
  }
  const isDecoupled = rule === "adam" || rule === "ademamix" || rule === "lion" || (rule === "lamb" && !h.trustRatio);
  const newP = Array.from({ length: n }, (_, i) => {
    if (!touched[i]) return p[i]!;
    const moved = p[i]! * (isDecoupled ? 1 - lr * wd : 1) - lr * scale * update[i]!;
    if (Math.abs(moved) < largest) return moved;
    touched[i] = false;
    for (const [k, old] of states.entries()) news[k]![i] = old[i]!;
    return p[i]!;
  });
  return { p: newP, states: news, touched, updateNorm: nu };
}

/** The dynamic map by its recipe: seven decades of evenly spaced values, zero and one (Dettmers, 2015). */
export function referenceMap(signed: boolean): Float32Array {
  const f = Math.fround;
  const linspace = (k: number) => {
    const step = f(f(1 - f(0.1)) / (k - 1));
    return Array.from({ length: k }, (_, r) =>
      r < Math.floor(k / 2) ? f(f(0.1) + step * r) : f(1 - step * (k - 1 - r)),
    );
  };
  const values = [0, 1];
  for (let i = 0; i < 7; i++) {
    const cells = signed ? 2 ** i : 2 ** (i + 1);
    const edges = linspace(cells + 1);
    for (let j = 0; j < cells; j++) {
      const value = f(f(10 ** (i - 6)) * f(f(edges[j]! + edges[j + 1]!) / 2));
      values.push(value);
      if (signed) values.push(-value);
    }
  }
  return Float32Array.from(values).sort();
}

/** Midpoints of neighbouring values, ascending. */
export function referenceThresholds(map: Float32Array): Float32Array {
  return Float32Array.from({ length: 255 }, (_, i) => Math.fround(Math.fround(map[i]! + map[i + 1]!) * 0.5));
}

/** Codes of one block of states: nearest entry, ties to the even code; negative values of signed states stay so. */
export function referenceEncode(
  state: ArrayLike<number>,
  signed: boolean,
  map: Float32Array,
  thresholds: Float32Array,
): { absmax: number; codes: number[] } {
  const f = Math.fround;
  const isNegative = (y: number) => y < 0 || Object.is(y, -0);
  const absmax = Array.from(state).reduce((most, x) => Math.max(most, Math.abs(f(x))), 0);
  const codes = Array.from(state, (value) => {
    if (absmax === 0) return signed ? 127 : 0;
    const x = absmax >= 2 ** -126 ? f(f(value) * f(1 / absmax)) : f(f(value) / absmax);
    // The number of thresholds below x; on an odd one counts as above it.
    let [low, code] = [0, 255];
    while (low < code) {
      const middle = (low + code) >> 1;
      const isAbove = middle % 2 === 0 ? x > thresholds[middle]! : x >= thresholds[middle]!;
      if (isAbove) low = middle + 1;
      else code = middle;
    }
    if (signed && isNegative(map[code]!) !== isNegative(value)) code += value > 0 ? 1 : -1;
    return code;
  });
  return { absmax, codes };
}
