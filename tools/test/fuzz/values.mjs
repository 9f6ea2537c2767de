// Values to call with: a seeded generator, tensors of every kind, and values that nobody should pass.

/** An error that a hostile value throws by itself: the user's, whoever touches the value. */
export class UserError extends Error {}

/** A generator of numbers that depends on the seed and the index alone (mulberry32), with what the recipes need of it. */
export class Random {
  #state;

  /** @param {number} seed @param {number} index */
  constructor(seed, index) {
    this.#state = (Math.imul(seed, 0x9e3779b1) ^ Math.imul(index + 1, 0x85ebca6b)) >>> 0;
    this.next();
  }

  /** In [0, 1). */
  next() {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** A whole number in [0, n). @param {number} n */
  int(n) {
    return Math.floor(this.next() * n);
  }

  /** @param {number} p */
  chance(p) {
    return this.next() < p;
  }

  /** @template T @param {readonly T[]} list @returns {T} */
  pick(list) {
    return /** @type {T} */ (list[this.int(list.length)]);
  }

  /** Some of the options, each present half of the time. @param {Record<string, unknown>} all */
  some(all) {
    return Object.fromEntries(Object.entries(all).filter(() => this.chance(0.5)));
  }
}

/** Sizes that tensors have, so that two of them often fit. */
const sizes = [0, 1, 2, 3, 4, 8, 16, 33, 64];
/** Sizes whose products pass 2^31, 2^53 or 2^64, and numbers that are no size. */
const wildSizes = [
  ...[2 ** 31, 2 ** 32 + 1, 2 ** 40, 2 ** 53, 2 ** 53 - 1, 274177, 67280421310721, 1e15, 1e300],
  ...[-1, -0, 0.5, NaN, Infinity, -Infinity, 2 ** 31 - 1],
];
export const floats = ["float32", "float16", "bfloat16"];
export const dtypes = ["float32", "float16", "bfloat16", "int32", "int8", "uint8", "float64"];

/** @param {Random} r */
export const size = (r) => r.pick(sizes);
/** @param {Random} r @param {number} [rank] */
export const shape = (r, rank = r.int(4)) => Array.from({ length: rank }, () => size(r));
/** @param {Random} r */
export const wildShape = (r) =>
  Array.from({ length: 1 + r.int(5) }, () => (r.chance(0.5) ? r.pick(wildSizes) : size(r)));
/** @param {Random} r */
export const number = (r) => r.pick([0, 1, -1, 2, 0.5, 1e-8, 3, 8, 64, r.next(), -r.next(), 1e30, r.int(100)]);
/** @param {Random} r */
export const wildNumber = (r) =>
  r.pick([...wildSizes, -(2 ** 31), -(2 ** 63), 2 ** 63, 2 ** 64, 5e-324, -1e300, 1e-300, 1e38]);

/** @param {number[]} dims */
export const elements = (dims) => dims.reduce((n, dim) => n * dim, 1);

/** Numbers for `n` elements of a dtype. @param {Random} r @param {number} n @param {string} dtype */
function numbers(r, n, dtype) {
  const rare = r.chance(0.1) ? [NaN, Infinity, -Infinity, 1e38, -0, 1e-45] : null;
  return Float32Array.from({ length: n }, () => {
    if (!floats.includes(dtype) && dtype !== "float64") return r.int(dtype === "uint8" ? 256 : 100);
    return rare && r.chance(0.2) ? r.pick(rare) : 4 * r.next() - 2;
  });
}

/**
 * A tensor of a shape and dtype; at times a view, with a gradient, or disposed.
 * @param {any} B @param {Random} r @param {number[]} [dims] @param {string} [dtype]
 */
export function tensor(B, r, dims = shape(r), dtype = r.chance(0.6) ? "float32" : r.pick(dtypes)) {
  const n = elements(dims);
  if (n > 1 << 16) dims = [n % 17];
  let t;
  if (r.chance(0.15)) {
    // A view that begins inside its storage.
    const whole = B.tensor(numbers(r, elements(dims) + 3, dtype), { dtype });
    const at = 1 + r.int(3);
    t = B.reshape(B.slice(whole, 0, at, at + elements(dims)), dims);
  } else {
    t = B.tensor(numbers(r, elements(dims), dtype), { dtype, shape: dims });
    if (dims.length > 1 && r.chance(0.05)) t = B.transpose(t);
    if (r.chance(0.03)) t = B.broadcastTo(t, [2, ...dims]);
  }
  if (floats.includes(dtype) && r.chance(0.4)) t.requiresGrad = true;
  if (r.chance(0.01)) t.dispose();
  return t;
}

/** Token ids below `limit`, at times outside. @param {any} B @param {Random} r @param {number[]} dims @param {number} limit */
export function ids(B, r, dims, limit) {
  const wild = r.chance(0.05) ? r.pick([-1, limit, 2 ** 31 - 1, -(2 ** 31)]) : 0;
  const values = Int32Array.from({ length: elements(dims) }, () => (wild && r.chance(0.3) ? wild : r.int(limit || 1)));
  return B.tensor(values, { shape: dims, dtype: "int32" });
}

/** An object whose every property throws, is read often, or answers nonsense. @param {Random} r */
function trap(r) {
  const kind = r.int(4);
  return new Proxy(kind === 3 ? [] : {}, {
    get(_, key) {
      if (kind === 0) throw new UserError(`get ${String(key)}`);
      if (key === "length") return r.pick([3, -1, 2 ** 32, NaN, "2"]);
      if (key === Symbol.iterator || key === Symbol.toPrimitive || key === "then" || key === "toJSON") return undefined;
      return kind === 1 ? undefined : r.pick([1, 2, "x", null, NaN, 2 ** 40]);
    },
    has() {
      if (kind === 0) throw new UserError("has");
      return kind === 2;
    },
    ownKeys() {
      if (kind === 0) throw new UserError("ownKeys");
      return kind === 3 ? ["length"] : [];
    },
  });
}

/** An array whose reading runs code: it throws, changes the array, or gives another answer each time. @param {Random} r */
function restlessShape(r) {
  const dims = [2, 3, 4];
  const kind = r.int(4);
  let reads = 0;
  Object.defineProperty(dims, 1, {
    get() {
      reads++;
      if (kind === 0) throw new UserError("the getter of a size");
      if (kind === 1) dims.length = 1;
      if (kind === 2) dims.push(2 ** 40, 1, 1, 1, 1, 1, 1, 1, 1);
      return kind === 3 ? 3 ** reads : 3;
    },
  });
  return dims;
}

/** Typed arrays, and buffers that are gone or may change their length. @param {Random} r */
function binary(r) {
  const n = r.pick([0, 1, 6, 64]);
  const detached = () => {
    const array = new Float32Array(6);
    structuredClone(array.buffer, { transfer: [array.buffer] });
    return array;
  };
  return r.pick([
    () => new Float32Array(n).fill(0.5),
    () => new Float64Array(n),
    () => new Int8Array(n),
    () => new Uint8Array(n),
    () => new Uint8ClampedArray(n),
    () => new Int16Array(n),
    () => new Uint32Array(n),
    () => new Int32Array(n).fill(1),
    () => new BigInt64Array(n).fill(3n),
    () => new BigUint64Array(n).fill(2n ** 64n - 1n),
    () => new DataView(new ArrayBuffer(n)),
    () => new ArrayBuffer(n),
    () => new SharedArrayBuffer(n),
    () => new Float32Array(new SharedArrayBuffer(4 * n)),
    () => Buffer.alloc(n),
    detached,
  ])();
}

/** What nobody should pass where something else is wanted. @param {any} B @param {Random} r @returns {unknown} */
export function hostile(B, r) {
  return r.pick([
    () => undefined,
    () => null,
    () => r.chance(0.5),
    () => wildNumber(r),
    () => number(r),
    () =>
      r.pick(["", "x", "float32", "nf4", "cpu", "cuda:0", "cuda:99", "__proto__", "constructor", "\u0000", "1e400"]),
    () => r.pick([0n, 2n ** 64n, -1n]),
    () => Symbol("s"),
    () => () => r.pick([undefined, 3, "x"]),
    () => async () => 1,
    () =>
      function thrower() {
        throw new UserError("a function of the user");
      },
    () => trap(r),
    () => restlessShape(r),
    () => binary(r),
    () => wildShape(r),
    () => [1, [2, 3]],
    () => [[1, 2], [3]],
    () => ["1", null, undefined],
    () => new Array(5),
    () => Object.create(null),
    () => Object.create(B.Tensor.prototype),
    () => ({ slot: 0, shape: [2], dtype: "float32" }),
    () => new Proxy(tensor(B, r), {}),
    () => ({ valueOf: () => r.pick([2, NaN]), toString: () => "two" }),
    () => ({
      [Symbol.toPrimitive]: () => {
        throw new UserError("toPrimitive");
      },
    }),
    () => new Map([["a", 1]]),
    () => new Date(NaN),
    () => Promise.resolve(1),
    () => new AbortController().signal,
    () => B.Tensor,
    () => new B.nn.Module(),
    () => tensor(B, r),
    () => tensor(B, r),
    () => [tensor(B, r), tensor(B, r)],
    () => ({ weight: tensor(B, r) }),
  ])();
}
