// 32-bit states: every rule against a float64 oracle over 20 steps, all dtypes of parameter and gradient, elements
// that are not updated, and the errors of the native op.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { memory, tensor, zeros } from "../../src/index.js";
import { AdamW, Lion, optimizerUpdate32bit, SGD } from "../../src/optim/index.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradients, hypers, makeOptimizer, normals } from "../helpers/optimizers.js";
import type { Hyper } from "../reference/optimizers.js";
import { referenceStep, stateCount } from "../reference/optimizers.js";

const dtypes = ["float32", "float16", "bfloat16"] as const;

describe.each(testDevices())("optimizer_32bit on %s", (device) => {
  const makeParam = (values: Float32Array, dtype: (typeof dtypes)[number] = "float32") =>
    tensor(values, { dtype, device, requiresGrad: true });

  function setGrad(p: Tensor, g: Float32Array, dtype: (typeof dtypes)[number] = "float32"): Float32Array {
    p.grad?.dispose();
    p.grad = tensor(g, { dtype, device, shape: p.shape });
    return p.grad.floatsSync();
  }

  describe("values", () => {
    it.each(hypers)("%s follows the oracle for 20 steps", (_, h: Hyper) => {
      // A parameter of several chunks with a partial tile, and one below a tile, in the same step.
      for (const n of [20_011, 37]) {
        const start = normals(n, 0.1, n);
        const p = makeParam(start);
        const optimizer = makeOptimizer([p], h);
        let want: { p: number[]; states: number[][] } = {
          p: [...start],
          states: Array.from({ length: stateCount(h.rule) }, () => new Array<number>(n).fill(0)),
        };
        for (let t = 1; t <= 20; t++) {
          const g = setGrad(p, gradients(n, t));
          optimizer.step();
          want = referenceStep(h, t, want.p, g, want.states);
        }
        // Where the decayed gradient all but cancels, its direction (or Lion's sign) is a matter of rounding.
        const allowed = h.rule === "rmsprop" || h.rule === "adagrad" || h.rule === "lion" ? 3 : 0;
        expectClose(p.floatsSync(), want.p, { atol: 1e-6, rtol: 1e-5 }, allowed);
        const state = optimizer.stateOf(p)!;
        const states = [...state.state1.floatsSync(), ...(state.state2?.floatsSync() ?? [])];
        expectClose(states, want.states.flat(), { atol: 1e-6, rtol: 1e-5 });
        optimizer.dispose();
        p.dispose();
      }
    });

    it("unormVec holds the norm of the update", () => {
      const h: Hyper = { rule: "lamb", lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01, maxUnorm: 0.1 };
      const start = normals(1000, 0.1, 5);
      const p = makeParam(start);
      const optimizer = makeOptimizer([p], h);
      const g = setGrad(p, gradients(1000, 1));
      optimizer.step();
      const zero = new Array<number>(1000).fill(0);
      const want = referenceStep(h, 1, start, g, [zero, zero]);
      expectClose(optimizer.stateOf(p)!.unormVec!.floatsSync(), [want.updateNorm], { atol: 0, rtol: 1e-5 });
      optimizer.dispose();
    });

    it("a parameter of zeros moves under LAMB and LARS", () => {
      for (const rule of ["lamb", "lars"] as const) {
        const p = makeParam(new Float32Array(10));
        const h: Hyper = { rule, lr: 0.1, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0, maxUnorm: 0.02 };
        const optimizer = makeOptimizer([p], h);
        setGrad(p, new Float32Array(10).fill(0.5));
        optimizer.step();
        expectClose(p.floatsSync(), new Array(10).fill(rule === "lamb" ? -0.1 : -0.05), { atol: 1e-7, rtol: 1e-5 });
        optimizer.dispose();
      }
    });
  });

  describe("dtypes", () => {
    const combinations = dtypes.flatMap((p) => dtypes.map((g) => [p, g] as const));
    it.each(combinations)("parameter %s, gradient %s", (pType, gType) => {
      const units = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 };
      for (const [, h] of hypers) {
        const n = 700;
        const p = makeParam(normals(n, 0.1, 3), pType);
        const optimizer = makeOptimizer([p], h);
        let states = Array.from({ length: stateCount(h.rule) }, () => new Array<number>(n).fill(0));
        for (let t = 1; t <= 3; t++) {
          const before = p.floatsSync();
          const g = setGrad(p, gradients(n, t), gType);
          optimizer.step();
          const want = referenceStep(h, t, before, g, states);
          states = want.states;
          // One rounding to the parameter's type, on top of float32 arithmetic.
          expectClose(p.floatsSync(), want.p, { atol: 1e-6, rtol: 1e-5 + units[pType] }, 2);
        }
        optimizer.dispose();
        p.dispose();
      }
    });
  });

  describe("elements that are not updated", () => {
    it.each(hypers)("%s leaves elements alone whose gradient is not finite, and counts them", async (_, h) => {
      const n = 300;
      const start = normals(n, 0.1, 4);
      const p = makeParam(start);
      const optimizer = makeOptimizer([p], h);
      const zero = () => Array.from({ length: stateCount(h.rule) }, () => new Array<number>(n).fill(0));
      const g = gradients(n, 1);
      [g[0], g[7], g[299]] = [Number.NaN, Infinity, -Infinity];
      setGrad(p, g);
      optimizer.step();
      const want = referenceStep(h, 1, start, g, zero());
      const got = p.floatsSync();
      expectClose(got, want.p, { atol: 1e-6, rtol: 1e-5 });
      for (const i of [0, 7, 299]) expect(got[i]).toBe(start[i]);
      expect(optimizer.stateOf(p)!.state1.floatsSync()[7]).toBe(0);
      expect(await optimizer.nonFiniteCount).toBe(3);
      optimizer.step();
      expect(await optimizer.nonFiniteCount).toBe(6);
      optimizer.resetNonFiniteCount();
      expect(await optimizer.nonFiniteCount).toBe(0);
      optimizer.dispose();
    });

    it("a state that would overflow is kept", async () => {
      const p = makeParam(new Float32Array([1, 1, 1]));
      const optimizer = new AdamW([p]);
      setGrad(p, new Float32Array([3e38, 0.5, -3e38]));
      optimizer.step();
      const got = p.floatsSync();
      expect([got[0], got[2]]).toEqual([1, 1]);
      expect(got[1]).toBeLessThan(1);
      expect(await optimizer.nonFiniteCount).toBe(2);
      optimizer.dispose();
    });

    it("skipZeros keeps parameter, decay and state where the raw gradient is +0 or -0", async () => {
      const p = makeParam(new Float32Array([1, 1, 1]));
      const optimizer = new SGD([p], { lr: 0.1, momentum: 0.9, weightDecay: 0.5, skipZeros: true });
      setGrad(p, new Float32Array([0, -0, 1]));
      optimizer.step();
      expectClose(p.floatsSync(), [1, 1, 1 - 0.15], { atol: 1e-7, rtol: 0 });
      expectClose(optimizer.stateOf(p)!.state1.floatsSync(), [0, 0, 1.5], { atol: 1e-6, rtol: 0 });
      expect(await optimizer.nonFiniteCount).toBe(0);
      optimizer.dispose();
    });
  });

  describe("shapes", () => {
    it("takes any size, also none, and several parameters at once", () => {
      const h = hypers[1]![1];
      const sizes = [0, 1, 2, 15, 16, 17, 255, 256, 257, 16_384, 16_385, 33_000];
      const starts = sizes.map((n) => normals(n, 0.1, n + 1));
      const params = starts.map((start) => makeParam(start));
      const optimizer = makeOptimizer(params, h);
      const grads = params.map((p, i) => setGrad(p, gradients(sizes[i]!, 1)));
      optimizer.step();
      params.forEach((p, i) => {
        const zero = new Array<number>(sizes[i]!).fill(0);
        const want = referenceStep(h, 1, starts[i]!, grads[i]!, [zero, zero]);
        expectClose(p.floatsSync(), want.p, { atol: 1e-6, rtol: 1e-5 });
      });
      optimizer.dispose();
    });

    it("passes over parameters without a gradient, and counts steps per parameter", () => {
      const [a, b] = [makeParam(normals(8, 1, 1)), makeParam(normals(8, 1, 2))];
      const optimizer = new Lion([a, b]);
      setGrad(a, gradients(8, 1));
      optimizer.step();
      optimizer.step();
      expect(optimizer.stateOf(a)!.step).toBe(2);
      expect(optimizer.stateOf(b)).toBeUndefined();
      expect([...b.floatsSync()]).toEqual([...normals(8, 1, 2)]);
      optimizer.dispose();
    });

    it("gives the same bits every time", () => {
      const bits = [1, 2].map(() => {
        const p = makeParam(normals(50_000, 0.1, 8));
        const optimizer = makeOptimizer([p], hypers[2]![1]);
        for (let t = 1; t <= 3; t++) {
          setGrad(p, gradients(50_000, t));
          optimizer.step();
        }
        const bytes = Buffer.from(p.floatsSync().buffer).toString("base64");
        optimizer.dispose();
        return bytes;
      });
      expect(bits[0]).toBe(bits[1]);
    });

    it("returns all memory", () => {
      const before = memory();
      const p = makeParam(normals(5000, 0.1, 1));
      const optimizer = makeOptimizer([p], hypers[13]![1]);
      setGrad(p, gradients(5000, 1));
      optimizer.step();
      optimizer.zeroGrad();
      expect(p.grad).toBeNull();
      optimizer.dispose();
      p.dispose();
      expect(memory().liveBytes).toBe(before.liveBytes);
      expect(memory().tensors).toBe(before.tensors);
    });
  });

  describe("errors", () => {
    const update = (over: { g?: Tensor; p?: Tensor; m?: Tensor; v?: Tensor | null; step?: number }) => {
      const p = over.p ?? zeros([4], { device });
      const { g = zeros([4], { device }), m = zeros([4], { device }), v = zeros([4], { device }), step = 1 } = over;
      optimizerUpdate32bit("adam", g, p, m, { state2: v, beta1: 0.9, beta2: 0.999, eps: 1e-8, step, lr: 0.1 });
    };

    it("names what must hold", () => {
      const wrong = (shape: number[]) => zeros(shape, { device });
      const ints = zeros([4], { device, dtype: "int32" });
      expect(() => update({ g: wrong([5]) })).toThrow("optimizerStep: g of parameter 0 must have shape [4], got [5]");
      expect(() => update({ m: wrong([5]) })).toThrow(
        "optimizerStep: state1 of parameter 0 must have 4 elements, got [5]",
      );
      expect(() => update({ m: ints })).toThrow("optimizerStep: state1 of parameter 0 must be float32, got int32");
      expect(() => update({ p: ints })).toThrow(
        "optimizerStep: parameter 0 must be float32, float16 or bfloat16, got int32",
      );
      expect(() => update({ v: null })).toThrow("optimizerUpdate32bit: state2 must be given, got null");
      expect(() => update({ step: 0 })).toThrow("optimizerUpdate32bit: step must be an integer of at least 1, got 0");
      const gone = zeros([4], { device });
      gone.dispose();
      expect(() => update({ g: gone })).toThrow(/optimizerStep: tensors.* was disposed/);
    });

    it("a step that throws leaves the counts of steps as they were", () => {
      const p = makeParam(normals(4, 1, 1));
      const optimizer = new AdamW([p]);
      setGrad(p, gradients(4, 1));
      optimizer.step();
      p.grad!.dispose();
      expect(() => optimizer.step()).toThrow(/disposed/);
      expect(optimizer.stateOf(p)!.step).toBe(1);
      optimizer.dispose();
    });
  });
});
