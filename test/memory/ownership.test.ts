// Who owns what, and what tells that memory was changed: the parts of a packed state, results written into a given
// tensor, and versions.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import {
  copyInto,
  dequantize4bit,
  dequantizeBlockwise,
  embeddingRenorm,
  expandAbsmax,
  gemv4bit,
  kvAppend,
  linear4bit,
  matmul4bit,
  memory,
  noGrad,
  quantize4bit,
  quantizeBlockwise,
  sum,
  tensor,
  tidy,
  zeros,
} from "../../src/index.js";
import { Linear4bit } from "../../src/nn/index.js";
import { clipGradNorm, clipGradValue, SGD } from "../../src/optim/index.js";
import { testDevices } from "../helpers/devices.js";
import { normals } from "../helpers/random.js";

// Handles left behind by fn, whose result is disposed.
function left(fn: () => { dispose(): void }[]): number {
  const before = memory().tensors;
  for (const made of fn()) made.dispose();
  return memory().tensors - before;
}

describe.each(testDevices())("ownership on %s", (device) => {
  const random = (...shape: number[]): Tensor =>
    tensor(
      normals(
        shape.reduce((n, dim) => n * dim, 1),
        7,
      ),
      { device },
    ).reshape(shape);

  it("leaves no handle behind where a result is written into a given tensor", () => {
    using x = random(4, 64);
    using row = random(1, 64);
    using packedOut = zeros([128, 1], { dtype: "uint8", device });
    using scalesOut = zeros([4], { device });
    using codesOut = zeros([4, 64], { dtype: "uint8", device });
    using y = zeros([4, 64], { device });
    using product = zeros([4, 4], { device });
    using vector = zeros([1, 4], { device });
    const cases: Record<string, () => { dispose(): void }[]> = {
      "quantize4bit out": () => [quantize4bit(x, { out: packedOut })[1]],
      "quantize4bit absmax": () => quantize4bit(x, { absmax: scalesOut }),
      "quantize4bit nested": () => quantize4bit(x, { out: packedOut, compressStatistics: true }).slice(1),
      "quantizeBlockwise out": () => [quantizeBlockwise(x, { blocksize: 64, out: codesOut })[1]],
      "quantizeBlockwise absmax": () => quantizeBlockwise(x, { blocksize: 64, absmax: scalesOut }),
      "quantizeBlockwise nested": () => quantizeBlockwise(x, { blocksize: 64, out: codesOut, nested: true }).slice(1),
    };
    for (const [name, fn] of Object.entries(cases)) expect(left(fn), name).toBe(0);

    const [packed, state] = quantize4bit(x, { compressStatistics: true });
    const [codes, state8] = quantizeBlockwise(x, { blocksize: 64, nested: true });
    const decoded: Record<string, () => unknown> = {
      dequantize4bit: () => expect(dequantize4bit(packed, { quantState: state, out: y })).toBe(y),
      "dequantize4bit absmax": () => dequantize4bit(packedOut, { absmax: scalesOut, out: y }),
      dequantizeBlockwise: () => expect(dequantizeBlockwise(codes, { quantState: state8, out: y })).toBe(y),
      "dequantizeBlockwise absmax": () => dequantizeBlockwise(codes, { absmax: scalesOut, blocksize: 64, out: y }),
      matmul4bit: () => expect(noGrad(() => matmul4bit(x, packed, state, { out: product }))).toBe(product),
      gemv4bit: () => expect(gemv4bit(row, packed, state, { out: vector })).toBe(vector),
      "a failing matmul4bit": () => expect(() => matmul4bit(y, packed, state, { out: y })).toThrow("linear4bitInto"),
      "a failing dequantize4bit": () =>
        expect(() => dequantize4bit(packed, { quantState: state, out: row })).toThrow("dequantize4bit: out"),
      "a failing dequantizeBlockwise": () =>
        expect(() => dequantizeBlockwise(codes, { absmax: row, out: y })).toThrow("absmax must have 1 elements"),
    };
    for (const fn of Object.values(decoded)) fn(); // the states make their scales and code once
    for (const [name, fn] of Object.entries(decoded)) {
      const none = (): [] => {
        fn();
        return [];
      };
      expect(left(none), name).toBe(0);
    }
    for (const owner of [packed, state, codes, state8]) owner.dispose();
  });

  it("gives the whole state back, with what was made for it later", () => {
    using x = random(4, 64);
    for (const nested of [false, true]) {
      const made = (): { dispose(): void }[] => {
        const [packed, state] = quantize4bit(x, { compressStatistics: nested });
        const [codes, state8] = quantizeBlockwise(x, { nested });
        const weight = state.quantized(packed);
        const values = [expandAbsmax(state), expandAbsmax(state8), dequantizeBlockwise(codes, { quantState: state8 })];
        return [packed, state, codes, state8, weight, state.code, ...values];
      };
      expect(left(made), `nested ${nested}`).toBe(0);
      expect(
        left(() => tidy(made)),
        `in a tidy, nested ${nested}`,
      ).toBe(0);
      expect(
        left(() => {
          tidy(() => void made());
          return [];
        }),
        `dropped by a tidy, nested ${nested}`,
      ).toBe(0);
    }
  });

  it("a state that was disposed says so, also when its native scales exist", () => {
    using x = random(4, 64);
    const [packed, state] = quantize4bit(x);
    const [codes, state8] = quantizeBlockwise(x);
    state.quantized(packed).dispose();
    dequantizeBlockwise(codes, { quantState: state8 }).dispose();
    state.dispose();
    state8.dispose();
    expect(() => state.quantized(packed)).toThrow("absmax was disposed");
    expect(() => dequantizeBlockwise(codes, { quantState: state8 })).toThrow("was disposed");
    packed.dispose();
    codes.dispose();
  });

  it("the native weight outlives the state and the packed codes it was made from", () => {
    using x = random(4, 64);
    const [packed, state] = quantize4bit(x, { quantType: "nf4", compressStatistics: true });
    const expected = dequantize4bit(packed, { quantState: state });
    const weight = state.quantized(packed);
    state.dispose();
    packed.dispose();
    using other = random(64, 64); // would take the memory that was freed
    using identity = tensor(
      Array.from({ length: 64 }, (_, i) => Array.from({ length: 64 }, (_, j) => Number(i === j))),
      { device },
    );
    using y = noGrad(() => tidy(() => linear4bit(identity, weight)));
    using columns = expected.transpose(0, 1);
    expect(y.floatsSync()).toEqual(columns.floatsSync());
    expect(other.size).toBe(4096);
    weight.dispose();
    expected.dispose();
  });

  it("the layer owns the parts of its packed state: they live while it does, in whatever tidy they were asked for", () => {
    const before = memory().tensors;
    const layer = tidy(() => new Linear4bit(64, 8, { quantType: "nf4", bias: false, device }));
    layer.weight.quantize();
    const names = tidy(() => [...layer.stateDict().keys()]);
    expect(names).toEqual([
      "weight",
      "weight.absmax",
      "weight.quant_map",
      "weight.nested_absmax",
      "weight.nested_quant_map",
      "weight.quant_state.bitsandbytes__nf4",
    ]);
    const held = memory().tensors;
    const again = tidy(() => [...layer.stateDict().values()]);
    expect(memory().tensors).toBe(held);
    for (const part of again) expect(part.disposed).toBe(false);
    const json = Buffer.from(again[5]?.dataSync() as Uint8Array).toString();
    expect(JSON.parse(json)).toMatchObject({ quant_type: "nf4", shape: [8, 64] });
    layer.dispose();
    for (const part of again) expect(part.disposed).toBe(true);
    expect(memory().tensors).toBe(before);
  });

  it("every op that writes to an existing tensor raises its version by one", () => {
    const cases: Record<string, () => [written: Tensor[], fn: () => unknown]> = {
      copyInto() {
        const dst = zeros([4], { device });
        return [[dst], () => copyInto(dst, zeros([2], { device }))];
      },
      kvAppend() {
        const pages = () => tensor(new Int8Array(128), { shape: [1, 1, 16, 8], device });
        const scales = () => zeros([1, 1, 16], { device });
        const layer = { keys: pages(), values: pages(), keyScales: scales(), valueScales: scales() };
        const [q, k, v] = [random(2, 2, 8), random(2, 1, 8), random(2, 1, 8)];
        const slots = tensor([3, -1], { dtype: "int32", device });
        return [Object.values(layer), () => kvAppend(q, k, v, layer, slots, null)];
      },
      embeddingRenorm() {
        const weight = random(4, 8);
        return [[weight], () => embeddingRenorm(tensor([1], { dtype: "int32", device }), weight, 0.1)];
      },
      quantize4bit() {
        const out = zeros([128, 1], { dtype: "uint8", device });
        const absmax = zeros([4], { device });
        return [[out, absmax], () => quantize4bit(random(4, 64), { out, absmax })];
      },
      dequantize4bit() {
        const [packed, quantState] = quantize4bit(random(4, 64));
        const out = zeros([4, 64], { device });
        return [[out], () => dequantize4bit(packed, { quantState, out })];
      },
      quantizeBlockwise() {
        const out = zeros([4, 64], { dtype: "uint8", device });
        const absmax = zeros([4], { device });
        return [[out, absmax], () => quantizeBlockwise(random(4, 64), { blocksize: 64, out, absmax })];
      },
      dequantizeBlockwise() {
        const [codes, quantState] = quantizeBlockwise(random(4, 64));
        const out = zeros([4, 64], { device });
        return [[out], () => dequantizeBlockwise(codes, { quantState, out })];
      },
      matmul4bit() {
        const [packed, state] = quantize4bit(random(4, 64));
        const out = zeros([2, 4], { device });
        return [[out], () => noGrad(() => matmul4bit(random(2, 64), packed, state, { out }))];
      },
      clipGradNorm() {
        const [p] = withGradient();
        return [[p.grad as Tensor], () => clipGradNorm(p, 0.01)];
      },
      clipGradValue() {
        const [p] = withGradient();
        return [[p.grad as Tensor], () => clipGradValue(p, 0.01)];
      },
      "an optimizer's step"() {
        const [p] = withGradient();
        const optimizer = new SGD([p], { lr: 0.1, momentum: 0.9 });
        return [[p], () => optimizer.step()];
      },
      loadStateDict() {
        const layer = new Linear4bit(64, 8, { bias: true, device });
        const other = new Linear4bit(64, 8, { bias: true, device });
        return [[layer.bias as Tensor], () => layer.loadStateDict(other.stateDict())];
      },
    };
    const withGradient = (): [Tensor] => {
      const p = random(8);
      p.requiresGrad = true;
      sum(p).backward();
      return [p];
    };
    for (const [name, prepare] of Object.entries(cases)) {
      const [written, fn] = prepare();
      const before = written.map((t) => t.version);
      const seen = written.map((t) => t.detach());
      fn();
      expect(
        written.map((t) => t.version),
        name,
      ).toEqual(before.map((version) => version + 1));
      // Other tensors on the handle see it, too.
      expect(
        seen.map((t) => t.version),
        name,
      ).toEqual(written.map((t) => t.version));
    }
  });
});
