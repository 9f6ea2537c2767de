// Reductions over the middle axis of [outer, n, inner] in float64.

export type ReduceName = "sum" | "mean" | "max" | "min";

/** The parts of a shape around an axis; without one everything is the reduced axis. */
export function around(shape: readonly number[], axis?: number): [outer: number, n: number, inner: number] {
  const product = (dims: readonly number[]) => dims.reduce((total, dim) => total * dim, 1);
  if (axis === undefined) return [1, product(shape), 1];
  const at = axis < 0 ? axis + shape.length : axis;
  return [product(shape.slice(0, at)), shape[at] as number, product(shape.slice(at + 1))];
}

/** The elements of every reduced line, in order. */
export function lines(x: ArrayLike<number>, shape: readonly number[], axis?: number): number[][] {
  const [outer, n, inner] = around(shape, axis);
  return Array.from({ length: outer * inner }, (_, i) => {
    const [o, j] = [Math.floor(i / inner), i % inner];
    return Array.from({ length: n }, (_, k) => x[(o * n + k) * inner + j] as number);
  });
}

export function reduceReference(
  name: ReduceName,
  x: ArrayLike<number>,
  shape: readonly number[],
  axis?: number,
): number[] {
  return lines(x, shape, axis).map((line) => {
    if (name === "sum") return line.reduce((a, b) => a + b, 0);
    if (name === "mean") return line.reduce((a, b) => a + b, 0) / line.length;
    return line.reduce(
      (a, b) => (name === "max" ? Math.max(a, b) : Math.min(a, b)),
      name === "max" ? -Infinity : Infinity,
    );
  });
}

export function argmaxReference(x: ArrayLike<number>, shape: readonly number[], axis?: number): number[] {
  return lines(x, shape, axis).map((line) => {
    const best = line.reduce((a, b) => Math.max(a, b), -Infinity);
    return line.findIndex((v) => Object.is(v, best) || v === best);
  });
}
