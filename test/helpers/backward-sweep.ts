// What every forward that is taken owes: a backward, with gradients of the dtype and shape of their tensors and the
// values that central differences of the float32 forward give.
import { expect } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import type { DType } from "../../src/index.js";
import { BnbError, tensor, tidy } from "../../src/index.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { expectClose } from "./expect-close.js";
import { uniforms } from "./random.js";
import type { FloatDType } from "./tolerance.js";

export const floats = ["float32", "float16", "bfloat16"] as const;

/** One op on tensors that all want a gradient. */
export interface BackwardCase {
  name: string;
  /** For each rank that the op takes the shapes of its tensors. */
  shapes: readonly (readonly (readonly number[])[])[];
  /** The dtypes that must be taken together; default: all alike. Everything else must be refused. */
  takes?: (...dtypes: FloatDType[]) => boolean;
  /** Inputs between 0.5 and 2.5, for functions with a pole at 0. */
  positive?: boolean;
  fn: (...inputs: Tensor[]) => Tensor;
  /** What to take differences of where `fn` has steps: the same product of unrounded values. */
  smooth?: (...inputs: Tensor[]) => Tensor;
}

// Wide enough for one rounding of every factor; the sharp bounds stand in the tests of each op.
const bounds: Record<FloatDType, { atol: number; rtol: number }> = {
  float32: { atol: 5e-3, rtol: 1e-2 },
  float16: { atol: 1e-2, rtol: 2e-2 },
  bfloat16: { atol: 6e-2, rtol: 5e-2 },
};

/** The loosest of the bounds of several dtypes. */
export function boundOf(dtypes: readonly string[]): { atol: number; rtol: number } {
  return bounds[(["bfloat16", "float16", "float32"] as const).find((dtype) => dtypes.includes(dtype)) ?? "float32"];
}

/**
 * Numbers in (-2, 2) that every float dtype holds exactly, none closer to 0, to a multiple of 1/8 or to a number of
 * another seed's parity than a difference step reaches.
 */
export function representable(size: number, seed: number, positive = false): Float32Array {
  const next = uniforms(seed + 1);
  const unit = seed % 2 === 0 ? 16 : 32;
  return Float32Array.from({ length: size }, () => {
    const value = (2 * Math.floor(next() * unit) + 1) / unit;
    if (positive) return 0.5 + value;
    return next() < 0.5 ? -value : value;
  });
}

const sizeOf = (shape: readonly number[]): number => shape.reduce((n, dim) => n * dim, 1);

/** Every list of `count` dtypes. */
export function mixesOf(count: number): FloatDType[][] {
  if (count === 0) return [[]];
  return mixesOf(count - 1).flatMap((mix) => floats.map((dtype) => [...mix, dtype]));
}

/** Weights for the elements of an output, exact in every dtype. */
export const outputGradient = (y: Tensor): Float32Array => representable(y.size, 99);

export function checkBackward(c: BackwardCase, shapes: readonly (readonly number[])[], device: string): void {
  const data = shapes.map((shape, i) => distinct(representable(sizeOf(shape), 2 * i + (i % 2), c.positive)));
  const make = (values: ArrayLike<number>, i: number, dtype: DType): Tensor =>
    tensor(Float32Array.from(values), { shape: shapes[i] as readonly number[], dtype, device });
  const expected = differences(c.smooth ?? c.fn, data, make);
  for (const mix of mixesOf(shapes.length)) {
    const takes = c.takes ? c.takes(...mix) : mix.every((dtype) => dtype === mix[0]);
    tidy(() => {
      const inputs = mix.map((dtype, i) => make(data[i] as Float32Array, i, dtype));
      for (const x of inputs) x.requiresGrad = true;
      const label = `${c.name} of ${mix.map((dtype, i) => `${dtype} [${shapes[i]}]`).join(", ")}`;
      let y: Tensor;
      try {
        y = c.fn(...inputs);
      } catch (error) {
        if (takes || !(error instanceof BnbError)) throw new Error(`${label}: forward failed`, { cause: error });
        expect(error.code, label).toBe("ERR_BNB_DTYPE");
        return;
      }
      expect(takes, `${label} is taken by forward`).toBe(true);
      backward(y, tensor(outputGradient(y), { shape: y.shape, dtype: y.dtype, device }));
      inputs.forEach((x, i) => {
        expect(x.grad, `${label}: gradient ${i}`).not.toBeNull();
        expect([x.grad?.dtype, x.grad?.shape], `${label}: gradient ${i}`).toEqual([x.dtype, x.shape]);
        expectClose(x.grad?.floatsSync() ?? [], expected[i] as number[], boundOf(mix));
      });
    });
  }
}

// No two elements of one tensor alike, so that a maximum has one place.
function distinct(values: Float32Array): Float32Array {
  const seen = new Set<number>();
  return values.map((value) => {
    let next = value;
    while (seen.has(next)) next += 0.25;
    seen.add(next);
    return next;
  });
}

function differences(
  fn: (...inputs: Tensor[]) => Tensor,
  data: readonly Float32Array[],
  make: (values: ArrayLike<number>, i: number, dtype: DType) => Tensor,
): number[][] {
  const step = 1 / 128;
  const at = (values: readonly Float32Array[]): number =>
    tidy(() => {
      const y = fn(...values.map((v, i) => make(v, i, "float32")));
      const weights = outputGradient(y);
      return y.floatsSync().reduce((total, value, i) => total + value * (weights[i] as number), 0);
    });
  return data.map((values, i) =>
    Array.from(values, (value, j) => {
      const moved = (to: number): Float32Array[] =>
        data.map((all, k) => (k === i ? all.map((v, m) => (m === j ? to : v)) : all));
      return (at(moved(value + step)) - at(moved(value - step))) / (2 * step);
    }),
  );
}
