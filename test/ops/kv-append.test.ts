// kvAppend against rope and a copy, row by row.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { reshape, slice, tensor, zeros } from "../../src/index.js";
import { kvAppend } from "../../src/ops/kv-append.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { noise } from "../helpers/noise.js";
import type { FloatDType } from "../helpers/tolerance.js";
import { tolerance } from "../helpers/tolerance.js";
import { ropeReference, ropeTables } from "../reference/rope.js";

const dtypes = ["float32", "float16", "bfloat16"] as const;
const [tokens, heads, kvHeads, pages] = [5, 4, 2, 3];
const slots = [33, -1, 16, 7, 47];
const positions = [17, 0, 4, 9, 2];

describe.each(testDevices())("kvAppend on %s", (device) => {
  const int = (values: number[]): Tensor => tensor(values, { dtype: "int32", device });
  function parts(dim: number, pairs: number, dtype: FloatDType) {
    const make = (h: number, seed: number): Tensor =>
      tensor(noise(tokens * h * dim, seed), { shape: [tokens, h, dim], dtype, device });
    const { cos, sin } = ropeTables(20, pairs);
    const table = (x: Float32Array): Tensor => tensor(x, { shape: [20, pairs], device });
    const rotary = { cos: table(cos), sin: table(sin), positions: int(positions) };
    return { q: make(heads, 1), k: make(kvHeads, 2), v: make(kvHeads, 3), rotary, cos, sin };
  }
  const turned = (x: Tensor, cos: Float32Array, sin: Float32Array): Float64Array => {
    const shape = [1, x.shape[0]!, x.shape[1]!, x.shape[2]!] as const;
    return ropeReference(x.floatsSync(), shape, cos, sin, positions, cos.length / 20);
  };

  /** Rows [tokens, kvHeads, dim] at the slots of pages that were `before` elsewhere. */
  function expected(rows: ArrayLike<number>, dim: number, before: number): number[] {
    const all = Array<number>(pages * kvHeads * 16 * dim).fill(before);
    slots.forEach((slot, t) => {
      if (slot < 0) return;
      for (let h = 0; h < kvHeads; h++)
        for (let d = 0; d < dim; d++) {
          const row = (Math.floor(slot / 16) * kvHeads + h) * 16 + (slot % 16);
          all[row * dim + d] = rows[(t * kvHeads + h) * dim + d]!;
        }
    });
    return all;
  }

  it.each(dtypes)("values: %s, into pages of each dtype, with heads that turn in part", (dtype) => {
    for (const pageType of dtypes)
      for (const [dim, pairs] of [
        [16, 8],
        [20, 6],
        [7, 2],
        [64, 32],
        [128, 16],
      ] as const) {
        const { q, k, v, rotary, cos, sin } = parts(dim, pairs, dtype);
        const layer = {
          keys: zeros([pages, kvHeads, 16, dim], { dtype: pageType, device }),
          values: zeros([pages, kvHeads, 16, dim], { dtype: pageType, device }),
        };
        const y = kvAppend(q, k, v, layer, int(slots), rotary);
        expect([y.dtype, y.shape]).toEqual([dtype, q.shape]);
        expectClose(y.floatsSync(), turned(q, cos, sin), tolerance(dtype));
        expectClose(layer.keys.floatsSync(), expected(turned(k, cos, sin), dim, 0), tolerance(pageType));
        expectClose(layer.values.floatsSync(), expected(v.floatsSync(), dim, 0), tolerance(pageType));
      }
  });

  it("without rotary nothing turns", () => {
    const { q, k, v } = parts(12, 6, "float32");
    const layer = { keys: zeros([pages, 2, 16, 12], { device }), values: zeros([pages, 2, 16, 12], { device }) };
    expect(kvAppend(q, k, v, layer, int(slots), null).floatsSync()).toEqual(q.floatsSync());
    expect([...layer.keys.floatsSync()]).toEqual(expected(k.floatsSync(), 12, 0));
    expect([...layer.values.floatsSync()]).toEqual(expected(v.floatsSync(), 12, 0));
  });

  it.each(dtypes)("int8 pages take codes and a scale a head, from %s", (dtype) => {
    for (const dim of [7, 64, 80]) {
      const { q, k, v } = parts(dim, 0, dtype);
      const codes = (): Tensor => tensor(new Int8Array(pages * 2 * 16 * dim), { shape: [pages, 2, 16, dim], device });
      const scales = (): Tensor => zeros([pages, 2, 16], { device });
      const layer = { keys: codes(), values: codes(), keyScales: scales(), valueScales: scales() };
      kvAppend(q, k, v, layer, int(slots), null);
      for (const [x, to, by] of [
        [k, layer.keys, layer.keyScales],
        [v, layer.values, layer.valueScales],
      ] as const) {
        const data = x.floatsSync();
        const rows = Array.from({ length: tokens * kvHeads }, (_, i) => data.subarray(i * dim, (i + 1) * dim));
        const absmax = rows.map((row) => Math.max(...row.map(Math.abs)));
        const exact = rows.flatMap((row, i) => [...row].map((value) => (value * 127) / absmax[i]!));
        expectClose(
          by.floatsSync(),
          expected(
            absmax.map((m) => m / 127),
            1,
            0,
          ),
          { atol: 0, rtol: 2e-7 },
        );
        // Half a step, and what float32 makes of a value that lies between two.
        expectClose(to.floatsSync(), expected(exact, dim, 0), { atol: 0.5001, rtol: 0 });
        expect(to.floatsSync().every(Number.isInteger)).toBe(true);
      }
    }
  });

  it("int8: zeros stay zeros, and a head that is not finite becomes NaN", () => {
    const k = tensor([0, 0, 1, -2, Number.NaN, 1, Infinity, 1], { shape: [4, 1, 2], device });
    const codes = (): Tensor => tensor(new Int8Array(32), { shape: [1, 1, 16, 2], device });
    const scales = (): Tensor => zeros([1, 1, 16], { device });
    const layer = { keys: codes(), values: codes(), keyScales: scales(), valueScales: scales() };
    kvAppend(k, k, k, layer, int([0, 1, 2, 3]), null);
    expectClose(layer.keyScales.floatsSync().subarray(0, 5), [0, 2 / 127, Number.NaN, Number.NaN, 0]);
    expect([...layer.keys.floatsSync().subarray(0, 4)]).toEqual([0, 0, 64, -127]);
  });

  it("shapes: no tokens", () => {
    const none = (h: number): Tensor => zeros([0, h, 8], { device });
    const layer = { keys: zeros([1, 2, 16, 8], { device }), values: zeros([1, 2, 16, 8], { device }) };
    expect(kvAppend(none(4), none(2), none(2), layer, int([]), null).shape).toEqual([0, 4, 8]);
  });

  it("errors", async () => {
    const { q, k, v, rotary } = parts(8, 4, "float32");
    const layer = { keys: zeros([pages, 2, 16, 8], { device }), values: zeros([pages, 2, 16, 8], { device }) };
    const codes = tensor(new Int8Array(pages * 256), { shape: [pages, 2, 16, 8], device });
    expect(() => kvAppend(q, q, v, layer, int(slots), null)).toThrow(
      "kvAppend: k must have shape [5, 2, 8], got [5, 4, 8]",
    );
    expect(() => kvAppend(q, k, v, layer, int([1, 2]), null)).toThrow("kvAppend: slots must have shape [5], got [2]");
    expect(() => kvAppend(q, k, v, { keys: codes, values: codes }, int(slots), null)).toThrow(
      "kvAppend: keyScales must be given for int8 pages",
    );
    expect(() => kvAppend(q, k, v, { keys: layer.keys, values: layer.keys }, int(slots), null)).toThrow(
      "kvAppend: keys must not share memory with values",
    );
    const rows = reshape(slice(reshape(layer.keys, [pages * 256]), 0, 0, k.size), k.shape);
    expect(() => kvAppend(q, rows, v, layer, int(slots), null)).toThrow(
      "kvAppend: keys and values must not share memory with q, k or v",
    );
    expect(() => kvAppend(q, k, v, layer, int(slots), { ...rotary, positions: int([1]) })).toThrow(
      "kvAppend: positions must have shape [5], got [1]",
    );
    const wide = zeros([20, 5], { device });
    expect(() => kvAppend(q, k, v, layer, int(slots), { ...rotary, cos: wide, sin: wide })).toThrow(
      "kvAppend: cos and sin must have the shape [positions, at most 4], got [20, 5] and [20, 5]",
    );
    await expect(kvAppend(q, k, v, layer, int([0, 1, 2, 48, 3]), null).data()).rejects.toThrow(
      "index 48 is out of range, it must be in [0, 48)",
    );
    const far = { ...rotary, positions: int([0, 1, 20, 2, 3]) };
    await expect(kvAppend(q, k, v, layer, int(slots), far).data()).rejects.toThrow(
      "index 20 is out of range, it must be in [0, 20)",
    );
    k.requiresGrad = true;
    expect(() => kvAppend(q, k, v, layer, int(slots), null)).toThrow(
      "kvAppend: no gradient goes through pages, call it inside noGrad",
    );
  });
});
