// Draws of many rows, each in its own way: against their definition in float64, which is held to transformers' processors
// and warpers, and against sampleToken of each row alone.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { SamplingRows } from "../../src/ops/index.js";
import { sampleToken, sampleTokens } from "../../src/ops/index.js";
import { tensor, zeros } from "../../src/tensor/create.js";
import type { DType } from "../../src/tensor/dtype.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { normals } from "../helpers/random.js";
import { fixturePath, readSafetensors, toNumbers } from "../helpers/safetensors.js";
import type { Sampling } from "../reference/sample-token.js";
import { distribution, draw, uniformOf } from "../reference/sample-token.js";
import { adjust, logSoftmax } from "../reference/sample-tokens.js";

interface Row extends Sampling {
  repetition?: number;
  presence?: number;
  frequency?: number;
  seed?: number;
  step?: number;
}

/** Parameters are float32: what the definition is given must be, too. */
const inFloat32 = (row: Row): Row =>
  Object.fromEntries(Object.entries(row).map(([key, value]) => [key, key === "seed" ? value : Math.fround(value)]));

function rowsOf(device: string, rows: readonly Row[]): SamplingRows {
  const floats = (value: (row: Row) => number) => tensor(Float32Array.from(rows, value), { device });
  const ints = (values: number[], shape: number[]) => tensor(Int32Array.from(values), { shape, device });
  const n = rows.length;
  return {
    temperature: floats(({ temperature = 0 }) => temperature),
    topP: floats(({ topP = 1 }) => topP),
    minP: floats(({ minP = 0 }) => minP),
    typicalP: floats(({ typicalP = 1 }) => typicalP),
    repetition: floats(({ repetition = 1 }) => repetition),
    presence: floats(({ presence = 0 }) => presence),
    frequency: floats(({ frequency = 0 }) => frequency),
    topK: ints(
      rows.map(({ topK = 0 }) => topK),
      [n],
    ),
    seed: ints(
      rows.flatMap(({ seed = 0 }) => [seed % 2 ** 32, Math.floor(seed / 2 ** 32)]),
      [n, 2],
    ),
    step: ints(
      rows.map(({ step = 0 }) => step),
      [n],
    ),
  };
}

const cases: Row[] = [
  { temperature: 1 },
  { temperature: 0 },
  { temperature: 0.7, topK: 5 },
  { temperature: 1.3, topP: 0.8 },
  { temperature: 1, minP: 0.2 },
  { temperature: 1, typicalP: 0.4 },
  { temperature: 0.9, topK: 30, topP: 0.9, minP: 0.05, typicalP: 0.9 },
  { temperature: 2, minP: 1 },
  { temperature: 1.5, typicalP: 0.01 },
  { temperature: 1.1, topP: 0.6, typicalP: 0.7 },
];

describe("the definition", () => {
  const json = JSON.parse(readFileSync(fixturePath("generation/expected.json"), "utf8"));
  const tensors = readSafetensors("generation/expected.safetensors");
  const logits = [...toNumbers(tensors.get("logits")!)];
  const inputs = [...toNumbers(tensors.get("input_ids")!)];
  const vocab = 96;
  const row = <T>(list: readonly T[], r: number, n: number) => list.slice(r * n, (r + 1) * n);
  const options = (name: string): Sampling & { repetition?: number } => {
    const config = json.warpers[name].config ?? Object.fromEntries([name.split("-").slice(0, 2)]);
    const names = {
      top_k: "topK",
      top_p: "topP",
      min_p: "minP",
      typical_p: "typicalP",
      repetition_penalty: "repetition",
    };
    return Object.fromEntries(
      Object.entries(config).map(([key, value]) => [names[key as keyof typeof names] ?? key, Number(value)]),
    );
  };
  const known = Object.keys(json.warpers).filter((name) => !/cutoff/.test(name));

  it.each(known)("gives transformers' probabilities: %s", (name) => {
    const want = [...toNumbers(tensors.get(`${name}.probabilities`)!)];
    const { repetition = 1, ...sampling } = options(name);
    for (let r = 0; r < 5; r++) {
      const adjusted = adjust(row(logits, r, vocab), { repetition, prompt: new Set(row(inputs, r, 6)) });
      const got = new Array<number>(vocab).fill(0);
      for (const { token, probability } of distribution(adjusted, sampling)) got[token] = probability;
      const cut = json.warpers[name].rows_with_a_tie_cut_apart.includes(r);
      const ordered = (list: number[]) => (cut ? [...list].sort((a, b) => a - b) : list);
      expectClose(ordered(got), ordered(row(want, r, vocab)), { atol: 1e-6, rtol: 0 });
    }
  });
});

describe.each(testDevices())("sampleTokens on %s", (device) => {
  const make = (values: ArrayLike<number>, shape: number[], dtype: DType = "float32") =>
    tensor(Float32Array.from(values), { shape, dtype, device });

  describe("values", () => {
    it.each([["float32"], ["float16"], ["bfloat16"]] as const)("draws each row in its way: %s", async (dtype) => {
      const vocab = 150;
      const rows = cases.flatMap((row, i) =>
        [0, 1, 2].map((j) => inFloat32({ ...row, seed: 2 ** 40 + i, step: 7 + j })),
      );
      const logits = make(normals(rows.length * vocab, 3, 2.5), [rows.length, vocab], dtype);
      const values = await logits.floats();
      const { ids } = sampleTokens(logits, rowsOf(device, rows));
      const drawn = await ids.data();
      let close = 0;
      rows.forEach((row, r) => {
        const mine = [...values.subarray(r * vocab, (r + 1) * vocab)];
        if (row.temperature === 0) {
          expect(drawn[r], `row ${r}`).toBe(mine.indexOf(Math.max(...mine)));
          return;
        }
        const wanted = draw(mine, row, uniformOf(row.seed as number, row.step as number, 0));
        if (wanted.closest < 1e-5) close++;
        else expect(drawn[r], `row ${r}: ${JSON.stringify(row)}`).toBe(wanted.token);
      });
      expect(close).toBeLessThan(3);
    });

    it("draws what sampleToken does of each row alone, and keeps equal logits together", async () => {
      const vocab = 5000; // two parts of a GPU's rows
      const x = normals(4 * vocab, 5, 1).map((v) => Math.round(2 * v) / 2);
      const options = { temperature: 0.5, topK: 40, topP: 0.5, seed: 12, step: 34 };
      const { ids } = sampleTokens(make(x, [4, vocab]), rowsOf(device, new Array<Row>(4).fill(options)));
      const drawn = [...(await ids.data())];
      for (let r = 0; r < 4; r++) {
        const alone = sampleToken(make(x.subarray(r * vocab, (r + 1) * vocab), [1, vocab]), options);
        expect(drawn[r]).toBe(await alone.item());
      }
    });

    it("takes long rows apart as the CPU does, with every cut", async () => {
      const vocab = 9000;
      const x = normals(cases.length * vocab, 8, 3);
      const rows = cases.map((row, i) => ({ ...row, seed: i }));
      const there = sampleTokens(make(x, [rows.length, vocab]), rowsOf(device, rows));
      const here = sampleTokens(tensor(x, { shape: [rows.length, vocab], device: "cpu" }), rowsOf("cpu", rows));
      expect([...(await there.ids.data())]).toEqual([...(await here.ids.data())]);
    });

    it("tells log-probabilities of what was drawn and of the best, before temperature and cuts", async () => {
      const [rows, vocab] = [4, 70];
      const x = normals(rows * vocab, 9, 2).map((v) => Math.round(v * 4) / 4);
      const { ids, logprobs, bestIds, bestLogprobs } = sampleTokens(
        make(x, [rows, vocab]),
        rowsOf(device, new Array<Row>(rows).fill({ temperature: 1.5, topK: 30, seed: 3 })),
        { best: 20 },
      );
      const drawn = await ids.data();
      const wanted = Array.from({ length: rows }, (_, r) => logSoftmax([...x.subarray(r * vocab, (r + 1) * vocab)]));
      const order = wanted.map((row) => row.map((_, i) => i).sort((a, b) => row[b]! - row[a]! || a - b));
      expectClose(
        await logprobs!.floats(),
        wanted.map((row, r) => row[Number(drawn[r])]!),
        { atol: 2e-6, rtol: 0 },
      );
      expect([...(await bestIds!.data())]).toEqual(order.flatMap((list) => list.slice(0, 20)));
      const bests = wanted.flatMap((row, r) => order[r]!.slice(0, 20).map((i) => row[i]!));
      expectClose(await bestLogprobs!.floats(), bests, { atol: 2e-6, rtol: 0 });
    });

    it("applies penalties, biases and masks, and counts what it draws", async () => {
      const [rows, vocab, slots] = [4, 90, 6];
      const x = normals(rows * vocab, 10, 2);
      const generated = [
        new Map([[3, 2]]),
        new Map([[89, 1]]),
        new Map(),
        new Map([
          [1, 5],
          [40, 1],
        ]),
      ];
      const prompts = [new Set([5, 3]), new Set<number>(), new Set([0, 89]), new Set([7])];
      const slot = [4, -1, 0, 2];
      const table = new Int32Array(slots * vocab);
      slot.forEach((s, r) => {
        if (s < 0) return;
        for (const id of prompts[r]!) table[s * vocab + id] = 2 ** 30;
        for (const [id, times] of generated[r]!) table[s * vocab + id]! += times;
      });
      const options = [
        { repetition: 1.5 },
        { repetition: 2 },
        { repetition: 0.5, presence: 1 },
        { presence: 0.5, frequency: 0.25 },
      ];
      const bias = [
        [],
        [
          [4, 3],
          [4, 1.5],
        ],
        [[89, -2]],
        [
          [0, 1],
          [7, 2],
        ],
      ] as [number, number][][];
      const allowed = (r: number) => (id: number) => r !== 2 || id % 3 === 0;
      const words = Math.ceil(vocab / 32);
      const mask = new Int32Array(rows * words);
      for (let r = 0; r < rows; r++)
        for (let id = 0; id < vocab; id++) if (allowed(r)(id)) mask[r * words + (id >> 5)]! |= 1 << (id & 31);
      const counts = tensor(table, { shape: [slots, vocab], device });
      const result = sampleTokens(
        make(x, [rows, vocab]),
        {
          ...rowsOf(device, options),
          counts,
          slots: tensor(Int32Array.from(slot), { device }),
          bias: {
            offsets: tensor(Int32Array.of(0, 0, 2, 3, 5), { device }),
            ids: tensor(Int32Array.from(bias.flat().map(([id]) => id)), { device }),
            values: tensor(Float32Array.from(bias.flat().map(([, value]) => value)), { device }),
          },
          mask: tensor(mask, { shape: [rows, words], device }),
        },
        { best: 20 },
      );
      const drawn = [...(await result.ids.data())].map(Number);
      const logprobs = await result.bestLogprobs!.floats();
      for (let r = 0; r < rows; r++) {
        const seen = slot[r]! < 0 ? {} : { generated: generated[r]!, prompt: prompts[r]!, ...options[r]! };
        const wanted = adjust([...x.subarray(r * vocab, (r + 1) * vocab)], {
          ...seen,
          bias: bias[r]!,
          allowed: allowed(r),
        });
        expect(drawn[r]).toBe(wanted.indexOf(Math.max(...wanted)));
        const best = logSoftmax(wanted).sort((a, b) => b - a);
        expectClose(logprobs.subarray(r * 20, r * 20 + 20), best.slice(0, 20), { atol: 5e-6, rtol: 0 });
        if (slot[r]! >= 0) table[slot[r]! * vocab + drawn[r]!]! += 1;
      }
      expect([...(await counts.data())]).toEqual([...table]);
    });

    it("gives -1 where nothing can be drawn, and counts nothing then", async () => {
      const x = [0, NaN, 1, Infinity, 0, 0, 1, 2, 3, 1, 2, 3];
      const counts = zeros([4, 3], { dtype: "int32", device });
      const mask = tensor(Int32Array.of(7, 7, 0, 5), { shape: [4, 1], device });
      for (const temperature of [0, 1]) {
        const { ids, logprobs } = sampleTokens(make(x, [4, 3]), {
          ...rowsOf(device, new Array<Row>(4).fill({ temperature, topK: 1 })),
          counts,
          mask,
        });
        expect([...(await ids.data())]).toEqual([-1, -1, -1, 2]);
        expect(Number.isNaN((await logprobs!.floats())[2])).toBe(true);
      }
      expect([...(await counts.data())]).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    });

    it("takes numbers out of range for the nearest in range, NaN for no cut", async () => {
      const x = normals(8 * 40, 12, 2);
      const odd: Row[] = [
        { temperature: -1 },
        { temperature: NaN },
        { temperature: 1, topK: -5 },
        { temperature: 1, topK: 1000 },
        { temperature: 1, topP: -1 },
        { temperature: 1, topP: NaN, typicalP: NaN, minP: NaN },
        { temperature: 1, minP: 2 },
        { temperature: 1, typicalP: 5, topP: 3, minP: -1 },
      ];
      const plain: Row[] = [{}, {}, 1, 1, { temperature: 1, topK: 1 }, 1, { temperature: 1, topK: 1 }, 1].map((row) =>
        typeof row === "number" ? { temperature: row } : row,
      );
      const drawn = async (rows: Row[]) => [...(await sampleTokens(make(x, [8, 40]), rowsOf(device, rows)).ids.data())];
      expect(await drawn(odd)).toEqual(await drawn(plain));
    });
  });

  describe("shapes", () => {
    it("takes no rows, one token, and tells only what is wanted", async () => {
      const none = sampleTokens(make([], [0, 5]), rowsOf(device, []), { best: 2 });
      expect([none.ids.shape, none.logprobs!.shape, none.bestIds!.shape]).toEqual([[0], [0], [0, 2]]);
      const one = sampleTokens(make([2], [1, 1]), rowsOf(device, [{ temperature: 1, typicalP: 0.5 }]), { best: 3 });
      expect([...(await one.bestIds!.data())]).toEqual([0, -1, -1]);
      expect([...(await one.bestLogprobs!.floats())]).toEqual([0, -Infinity, -Infinity]);
      const quiet = sampleTokens(make([1, 2], [1, 2]), rowsOf(device, [{}]), { logprobs: false });
      expect([quiet.logprobs, quiet.bestIds, quiet.bestLogprobs]).toEqual([null, null, null]);
      expect(await quiet.ids.item()).toBe(1);
    });
  });

  describe("errors", () => {
    it("names what does not fit", async () => {
      const x = make([1, 2, 3, 4], [2, 2]);
      const rows = rowsOf(device, [{}, {}]);
      const int = (values: number[]) => tensor(Int32Array.from(values), { device });
      const bad: [SamplingRows, string][] = [
        [{ ...rows, topP: rows.topK }, "sampleTokens: topP must be float32, got int32"],
        [rowsOf(device, [{}]), "sampleTokens: temperature must have shape [2], got [1]"],
        [{ ...rows, seed: rows.step }, "sampleTokens: seed must have shape [2, 2], got [2]"],
        [{ ...rows, counts: int([1, 2]) }, "sampleTokens: counts must be [slots, 2], got [2]"],
        [
          { ...rows, counts: zeros([3, 2], { dtype: "int32", device }) },
          "sampleTokens: counts must have a row for each of 2 rows of logits, got [3, 2]",
        ],
        [{ ...rows, mask: int([1, 2]) }, "sampleTokens: mask must have shape [2, 1], got [2]"],
        [
          { ...rows, bias: { offsets: int([0, 0]), ids: int([0]), values: rows.topP } },
          "sampleTokens: bias.offsets must have shape [3], got [2]",
        ],
        [
          { ...rows, bias: { offsets: int([0, 0, 1]), ids: int([0]), values: rows.topP } },
          "sampleTokens: bias.values must have shape [1], got [2]",
        ],
      ];
      for (const [given, message] of bad) expect(() => sampleTokens(x, given)).toThrow(message);
      expect(() => sampleTokens(make([1], [1]), rows)).toThrow(
        "sampleTokens: logits must be [rows, vocabulary], got [1]",
      );
      expect(() => sampleTokens(x, rows, { best: 21 })).toThrow(
        "sampleTokens: best must be an integer from 0 to 20, got 21",
      );
      const bias = { offsets: int([0, 1, 1]), ids: int([2]), values: tensor([1], { device }) };
      await expect(sampleTokens(x, { ...rows, bias }).ids.data()).rejects.toThrow(
        /sample_adjust: index 2 is out of range/,
      );
    });
  });
});
