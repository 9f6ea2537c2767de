// The functions of csrc/cpu/math.h and their kin over the whole range of float32: bit patterns in even steps through
// every exponent and sign, and the places where a function changes its method, against float64. The suite runs once per
// instruction set, so each of them is swept.
import { describe, expect, it } from "vitest";
import {
  abs,
  exp,
  gelu,
  geluTanh,
  log,
  neg,
  pow,
  reciprocal,
  relu,
  rsqrt,
  sigmoid,
  sign,
  silu,
  sqrt,
  square,
  tanh,
  tensor,
} from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { unaryReference } from "../reference/elementwise.js";

const functions = {
  abs,
  exp,
  gelu,
  geluTanh,
  log,
  neg,
  reciprocal,
  relu,
  rsqrt,
  sigmoid,
  sign,
  silu,
  sqrt,
  square,
  tanh,
};

interface Bound {
  /** Units in the last place of the float32 result. */
  ulp: number;
  /** Besides, an absolute error of so many times |x|. */
  timesX?: number;
}

/**
 * A correctly rounded operation errs by half a unit; a function adds those of its last steps, since what comes before
 * is small against the result. sigmoid and silu divide by 1 + e^-|x|, so that a unit of theirs may be two of the result.
 */
const bounds: Record<keyof typeof unaryReference, Bound> = {
  neg: { ulp: 0 },
  abs: { ulp: 0 },
  sign: { ulp: 0 },
  relu: { ulp: 0 },
  square: { ulp: 0.5 },
  reciprocal: { ulp: 0.5 },
  sqrt: { ulp: 0.5 },
  rsqrt: { ulp: 1.5 },
  exp: { ulp: 2 },
  log: { ulp: 2 },
  tanh: { ulp: 2 },
  sigmoid: { ulp: 3 },
  // Far below zero the sigmoid is subnormal, rounded to steps of 2^-149, before it meets x.
  silu: { ulp: 4, timesX: 2 ** -149 },
  // The distribution function is half of 1 + erf, which cancels for negative x: 1.5 units of 1 in all.
  gelu: { ulp: 3, timesX: 1.5 * 2 ** -23 },
  // A sigmoid of v, where an error of 1.5 units of v counts v e^-v times, at most 0.37.
  geluTanh: { ulp: 4, timesX: 2 ** -23 },
};

/** Bit patterns at a prime distance, so that their low bits differ from one exponent to the next. */
function sweep(step: number): Float32Array {
  const bits = Uint32Array.from({ length: Math.floor(2 ** 32 / step) }, (_, i) => i * step);
  return new Float32Array(bits.buffer);
}

/** Around the limits of the methods: ranges of exp, log's sqrt(1/2), tanh's 0.625, erf's 1 and 4, the normal numbers. */
function edges(): Float32Array {
  const at = [
    ...[0, 2 ** -149, 2 ** -126, 2 ** -100, 2 ** -23, 0.5, Math.SQRT1_2, 0.625, 1, Math.SQRT2, 2, 4, 4 * Math.SQRT2],
    ...[87.33654, 88.02969, 88.72284, 90, 103.97208, 104, 105, 1e4, 2 ** 64, 1e30, 3.4028235e38, Infinity, NaN],
  ];
  const points = Float32Array.from([...at, ...at.map((x) => -x)]);
  const bits = new Uint32Array(points.buffer);
  return Float32Array.from([...points].flatMap((x, i) => [x, neighbour(bits[i]!, 1), neighbour(bits[i]!, -1)]));
}

function neighbour(bits: number, by: 1 | -1): number {
  return new Float32Array(Uint32Array.of(bits + by).buffer)[0]!;
}

/** The distance of two float32 neighbours at |x|. */
function unit(x: number): number {
  const exponent = x === 0 ? -126 : Math.floor(Math.log2(Math.abs(x)));
  return 2 ** (Math.min(127, Math.max(-126, exponent)) - 23);
}

/** How far y is outside the bound, as text, or null. */
function fault(name: keyof typeof unaryReference, x: number, y: number): string | null {
  const exact = unaryReference[name](x);
  const rounded = Math.fround(exact);
  if (Object.is(y, rounded) || y === rounded) return null;
  // Where x * factor is -Infinity * 0 the limit is 0, which needs a case of its own; the ops follow the arithmetic.
  if (x === -Infinity && ["silu", "gelu", "geluTanh"].includes(name)) return Number.isNaN(y) ? null : `${y}`;
  const { ulp, timesX = 0 } = bounds[name];
  const limit = ulp * unit(exact) + (timesX && timesX * Math.abs(x));
  return Math.abs(y - exact) <= limit ? null : `${name}(${x}) = ${y}, exact ${exact}, limit ${limit}`;
}

describe.each(testDevices())("unary functions over the range of float32 on %s", (device) => {
  // The emulated GPU takes a thousand times as long an element.
  const x = Float32Array.from([...sweep(device === "cpu" ? 8191 : 262_139), ...edges()]);

  it.each(Object.keys(bounds) as (keyof typeof unaryReference)[])("%s", (name) => {
    const y = functions[name](tensor(x, { device })).floatsSync();
    const faults: string[] = [];
    x.forEach((value, i) => {
      const message = fault(name, value, y[i]!);
      if (message !== null) faults.push(message);
    });
    expect(faults.slice(0, 5)).toEqual([]);
  });

  it("pow with a fraction is rounded once", () => {
    for (const exponent of [1.7, 0.3, -0.3, 17, -20.5]) {
      const positive = x.map(Math.abs);
      const y = pow(tensor(positive, { device }), exponent).floatsSync();
      const faults: string[] = [];
      positive.forEach((value, i) => {
        const exact = value ** exponent;
        const got = y[i]!;
        if (Object.is(got, Math.fround(exact))) return;
        if (!(Math.abs(got - exact) <= 0.5001 * unit(exact)))
          faults.push(`${value} ** ${exponent} = ${got}, not ${exact}`);
      });
      expect(faults.slice(0, 5)).toEqual([]);
    }
  });
});
