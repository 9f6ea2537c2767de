// bitsandbytes' int8 matmul and its state: fixtures, which codes are kept, and gradients.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import * as functional from "../../src/functional.js";
import { cast, copyInto, linear, MatmulLtState } from "../../src/ops/index.js";
import { full, tensor, zeros } from "../../src/tensor/create.js";
import { memory, tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { normals } from "../helpers/random.js";
import { readSafetensors, toNumbers } from "../helpers/safetensors.js";
import { mixedLinear, quantizeRows } from "../reference/int8.js";

const file = readSafetensors("functional/int8.safetensors");

describe.each(testDevices())("on %s", (device) => {
  const [m, n, k] = [4, 5, 24];
  const put = (seed: number, shape: number[]): Tensor =>
    tensor(
      normals(
        shape.reduce((a, b) => a * b, 1),
        seed,
      ),
      { shape, device },
    );
  const fixture = (name: string): Tensor => {
    const t = file.get(name);
    if (!t) throw new Error(`no ${name}`);
    return tensor(t.values as never, { dtype: t.dtype as never, shape: t.shape, device });
  };

  it.each(["s0", "s1", "s2"])("gives bitsandbytes' products of case %s", (name) => {
    tidy(() => {
      for (const threshold of [0, 6]) {
        using state = new MatmulLtState();
        state.hasFp16Weights = false;
        state.isTraining = false;
        const [W, bias] = [fixture(`${name}.W`), fixture(`${name}.bias`)];
        const x = cast(fixture(`${name}.A`), "float32");
        const y = functional.matmul(x, W, { state, threshold, bias });
        const exact = toNumbers(file.get(`${name}.t${threshold}.mixed_bias_exact_f64`) as never);
        expectClose(y.floatsSync(), exact, { atol: 1e-4, rtol: 1e-4 });
        expect(state.CB?.dataSync()).toEqual(file.get(`${name}.CB`)?.values);
        expect(state.SCB?.dataSync()).toEqual(file.get(`${name}.SCB`)?.values);
        expect(state.threshold).toBe(threshold);
        const columns = (file.get(`${name}.t6.outlier_cols`)?.values ?? []) as ArrayLike<number | bigint>;
        const marked = state.idx && [...state.idx.dataSync()].flatMap((one, i) => (one === 1 ? [i] : []));
        expect(marked).toEqual(threshold > 0 ? Array.from(columns, Number) : null);
      }
    });
  });

  it("keeps codes while the weight stays, makes them anew when it changes, and frees them", () => {
    const before = memory().tensors;
    tidy(() => {
      using state = new MatmulLtState();
      const [x, w] = [put(1, [m, k]), put(2, [n, k])];
      functional.matmul(x, w, { state });
      const { CB } = state;
      functional.matmul(x, w, { state });
      expect(state.CB).toBe(CB);
      copyInto(w, full([1, k], 3, { device }), { axis: 0, start: 1 });
      const y = functional.matmul(x, w, { state });
      expect(CB?.disposed).toBe(true);
      const { codes, stats } = quantizeRows(w.floatsSync(), n, k);
      expect(state.CB?.dataSync()).toEqual(codes);
      expectClose(y.floatsSync(), mixedLinear(x.floatsSync(), codes, stats, [m, n, k]).y, { atol: 1e-5, rtol: 1e-5 });
      // Codes made once stay.
      using frozen = new MatmulLtState();
      frozen.hasFp16Weights = false;
      functional.matmul(x, w, { state: frozen });
      const fixed = frozen.CB;
      copyInto(w, zeros([1, k], { device }));
      functional.matmul(x, w, { state: frozen });
      expect(frozen.CB).toBe(fixed);
      frozen.resetGrads();
      expect([frozen.CB, frozen.SCB, fixed?.disposed]).toEqual([null, null, true]);
      // Without a state nothing is kept.
      functional.matmul(x, w, { threshold: 1 });
    });
    expect(memory().tensors).toBe(before);
  });

  it.each([true, false])("takes codes that are given, with hasFp16Weights %s and B the codes", (hasFp16Weights) => {
    tidy(() => {
      const [x, w] = [put(1, [m, k]), put(2, [n, k])];
      const rows = functional.int8VectorwiseQuant(w);
      const state = new MatmulLtState();
      Object.assign(state, { CB: rows.codes, SCB: rows.stats, hasFp16Weights });
      const y = functional.matmul(x, rows.codes, { state });
      expect(y.dataSync()).toEqual(functional.matmul8bit(x, rows.codes, rows.stats).dataSync());
    });
  });

  it("gives gradients to A, to the bias, and with hasFp16Weights to B", () => {
    tidy(() => {
      for (const hasFp16Weights of [true, false]) {
        using state = new MatmulLtState();
        state.hasFp16Weights = hasFp16Weights;
        const leaves = () => {
          const all = [put(1, [m, k]), put(2, [n, k]), put(3, [n])] as [Tensor, Tensor, Tensor];
          for (const t of all) t.requiresGrad = true;
          return all;
        };
        const [x, w, bias] = leaves();
        const dy = put(4, [m, n]);
        backward(functional.matmul(x, w, { state, bias }), dy);
        const [x2, w2, bias2] = leaves();
        backward(linear(x2, w2, bias2), dy);
        const bound = { atol: hasFp16Weights ? 1e-5 : 0.15, rtol: 1e-4 };
        expectClose(x.grad!.floatsSync(), x2.grad!.floatsSync(), bound);
        expectClose(bias.grad!.floatsSync(), bias2.grad!.floatsSync(), { atol: 1e-5, rtol: 1e-5 });
        if (hasFp16Weights) expectClose(w.grad!.floatsSync(), w2.grad!.floatsSync(), { atol: 1e-5, rtol: 1e-4 });
        else expect(w.grad).toBeNull();
      }
    });
  });

  it("writes into out, and says what does not go", () => {
    tidy(() => {
      const [x, w] = [put(1, [m, k]), put(2, [n, k])];
      const out = zeros([m, n], { device });
      expect(functional.matmul(x, w, { out })).toBe(out);
      expect(out.dataSync()).toEqual(functional.matmul(x, w).dataSync());
      expect(() => functional.matmul(x, w, { out: zeros([n, m], { device }) })).toThrow(
        "matmul: out must be float32 [4, 5], got float32 [5, 4]",
      );
      const codes = functional.int8VectorwiseQuant(w).codes;
      expect(() => functional.matmul(x, codes)).toThrow(
        "matmul: B must be a float weight unless state has CB and SCB, got Tensor(int8 [5, 24]",
      );
      expect(() => functional.matmul(x, w, { threshold: -1 })).toThrow(
        "matmul: threshold must be a finite number of at least 0, got -1",
      );
      x.requiresGrad = true;
      expect(() => functional.matmul(x, w, { out })).toThrow("matmul: out cannot be given when a gradient is wanted");
    });
  });
});
