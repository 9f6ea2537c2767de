// Moving elements by index arithmetic.

type Numbers = ArrayLike<number>;

function stridesOf(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length);
  let stride = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = stride;
    stride *= shape[i] as number;
  }
  return strides;
}

/** Every index of a shape, in row-major order. */
function* indices(shape: readonly number[]): Generator<number[]> {
  const size = shape.reduce((n, dim) => n * dim, 1);
  const strides = stridesOf(shape);
  for (let flat = 0; flat < size; flat++) {
    yield shape.map((dim, i) => Math.floor(flat / (strides[i] as number)) % dim);
  }
}

const at = (x: Numbers, strides: readonly number[], index: readonly number[]): number =>
  x[index.reduce((offset, i, axis) => offset + i * (strides[axis] as number), 0)] as number;

export function permuteReference(x: Numbers, shape: readonly number[], axes: readonly number[]): number[] {
  const strides = stridesOf(shape);
  const to = axes.map((axis) => shape[axis] as number);
  return Array.from(indices(to), (index) => {
    const from = new Array<number>(shape.length);
    axes.forEach((axis, i) => {
      from[axis] = index[i] as number;
    });
    return at(x, strides, from);
  });
}

export function sliceReference(
  x: Numbers,
  shape: readonly number[],
  axis: number,
  start: number,
  end: number,
): number[] {
  const cut = axis < 0 ? axis + shape.length : axis;
  const strides = stridesOf(shape);
  const to = shape.map((dim, i) => (i === cut ? end - start : dim));
  return Array.from(indices(to), (index) =>
    at(
      x,
      strides,
      index.map((i, k) => (k === cut ? i + start : i)),
    ),
  );
}

export function concatReference(parts: readonly [x: Numbers, shape: readonly number[]][], axis: number): number[] {
  const first = parts[0]![1];
  const total = parts.reduce((n, [, shape]) => n + (shape[axis] as number), 0);
  const to = first.map((dim, i) => (i === axis ? total : dim));
  return Array.from(indices(to), (index) => {
    let rest = index[axis] as number;
    for (const [x, shape] of parts) {
      const size = shape[axis] as number;
      if (rest < size)
        return at(
          x,
          stridesOf(shape),
          index.map((i, k) => (k === axis ? rest : i)),
        );
      rest -= size;
    }
    return NaN;
  });
}
