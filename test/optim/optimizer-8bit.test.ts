// 8-bit states: each step from the library's own bytes against an independent decode, update and encode; elements and
// blocks that are not written; the long run against 32-bit states.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { copyInto, memory, tensor, zeros } from "../../src/index.js";
import { slice } from "../../src/ops/shape.js";
import type { Optimizer8bit } from "../../src/optim/index.js";
import { AdamW8bit, AdEMAMix8bit, Lion8bit, optimizerUpdate8bitBlockwise, SGD8bit } from "../../src/optim/index.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradients, hypers, makeOptimizer, normals } from "../helpers/optimizers.js";
import type { Hyper } from "../reference/optimizers.js";
import {
  referenceEncode,
  referenceMap,
  referenceStep,
  referenceThresholds,
  stateCount,
} from "../reference/optimizers.js";

const maps = { signed: referenceMap(true), unsigned: referenceMap(false) };
const thresholds = { signed: referenceThresholds(maps.signed), unsigned: referenceThresholds(maps.unsigned) };

interface Moment {
  signed: boolean;
  codes: Uint8Array;
  absmax: Float32Array;
}

/** The moments of a parameter of n elements as the optimizer stores them; all zero before the first step. */
function momentsOf(optimizer: Optimizer8bit, p: Tensor, rule: Hyper["rule"]): Moment[] {
  const n = p.size;
  const blocks = Math.ceil(n / 256);
  const state = optimizer.stateOf(p);
  const rows = rule === "ademamix" ? 2 : 1;
  const moments: Moment[] = [];
  for (let row = 0; row < rows; row++) {
    const codes = state
      ? (state.state1.dataSync() as Uint8Array).slice(row * n, (row + 1) * n)
      : new Uint8Array(n).fill(127);
    const absmax = state
      ? state.absmax1!.floatsSync().slice(row * blocks, (row + 1) * blocks)
      : new Float32Array(blocks);
    moments.push({ signed: true, codes, absmax });
  }
  if (stateCount(rule) > 1) {
    const codes = state ? (state.state2!.dataSync() as Uint8Array) : new Uint8Array(n);
    const absmax = state ? state.absmax2!.floatsSync() : new Float32Array(blocks);
    moments.push({ signed: false, codes, absmax });
  }
  return moments;
}

const decoded = ({ signed, codes, absmax }: Moment) =>
  Float32Array.from(codes, (code, i) => Math.fround((signed ? maps.signed : maps.unsigned)[code]! * absmax[i >> 8]!));

/** Compares the stored moments with the encoding of the reference's new states; returns how many codes differ. */
function compareMoment(after: Moment, before: Moment, states: number[], touched: boolean[]): number {
  let different = 0;
  for (let b = 0; b < after.absmax.length; b++) {
    const [from, to] = [b * 256, Math.min((b + 1) * 256, states.length)];
    const codes = after.codes.subarray(from, to);
    if (!touched.slice(from, to).some(Boolean)) {
      expect([...codes]).toEqual([...before.codes.subarray(from, to)]);
      expect(after.absmax[b]).toBe(before.absmax[b]);
      continue;
    }
    const kind = after.signed ? "signed" : "unsigned";
    const want = referenceEncode(states.slice(from, to), after.signed, maps[kind], thresholds[kind]);
    expectClose([after.absmax[b]!], [want.absmax], { atol: 0, rtol: 1e-6 });
    const distances = want.codes.map((code, i) => Math.abs(code - codes[i]!));
    expect(Math.max(...distances)).toBeLessThanOrEqual(1);
    different += distances.filter((distance) => distance > 0).length;
  }
  return different;
}

describe.each(testDevices())("optimizer_8bit on %s", (device) => {
  const makeParam = (values: Float32Array) => tensor(values, { device, requiresGrad: true });

  function setGrad(p: Tensor, g: Float32Array): Float32Array {
    p.grad?.dispose();
    p.grad = tensor(g, { device, shape: p.shape });
    return g;
  }

  describe("values", () => {
    it("the reference's maps are the published ones", () => {
      for (const [map, crc] of [
        [maps.signed, 0x1b137aeb],
        [maps.unsigned, 0xe871278f],
      ] as const) {
        let sum = 0xffffffff;
        for (const byte of new Uint8Array(map.buffer)) {
          sum ^= byte;
          for (let k = 0; k < 8; k++) sum = sum & 1 ? (sum >>> 1) ^ 0xedb88320 : sum >>> 1;
        }
        expect(~sum >>> 0).toBe(crc);
      }
    });

    it.each(hypers)("%s: every step is the reference's from the same bytes", (_, h) => {
      const n = 16_384 + 256 * 3 + 77;
      const p = makeParam(normals(n, 0.1, 9));
      const optimizer = makeOptimizer([p], h, 8);
      let different = 0;
      for (let t = 1; t <= 4; t++) {
        const moments = momentsOf(optimizer, p, h.rule);
        const before = p.floatsSync();
        const g = gradients(n, t);
        g.fill(0, 512, 1024); // two blocks that skipZeros leaves alone
        [g[5], g[2000], g[n - 1]] = [Number.NaN, Infinity, -Infinity];
        setGrad(p, g);
        optimizer.step();
        const want = referenceStep(h, t, before, g, moments.map(decoded));
        const allowed = h.rule === "rmsprop" || h.rule === "adagrad" || h.rule === "lion" ? 3 : 0;
        expectClose(p.floatsSync(), want.p, { atol: 1e-8, rtol: 3e-7 }, allowed);
        momentsOf(optimizer, p, h.rule).forEach((after, k) => {
          different += compareMoment(after, moments[k]!, want.states[k]!, want.touched);
        });
      }
      expect(different).toBeLessThanOrEqual(1e-4 * n * 4 * stateCount(h.rule));
      optimizer.dispose();
      p.dispose();
    });

    it.each([
      ["AdamW", 1],
      ["SGD", 4],
      ["Lion", 7],
    ] as const)("%s stays close to its 32-bit form over 50 steps", (_, index) => {
      const h = hypers[index]![1];
      const n = 5000;
      const params = [8, 32].map(() => makeParam(normals(n, 0.1, 2)));
      const optimizers = params.map((p, i) => makeOptimizer([p], h, i === 0 ? 8 : 32));
      for (let t = 1; t <= 50; t++) {
        for (const p of params) setGrad(p, gradients(n, t));
        for (const optimizer of optimizers) optimizer.step();
      }
      const [a, b] = params.map((p) => p.floatsSync());
      const start = normals(n, 0.1, 2);
      const mean = (x: Float32Array, y: Float32Array) => x.reduce((sum, v, i) => sum + Math.abs(v - y[i]!), 0) / n;
      expect(mean(a!, b!)).toBeLessThan(0.1 * mean(b!, start));
    });
  });

  describe("elements that are not updated", () => {
    it("negative values never take the code of zero", () => {
      const g = new Float32Array(256).fill(-1e-9);
      g[0] = 1;
      g[1] = 1e-9;
      g[2] = 0;
      const p = makeParam(new Float32Array(256));
      const optimizer = new SGD8bit([p], { lr: 0.1, momentum: 0.9, min8bitSize: 0 });
      setGrad(p, g);
      optimizer.step();
      const codes = [...optimizer.stateOf(p)!.state1.dataSync()];
      expect(codes.slice(0, 4)).toEqual([255, 127, 127, 126]);
      optimizer.dispose();
    });

    it("a block without an updated element keeps its bytes", async () => {
      const n = 3 * 256;
      const p = makeParam(normals(n, 0.1, 2));
      const optimizer = new AdamW8bit([p], { min8bitSize: 0 });
      setGrad(p, gradients(n, 1));
      optimizer.step();
      const state = optimizer.stateOf(p)!;
      const before = [state.state1.dataSync(), state.state2!.dataSync(), state.absmax1!.dataSync()].map((x) => [...x]);
      const values = p.floatsSync();
      const g = gradients(n, 2);
      g.fill(Number.NaN, 256, 512);
      setGrad(p, g);
      optimizer.step();
      const after = [state.state1.dataSync(), state.state2!.dataSync(), state.absmax1!.dataSync()].map((x) => [...x]);
      expect(after[0]!.slice(256, 512)).toEqual(before[0]!.slice(256, 512));
      expect(after[1]!.slice(256, 512)).toEqual(before[1]!.slice(256, 512));
      expect(after[2]![1]).toBe(before[2]![1]);
      expect(after[2]![0]).not.toBe(before[2]![0]);
      expect([...p.floatsSync().subarray(256, 512)]).toEqual([...values.subarray(256, 512)]);
      expect(await optimizer.nonFiniteCount).toBe(256);
      optimizer.dispose();
    });
  });

  describe("shapes", () => {
    it("starts from codes of zero and scales of zero", () => {
      const p = makeParam(new Float32Array(256));
      const optimizer = new AdamW8bit([p], { min8bitSize: 0 });
      setGrad(p, new Float32Array(256).fill(Number.NaN));
      optimizer.step();
      const state = optimizer.stateOf(p)!;
      expect(new Set(state.state1.dataSync())).toEqual(new Set([127]));
      expect(new Set(state.state2!.dataSync())).toEqual(new Set([0]));
      expect([...state.absmax1!.dataSync(), ...state.absmax2!.dataSync()]).toEqual([0, 0]);
      optimizer.dispose();
    });

    it("small parameters keep 32 bits, and the state of a large one takes at most 2.04 bytes an element", () => {
      const [small, large] = [makeParam(new Float32Array(4095)), makeParam(new Float32Array(1 << 16))];
      const optimizer = new AdamW8bit([small, large]);
      setGrad(small, gradients(4095, 1));
      setGrad(large, gradients(1 << 16, 1));
      const before = memory().liveBytes;
      optimizer.step();
      const { state1, state2, absmax1, absmax2 } = optimizer.stateOf(large)!;
      const nbytes = [state1, state2!, absmax1!, absmax2!].reduce((sum, t) => sum + t.nbytes, 0);
      expect(nbytes / large.size).toBeLessThanOrEqual(2.04);
      expect(optimizer.stateOf(small)!.state1.dtype).toBe("float32");
      expect(memory().liveBytes - before).toBeLessThan(2.04 * (1 << 16) + 8 * 4095 + 1024);
      optimizer.dispose();
    });

    it.each(["float32", "float16", "bfloat16"] as const)("views that start between two vectors, %s", (dtype) => {
      const n = 1000;
      const update = (shift: number) => {
        const floats = (seed: number, type: typeof dtype): Tensor => {
          const padded = tensor([...new Float32Array(shift), ...normals(n, 0.1, seed)], { device, dtype: type });
          return slice(padded, 0, shift, n + shift);
        };
        const codes = (value: number): Tensor =>
          slice(tensor(new Uint8Array(n + shift).fill(value), { device }), 0, shift, n + shift);
        const [p, g, m, v] = [floats(1, dtype), floats(2, dtype), codes(127), codes(0)];
        const [absmax1, absmax2] = [zeros([4], { device }), zeros([4], { device })];
        optimizerUpdate8bitBlockwise("adam", g, p, m, v, {
          ...{ qmap1: tensor(maps.signed, { device }), qmap2: tensor(maps.unsigned, { device }), absmax1, absmax2 },
          ...{ beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 1, lr: 0.1 },
        });
        return [p, m, v, absmax1, absmax2].map((t) => [...t.dataSync()]);
      };
      expect(update(1)).toEqual(update(0));
      expect(update(3)).toEqual(update(0));
    });

    it("takes any size, also none", () => {
      const sizes = [0, 1, 255, 256, 257, 16_385];
      for (const make of [
        (p: Tensor[]) => new AdEMAMix8bit(p, { min8bitSize: 0 }),
        (p: Tensor[]) => new Lion8bit(p, { min8bitSize: 0 }),
      ]) {
        const params = sizes.map((n) => makeParam(normals(n, 0.1, n + 1)));
        const optimizer = make(params);
        for (const p of params) setGrad(p, gradients(p.size, 1));
        optimizer.step();
        for (const p of params) expect(p.floatsSync().every(Number.isFinite)).toBe(true);
        optimizer.dispose();
      }
    });
  });

  describe("errors", () => {
    const run = (over: { qmap1?: Tensor; absmax1?: Tensor; state1?: Tensor } = {}) => {
      const t = (shape: number[], dtype: "float32" | "uint8" = "float32") => zeros(shape, { device, dtype });
      optimizerUpdate8bitBlockwise("momentum", t([300]), t([300]), over.state1 ?? t([300], "uint8"), null, {
        qmap1: over.qmap1 ?? tensor(maps.signed, { device }),
        absmax1: over.absmax1 ?? t([2]),
        ...{ beta1: 0.9, eps: 0, step: 1, lr: 0.1 },
      });
    };

    it("names what must hold", () => {
      run();
      const wrong = maps.signed.slice();
      wrong[3]! += 1e-3;
      expect(() => run({ qmap1: tensor(wrong, { device }) })).toThrow(
        /^optimizerUpdate8bitBlockwise: qmap1 must be the signed dynamic map, got .* at 3$/,
      );
      const changed = tensor(maps.signed, { device });
      run({ qmap1: changed });
      copyInto(changed, tensor(maps.unsigned, { device }));
      expect(() => run({ qmap1: changed })).toThrow(/qmap1 must be the signed dynamic map, got 0 for -0\.99\d+ at 0/);
      const both = { qmap1: tensor(maps.signed, { device }), ...{ beta1: 0.9, beta2: 0.9, eps: 1, step: 1, lr: 0.1 } };
      const adam = () => {
        const [g, p, a, b] = [
          zeros([3], { device }),
          zeros([3], { device }),
          zeros([1], { device }),
          zeros([1], { device }),
        ];
        const states = [zeros([3], { device, dtype: "uint8" }), zeros([3], { device, dtype: "uint8" })] as const;
        const options = { ...both, qmap2: both.qmap1, absmax1: a, absmax2: b };
        optimizerUpdate8bitBlockwise("adam", g, p, ...states, options);
      };
      expect(adam).toThrow(/qmap2 must be the unsigned dynamic map, got -0\.99\d+ for 0 at 0/);
      expect(() => run({ absmax1: zeros([1], { device }) })).toThrow(
        "optimizerStep: absmax1 of parameter 0 must have 2 elements, got [1]",
      );
      expect(() => run({ state1: zeros([300], { device }) })).toThrow(
        "optimizerStep: state1 of parameter 0 must be uint8, got float32",
      );
    });
  });
});
