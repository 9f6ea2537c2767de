// Singular values of small matrices in float64: what weighted combinations and the starts by decomposition need.

/** A matrix of float64 in rows. */
export interface Matrix {
  readonly rows: number;
  readonly columns: number;
  readonly data: Float64Array;
}

/** U [rows, k] and V [columns, k] with orthonormal columns, and singular values in descending order. */
export interface Decomposition {
  readonly u: Matrix;
  readonly values: Float64Array;
  readonly v: Matrix;
}

export function matrix(rows: number, columns: number, data: ArrayLike<number>): Matrix {
  return { rows, columns, data: Float64Array.from(data) };
}

export function transposed({ rows, columns, data }: Matrix): Matrix {
  const turned = new Float64Array(data.length);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < columns; j++) turned[j * rows + i] = data[i * columns + j] as number;
  return { rows: columns, columns: rows, data: turned };
}

/** a b. */
export function product(a: Matrix, b: Matrix): Matrix {
  const data = new Float64Array(a.rows * b.columns);
  for (let i = 0; i < a.rows; i++) {
    for (let k = 0; k < a.columns; k++) {
      const x = a.data[i * a.columns + k] as number;
      if (x === 0) continue;
      for (let j = 0; j < b.columns; j++) {
        const at = i * b.columns + j;
        data[at] = (data[at] as number) + x * (b.data[k * b.columns + j] as number);
      }
    }
  }
  return { rows: a.rows, columns: b.columns, data };
}

/** Orthonormal Q [rows, columns] and upper triangular R with a = Q R, by modified Gram-Schmidt, done twice. */
export function orthonormalized(a: Matrix): { q: Matrix; r: Matrix } {
  const { rows, columns: n } = a;
  const columns = columnsOf(a);
  const r = new Float64Array(n * n);
  const scale = Math.sqrt(Math.max(0, ...columns.map((c) => dot(c, c))));
  for (let j = 0; j < n; j++) {
    const c = columns[j] as Float64Array;
    for (let round = 0; round < 2; round++) {
      for (let k = 0; k < j; k++) {
        const other = columns[k] as Float64Array;
        const along = dot(other, c);
        r[k * n + j] = (r[k * n + j] as number) + along;
        for (let i = 0; i < rows; i++) c[i] = (c[i] as number) - along * (other[i] as number);
      }
    }
    const length = Math.sqrt(dot(c, c));
    // What depends on the columns before has no direction of its own.
    const isNone = length <= 1e-14 * scale;
    r[j * n + j] = isNone ? 0 : length;
    for (let i = 0; i < rows; i++) c[i] = isNone ? 0 : (c[i] as number) / length;
  }
  return { q: fromColumns(rows, columns), r: { rows: n, columns: n, data: r } };
}

/** The decomposition of a matrix, by Jacobi's rotations of its columns (Hestenes, 1958); k = min(rows, columns). */
export function decomposed(a: Matrix): Decomposition {
  if (a.rows < a.columns) {
    const { u, values, v } = decomposed(transposed(a));
    return { u: v, values, v: u };
  }
  const n = a.columns;
  const work = columnsOf(a);
  const turns = columnsOf({ rows: n, columns: n, data: identity(n) });
  for (let sweep = 0; sweep < 60; sweep++) {
    let largest = 0;
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        const [x, y] = [work[p] as Float64Array, work[q] as Float64Array];
        const [xx, yy, xy] = [dot(x, x), dot(y, y), dot(x, y)];
        if (Math.abs(xy) <= 1e-15 * Math.sqrt(xx * yy) || xy === 0) continue;
        largest = Math.max(largest, Math.abs(xy) / Math.sqrt(xx * yy));
        const zeta = (yy - xx) / (2 * xy);
        const t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
        const c = 1 / Math.sqrt(1 + t * t);
        rotate(x, y, c, c * t);
        rotate(turns[p] as Float64Array, turns[q] as Float64Array, c, c * t);
      }
    }
    if (largest < 1e-14) break;
  }
  const lengths = work.map((column) => Math.sqrt(dot(column, column)));
  const order = lengths.map((_, i) => i).sort((i, j) => (lengths[j] as number) - (lengths[i] as number));
  const unit = order.map((i) => {
    const length = lengths[i] as number;
    return (work[i] as Float64Array).map((v) => (length === 0 ? 0 : v / length));
  });
  return {
    u: fromColumns(a.rows, unit),
    values: Float64Array.from(order, (i) => lengths[i] as number),
    v: fromColumns(
      n,
      order.map((i) => turns[i] as Float64Array),
    ),
  };
}

/** The decomposition of b a without forming it: b [out, k], a [k, in], of rank k at most. */
export function decomposedProduct(b: Matrix, a: Matrix): Decomposition {
  const left = orthonormalized(b);
  const right = orthonormalized(transposed(a));
  const { u, values, v } = decomposed(product(left.r, transposed(right.r)));
  return { u: product(left.q, u), values, v: product(right.q, v) };
}

/** The first `count` columns. */
export function leading({ rows, columns, data }: Matrix, count: number): Matrix {
  const own = new Float64Array(rows * count);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < Math.min(count, columns); j++) own[i * count + j] = data[i * columns + j] as number;
  }
  return { rows, columns: count, data: own };
}

/** Column j times by[j]. */
export function scaledColumns({ rows, columns, data }: Matrix, by: ArrayLike<number>): Matrix {
  return { rows, columns, data: data.map((value, at) => value * (by[at % columns] ?? 0)) };
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
  return sum;
}

function rotate(x: Float64Array, y: Float64Array, c: number, s: number): void {
  for (let i = 0; i < x.length; i++) {
    const [a, b] = [x[i] as number, y[i] as number];
    x[i] = c * a - s * b;
    y[i] = s * a + c * b;
  }
}

function columnsOf({ rows, columns, data }: Matrix): Float64Array[] {
  return Array.from({ length: columns }, (_, j) =>
    Float64Array.from({ length: rows }, (_, i) => data[i * columns + j] as number),
  );
}

function fromColumns(rows: number, columns: readonly Float64Array[]): Matrix {
  const data = new Float64Array(rows * columns.length);
  columns.forEach((column, j) => {
    for (let i = 0; i < rows; i++) data[i * columns.length + j] = column[i] as number;
  });
  return { rows, columns: columns.length, data };
}

function identity(n: number): Float64Array {
  const data = new Float64Array(n * n);
  for (let i = 0; i < n; i++) data[i * n + i] = 1;
  return data;
}
