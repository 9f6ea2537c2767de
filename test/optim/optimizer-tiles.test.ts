// A GPU updates whole tiles of aligned tensors in one way and everything else in another: both give the same bits, also
// where scales are zero, subnormal, large or not finite.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { tensor, zeros } from "../../src/index.js";
import { slice } from "../../src/ops/shape.js";
import type { OptimizerName } from "../../src/optim/index.js";
import { optimizerUpdate8bitBlockwise, optimizerUpdate32bit } from "../../src/optim/index.js";
import { testDevices } from "../helpers/devices.js";
import { normals } from "../helpers/optimizers.js";
import { referenceMap } from "../reference/optimizers.js";

const rules: readonly OptimizerName[] = ["adam", "ademamix", "lion", "momentum", "rmsprop", "adagrad", "lamb", "lars"];
const dtypes = ["float32", "float16", "bfloat16"] as const;
const block = 256;
const n = 9 * block + 77;

/** Blocks that try the ranges of a scale, and the end of one. */
function gradient(seed: number): Float32Array {
  const g = normals(n, 1, seed);
  const change = (index: number, f: (x: number, i: number) => number): void =>
    g.subarray(index * block, (index + 1) * block).forEach((x, i) => {
      g[index * block + i] = f(x, i);
    });
  change(1, (_, i) => (i % 2 ? 0 : -0));
  change(2, (x) => x * 1e-40);
  change(3, (x, i) => (i === 7 ? 3e38 : x * 1e37));
  change(4, (x, i) => (i === 200 ? Number.NaN : x));
  change(5, (x, i) => (i === 0 ? 1 : -Math.abs(x) * 1e-9));
  change(6, (x) => x * 1e-20);
  change(7, (x, i) => (seed % 2 ? 0 : i === 9 ? -Infinity : x));
  return g;
}

describe.each(testDevices())("optimizer tiles on %s", (device) => {
  const options = { beta1: 0.9, beta2: 0.999, beta3: 0.99, alpha: 2, eps: 1e-8, lr: 0.01, weightDecay: 0.01 };

  /** Everything that three steps leave behind, of tensors that start `shift` elements behind a vector. */
  function run(rule: OptimizerName, dtype: (typeof dtypes)[number], bits: 8 | 32, shift: number): number[][] {
    const view = (values: ArrayLike<number>, type: typeof dtype | "uint8"): Tensor => {
      const padded = new (type === "uint8" ? Uint8Array : Float32Array)(values.length + shift);
      padded.set(values, shift);
      return slice(tensor(padded, { device, dtype: type }), 0, shift, padded.length);
    };
    const hasSecond = rule === "adam" || rule === "ademamix" || rule === "lamb";
    const rows = rule === "ademamix" ? 2 : 1;
    const blocks = Math.ceil(n / block);
    const start = (length: number, code: number): Tensor =>
      bits === 8 ? view(new Uint8Array(length).fill(code), "uint8") : view(new Float32Array(length), "float32");
    const flat1 = start(rows * n, 127);
    const state1 = rows === 2 ? flat1.reshape([2, n]) : flat1;
    const state2 = hasSecond ? start(n, 0) : null;
    const absmax1 = zeros(rows === 2 ? [2, blocks] : [blocks], { device });
    const absmax2 = hasSecond ? zeros([blocks], { device }) : null;
    const p = view(normals(n, 0.1, 5), dtype);
    for (let step = 1; step <= 3; step++) {
      const g = view(gradient(step), dtype);
      if (bits === 32) {
        optimizerUpdate32bit(rule, g, p, state1, { ...options, state2, step });
      } else {
        const maps = { qmap1: tensor(referenceMap(true), { device }), qmap2: tensor(referenceMap(false), { device }) };
        optimizerUpdate8bitBlockwise(rule, g, p, state1, state2, { ...options, ...maps, absmax1, absmax2, step });
      }
    }
    return [p, state1, state2, absmax1, absmax2].filter((t) => t !== null).map((t) => [...t.dataSync()] as number[]);
  }

  describe.each([8, 32] as const)("%i-bit states", (bits) => {
    it.each(rules)("%s", (rule) => {
      for (const dtype of dtypes) expect(run(rule, dtype, bits, 1), dtype).toEqual(run(rule, dtype, bits, 0));
    });
  });
});
