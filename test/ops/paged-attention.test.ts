// pagedAttention against attention in float64, one sequence at a time.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { tensor, zeros } from "../../src/index.js";
import type { PagedAttentionOptions, PageTable } from "../../src/ops/paged-attention.js";
import { pagedAttention } from "../../src/ops/paged-attention.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { noise } from "../helpers/noise.js";
import type { PageType, SequenceSizes } from "../helpers/pages.js";
import { pagedLayer } from "../helpers/pages.js";
import type { FloatDType } from "../helpers/tolerance.js";
import { tolerance } from "../helpers/tolerance.js";
import { attentionReference } from "../reference/attention.js";

interface Sizes {
  heads: number;
  kvHeads: number;
  dim: number;
}
const base: Sizes = { heads: 4, kvHeads: 2, dim: 16 };
const seq = (...pairs: [keys: number, rows: number][]): SequenceSizes[] =>
  pairs.map(([keys, rows]) => ({ keys, rows }));

describe.each(testDevices())("pagedAttention on %s", (device) => {
  function inputs(sequences: SequenceSizes[], sizes: Sizes, spare: number, dtype: FloatDType, pageType: PageType) {
    const rows = sequences.reduce((sum, s) => sum + s.rows, 0);
    const shape = [rows + spare, sizes.heads, sizes.dim];
    const q = tensor(noise((rows + spare) * sizes.heads * sizes.dim, 7), { shape, dtype, device });
    return { q, ...pagedLayer(sequences, sizes, pageType, device) };
  }

  function check(
    sequences: SequenceSizes[],
    sizes: Sizes = base,
    options: PagedAttentionOptions = {},
    how: { spare?: number; dtype?: FloatDType; pageType?: PageType } = {},
  ): void {
    const { spare = 0, dtype = "float32" } = how;
    const { q, layer, table, keys, values } = inputs(sequences, sizes, spare, dtype, how.pageType ?? dtype);
    const y = pagedAttention(q, layer, table, options);
    expect([y.dtype, y.shape]).toEqual([dtype, q.shape]);
    const { sinks, ...rest } = options;
    const row = sizes.heads * sizes.dim;
    let at = 0;
    const expected = sequences.flatMap((s, i) => {
      const part = q.floatsSync().subarray(at * row, (at + s.rows) * row);
      at += s.rows;
      const problem = { batch: 1, queries: s.rows, keys: s.keys, ...sizes, ...rest };
      return [
        ...attentionReference(part, keys[i]!, values[i]!, sinks ? { ...problem, sinks: sinks.floatsSync() } : problem),
      ];
    });
    expectClose(y.floatsSync(), [...expected, ...Array<number>(spare * row).fill(0)], tolerance(dtype, "reduction"));
    for (const t of [q, layer.keys, layer.values, y]) t.dispose();
  }

  describe("values", () => {
    it("decodes ragged sequences", () => {
      check(seq([1, 1]));
      check(seq([5, 1], [16, 1], [17, 1], [40, 1]));
    });

    it("takes chunks of prompts, whole ones too", () => {
      check(seq([20, 20]));
      check(seq([50, 13]));
      check(seq([70, 40], [33, 33]));
    });

    it("takes rows of both kinds, sequences without rows, and spare rows", () => {
      check(seq([9, 1], [37, 20], [64, 1], [12, 0], [3, 3], [100, 2]), base, {}, { spare: 5 });
      check(seq([9, 0], [12, 0]), base, {}, { spare: 3 });
    });

    it("groups of heads share keys", () => {
      for (const [heads, kvHeads] of [
        [1, 1],
        [6, 6],
        [6, 3],
        [7, 1],
        [20, 1],
      ] as const)
        check(seq([20, 1], [18, 3], [35, 12]), { heads, kvHeads, dim: 8 });
    });

    it.each([1, 7, 32, 64, 80, 96, 128, 256])("heads of %s", (dim) => {
      check(seq([21, 1], [18, 14]), { ...base, dim });
    });

    it("sequences over several ranges of keys", () => {
      check(seq([700, 1], [1100, 2]), { heads: 4, kvHeads: 2, dim: 8 });
      check(seq([600, 30]), { heads: 4, kvHeads: 1, dim: 8 });
    });

    it("takes a scale, a window, a softcap and sinks", () => {
      const sequences = seq([9, 1], [60, 30], [90, 2], [4, 4]);
      const sinks = tensor([0.5, -1, 2, 0], { device });
      check(sequences, base, { scale: 0.7 });
      for (const window of [1, 5, 16, 33]) check(sequences, base, { window });
      check(sequences, base, { softcap: 1.5 });
      check(sequences, base, { sinks });
      check(sequences, base, { scale: 2, window: 20, softcap: 3, sinks }, { spare: 1 });
      check(seq([1200, 1], [700, 20]), { heads: 4, kvHeads: 1, dim: 8 }, { window: 600, sinks });
    });
  });

  it.each(["float32", "float16", "bfloat16"] as const)("dtypes: %s over pages of each dtype", (dtype) => {
    for (const pageType of ["float32", "float16", "bfloat16", "int8"] as const) {
      check(seq([40, 1], [30, 20]), { ...base, dim: 64 }, {}, { dtype, pageType });
      check(seq([35, 1], [30, 9]), { ...base, dim: 20 }, { window: 18, softcap: 4 }, { dtype, pageType });
    }
    check(seq([600, 1]), { heads: 4, kvHeads: 1, dim: 16 }, {}, { dtype, pageType: "int8" });
  });

  describe.each(["float16", "bfloat16"] as const)("%s over its own pages", (dtype) => {
    it.each([8, 64, 72, 128, 256])("heads of %s, decoding and with chunks", (dim) => {
      const sizes = { ...base, dim };
      check(seq([1, 1], [70, 1], [16, 1]), sizes, {}, { dtype });
      check(seq([70, 1], [50, 30], [9, 9]), sizes, {}, { dtype });
    });

    it("groups of heads, spare rows, sequences without rows", () => {
      for (const [heads, kvHeads] of [
        [2, 2],
        [16, 1],
        [20, 1],
        [14, 2],
      ] as const) {
        check(seq([40, 1], [9, 0], [3, 1]), { heads, kvHeads, dim: 16 }, {}, { dtype, spare: 1 });
        check(seq([40, 20], [9, 0], [33, 2]), { heads, kvHeads, dim: 16 }, {}, { dtype, spare: 3 });
      }
      check(Array(40).fill({ keys: 5, rows: 1 }), { heads: 2, kvHeads: 1, dim: 8 }, {}, { dtype, spare: 2 });
    });

    it("keys over several blocks, a window, a softcap and sinks", () => {
      const sinks = tensor([0.5, -1, 2, 0], { device });
      for (const options of [{}, { window: 70 }, { softcap: 2 }, { sinks }, { window: 100, softcap: 5, sinks }]) {
        check(seq([300, 1], [90, 1]), { ...base, dim: 64 }, options, { dtype });
        check(seq([200, 70], [90, 1]), { ...base, dim: 64 }, options, { dtype });
      }
    });

    it("gives the same bits every time", () => {
      const { q, layer, table } = inputs(seq([400, 1], [90, 1]), { ...base, dim: 64 }, 0, dtype, dtype);
      const run = (): Float32Array => pagedAttention(q, layer, table).floatsSync();
      expect(run()).toEqual(run());
    });
  });

  it("reads no page before the window", () => {
    for (const dtype of ["float32", "float16"] as const) {
      const { q, layer, table } = inputs(seq([100, 1], [90, 2]), base, 0, dtype, dtype);
      const pages = [...table.pages.floatsSync()];
      const expected = pagedAttention(q, layer, table, { window: 20 }).floatsSync();
      const most = pages.length / 2;
      // Positions 80 to 99 and 69 to 89 are seen.
      pages.fill(-1, 0, 5);
      pages.fill(-1, most, most + 4);
      const cut = { ...table, pages: tensor(pages, { shape: [2, most], dtype: "int32", device }) };
      expect(pagedAttention(q, layer, cut, { window: 20 }).floatsSync()).toEqual(expected);
    }
  });

  it("gives the same alone and beside others: on a CPU to the bit, on a GPU the keys are cut elsewhere", () => {
    const together = inputs(seq([530, 1], [37, 20], [600, 2]), base, 0, "float32", "float32");
    const y = pagedAttention(together.q, together.layer, together.table).floatsSync();
    const [starts, lengths, pages] = (["starts", "lengths", "pages"] as const).map((name) =>
      together.table[name].floatsSync(),
    );
    const row = base.heads * base.dim;
    const int = (values: ArrayLike<number>, shape: number[]): Tensor =>
      tensor(Int32Array.from(values), { shape, device });
    for (let s = 0; s < 3; s++) {
      const [from, to] = [starts![s]!, starts![s + 1]!];
      const q = tensor(together.q.floatsSync().subarray(from * row, to * row), {
        shape: [to - from, base.heads, base.dim],
        device,
      });
      const most = pages!.length / 3;
      const table = {
        starts: int([0, to - from], [2]),
        lengths: int([lengths![s]!], [1]),
        pages: int(pages!.subarray(s * most, (s + 1) * most), [1, most]),
      };
      const alone = pagedAttention(q, together.layer, table).floatsSync();
      const beside = y.subarray(from * row, to * row);
      expectClose(alone, beside, device === "cpu" ? tolerance("float32", "exact") : tolerance("float32", "reduction"));
    }
  });

  it("shapes: no rows, no sequences, no pages", () => {
    const { q, layer, table } = inputs(seq([3, 3]), base, 0, "float32", "float32");
    const int = (values: number[], shape: number[]): Tensor => tensor(values, { shape, dtype: "int32", device });
    expect(pagedAttention(zeros([0, 4, 16], { device }), layer, { ...table, starts: int([0, 0], [2]) }).shape).toEqual([
      0, 4, 16,
    ]);
    const nothing = { starts: int([0], [1]), lengths: int([], [0]), pages: int([], [0, 2]) };
    expect([...pagedAttention(q, layer, nothing).floatsSync()]).toEqual(Array(q.size).fill(0));
    const empty = { keys: zeros([0, 2, 16, 16], { device }), values: zeros([0, 2, 16, 16], { device }) };
    const idle = { starts: int([0, 0], [2]), lengths: int([0], [1]), pages: int([], [1, 0]) };
    expect([...pagedAttention(q, empty, idle).floatsSync()]).toEqual(Array(q.size).fill(0));
  });

  describe("errors", () => {
    const make = () => inputs(seq([20, 2], [30, 1]), base, 0, "float32", "float32");
    const int = (values: number[], shape = [values.length]): Tensor =>
      tensor(values, { shape, dtype: "int32", device });

    it("says what does not fit", () => {
      const { q, layer, table } = make();
      const call = (part: object, options = {}): unknown =>
        pagedAttention(q, { ...layer, ...part }, { ...table, ...part } as PageTable, options);
      expect(() => pagedAttention(zeros([3, 64], { device }), layer, table)).toThrow(
        "pagedAttention: q must have three axes [tokens, heads, dim], got [3, 64]",
      );
      expect(() => call({ keys: zeros([9, 2, 8, 16], { device }) })).toThrow(
        "pagedAttention: keys must have the shape [pages, kvHeads, 16, 16], got [9, 2, 8, 16]",
      );
      expect(() =>
        call({ keys: zeros([9, 3, 16, 16], { device }), values: zeros([9, 3, 16, 16], { device }) }),
      ).toThrow("pagedAttention: the heads of q (4) must be a multiple of those of keys (3)");
      expect(() => call({ starts: int([0, 2]) })).toThrow("pagedAttention: starts must have shape [3], got [2]");
      expect(() => call({ lengths: tensor([1, 2], { device }) })).toThrow(
        "pagedAttention: lengths must be int32, got float32",
      );
      expect(() => call({ keyScales: zeros([1], { device }) })).toThrow(
        "pagedAttention: keyScales go with int8 pages only, got pages of float32",
      );
      expect(() => call({}, { window: 0 })).toThrow("pagedAttention: window must be an integer of at least 1, got 0");
      expect(() => call({}, { softcap: 0 })).toThrow("pagedAttention: softcap must be a finite number above 0, got 0");
      expect(() => call({}, { sinks: zeros([3], { device }) })).toThrow(
        "pagedAttention: sinks must have shape [4], got [3]",
      );
      q.requiresGrad = true;
      expect(() => call({})).toThrow("pagedAttention: no gradient goes through pages, call it inside noGrad");
    });

    it.each(["float32", "float16"] as const)("reports a plan that makes no sense, %s", (dtype) => {
      const { q, layer, table } = inputs(seq([20, 2], [30, 1]), base, 0, dtype, dtype);
      const pages = table.pages.floatsSync();
      const most = pages.length / 2;
      const say = (part: Partial<PageTable>, message: string): void => {
        const y = pagedAttention(q, layer, { ...table, ...part });
        expect(() => y.floatsSync()).toThrow(`${device === "cpu" ? "paged_attention: " : ""}index ${message}`);
      };
      say({ starts: int([0, 2, 4]) }, "4 is out of range, it must be in [0, 4)");
      say({ starts: int([0, -1, 3]) }, "-1 is out of range, it must be in [0, 4)");
      say({ lengths: int([1, 30]) }, `1 is out of range, it must be in [2, ${most * 16 + 1})`.replace("[2", "[0"));
      say({ lengths: int([20, 900]) }, `900 is out of range, it must be in [0, ${most * 16 + 1})`);
      const wrong = [...pages];
      wrong[1] = 99;
      say({ pages: int(wrong, [2, most]) }, `99 is out of range, it must be in [0, ${layer.keys.shape[0]})`);
    });
  });
});
