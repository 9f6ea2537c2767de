// A mixture of experts against its float64 oracle: 4-bit and float weights, forward and backward.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import type { DType, ExpertWeights, Quantized4Bit, Tensor } from "../../src/index.js";
import {
  capture,
  copyInto,
  expertsSwiglu,
  expertWeights,
  matmul4bit,
  quantize4bit,
  slice,
  swiglu,
  tensor,
  tidy,
} from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { relativeError } from "../helpers/expect-close.js";
import { gradcheck } from "../helpers/gradcheck.js";
import { integers, normals } from "../helpers/random.js";
import type { ExpertMatrices } from "../reference/experts.js";
import { expertsSwigluReference } from "../reference/experts.js";
import { decode4bit } from "../reference/linear-4bit.js";

// Three products one after the other, each with the roundings of its sums; then those of x, a float weight and y.
const limits = { float32: 5e-6, float16: 1.5e-3, bfloat16: 1.2e-2 } as const;

interface Sizes {
  tokens: number;
  choices: number;
  count: number;
  hidden: number;
  width: number;
}
// Few and many rows of an expert, experts that nobody chose, all of them chosen, one alone, rows that are no whole blocks.
const sizes: Sizes[] = [
  { tokens: 1, choices: 2, count: 4, hidden: 64, width: 128 },
  { tokens: 1, choices: 8, count: 40, hidden: 64, width: 32 },
  { tokens: 3, choices: 1, count: 1, hidden: 128, width: 64 },
  { tokens: 5, choices: 3, count: 3, hidden: 64, width: 128 },
  { tokens: 33, choices: 2, count: 5, hidden: 64, width: 64 },
  { tokens: 9, choices: 2, count: 6, hidden: 50, width: 22 },
  { tokens: 2, choices: 2, count: 3, hidden: 6, width: 5 },
];
const kinds = ["nf4", "nested", "float32", "bfloat16"] as const;
type Kind = (typeof kinds)[number];
// Each kind where rows are whole blocks, where they are none, and where they are tiny; elsewhere one of each family.
const problems = sizes.flatMap((s, i) =>
  kinds
    .filter((kind) => [0, 5, 6].includes(i) || kind === "nf4" || kind === "bfloat16")
    .map((kind) => ({ kind, ...s })),
);

describe.each(testDevices())("expertsSwiglu on %s", (device) => {
  // Few rows an expert and many are different products, and so is each way of rounding.
  it.each([1, 4, 30])("rounds activations as the weights allow, %i rows an expert", (rows) => {
    const [count, hidden, width] = [3, 128, 192];
    const tokens = rows * count;
    tidy(() => {
      const x = make(normals(tokens * hidden, 5), [tokens, hidden]);
      const experts = tensor(
        Int32Array.from({ length: tokens }, (_, i) => Math.floor(i / rows)),
        { shape: [tokens, 1], dtype: "int32", device },
      );
      const shares = make(new Float64Array(tokens).fill(1), [tokens, 1]);
      const shapes = [
        [width, hidden],
        [width, hidden],
        [hidden, width],
      ] as const;
      const matrices = shapes.map(([n, k], which) =>
        Array.from({ length: count }, (_, e) =>
          quantize4bit(make(normals(n * k, which + 10 * e, 0.1), [n, k]), { quantType: "nf4" }),
        ),
      );
      const outputs = (["none", "int16", "int8"] as const).map((activationQuant) => {
        const [gates, ups, downs] = matrices.map((list) =>
          list.map(([packed, state]) => state.quantized(packed, activationQuant)),
        );
        const y = expertsSwiglu(x, { shares, experts }, expertWeights(gates!, ups!, downs!)).floatsSync();
        // The same of single products, expert by expert.
        for (let e = 0; e < count; e++) {
          const by = (which: number, input: Tensor): Tensor => {
            const [packed, state] = matrices[which]![e]!;
            return matmul4bit(input, packed, state, { activationQuant });
          };
          const mine = slice(x, 0, e * rows, (e + 1) * rows);
          const single = by(2, swiglu(by(0, mine), by(1, mine))).floatsSync();
          // Another order of sums may round an activation to the code beside, of which there are 127.
          const bound = activationQuant === "none" ? 1e-6 : 2e-3;
          expect(relativeError(y.subarray(e * rows * hidden, (e + 1) * rows * hidden), single)).toBeLessThan(bound);
        }
        return y;
      });
      const [exact, int16, int8] = outputs as [Float32Array, Float32Array, Float32Array];
      // What each product may lose (README), for two products one after the other.
      expect(relativeError(int16, exact)).toBeLessThan(2 * 2e-4);
      expect(relativeError(int8, exact)).toBeLessThan(2 * 1.5e-2);
    });
  });

  const make = (values: ArrayLike<number>, shape: readonly number[], dtype: DType = "float32"): Tensor =>
    tensor(Float64Array.from(values), { shape, dtype, device });

  const matrixOf = (kind: Kind, n: number, k: number, seed: number) => {
    const values = normals(n * k, seed, 1 / Math.sqrt(k));
    if (kind === "float32" || kind === "bfloat16") {
      const matrix = make(values, [n, k], kind);
      return { matrix, values: Float64Array.from(matrix.floatsSync()) };
    }
    const [packed, state] = quantize4bit(make(values, [n, k]), {
      quantType: "nf4",
      compressStatistics: kind === "nested",
    });
    return { matrix: state.quantized(packed), values: decode4bit(packed, state) };
  };

  const expertsOf = (
    kind: Kind,
    { count, hidden, width }: Sizes,
  ): { weights: ExpertWeights; values: ExpertMatrices[] } => {
    const list = (n: number, k: number, seed: number) =>
      Array.from({ length: count }, (_, e) => matrixOf(kind, n, k, seed + 10 * e));
    const [gates, ups, downs] = [list(width, hidden, 1), list(width, hidden, 2), list(hidden, width, 3)];
    const of = (matrices: { matrix: Tensor | Quantized4Bit }[]) => matrices.map(({ matrix }) => matrix);
    return {
      weights: expertWeights(of(gates), of(ups), of(downs)),
      values: gates.map(({ values }, e) => ({ gate: values, up: ups[e]!.values, down: downs[e]!.values })),
    };
  };

  // Each row's experts are different ones, as a router gives them; the last expert of several is never chosen.
  const chosenBy = ({ tokens, choices, count }: Sizes): number[] => {
    const usable = count > choices ? count - 1 : count;
    const first = integers(tokens, usable, 7);
    return Array.from(first).flatMap((e) => Array.from({ length: choices }, (_, j) => (e + j) % usable));
  };

  const problem = (s: Sizes, dtype: DType = "float32") => {
    const experts = chosenBy(s);
    return {
      x: make(normals(s.tokens * s.hidden, 4), [s.tokens, s.hidden], dtype),
      residual: make(normals(s.tokens * s.hidden, 5), [s.tokens, s.hidden], dtype),
      shares: make(
        normals(s.tokens * s.choices, 6).map((v) => Math.abs(v) + 0.1),
        [s.tokens, s.choices],
      ),
      experts: tensor(Int32Array.from(experts), { shape: [s.tokens, s.choices], device }),
      ids: experts,
    };
  };

  describe("values", () => {
    it.each(problems)("%o", ({ kind, ...s }) =>
      tidy(() => {
        const { weights, values } = expertsOf(kind, s);
        const { x, residual, shares, experts, ids } = problem(s);
        expect(weights.shape).toEqual([s.count, s.width, s.hidden]);
        const inputs = [x.floatsSync(), shares.floatsSync(), ids, values, s] as const;
        const y = expertsSwiglu(x, { shares, experts }, weights);
        expect(relativeError(y.floatsSync(), expertsSwigluReference(...inputs))).toBeLessThan(limits.float32);
        const added = expertsSwiglu(x, { shares, experts }, weights, residual);
        const expected = expertsSwigluReference(...inputs, residual.floatsSync());
        expect(relativeError(added.floatsSync(), expected)).toBeLessThan(limits.float32);
      }),
    );

    it("of a row is the same, up to rounding, whoever else is there", () =>
      tidy(() => {
        const s = { tokens: 24, choices: 2, count: 5, hidden: 64, width: 64 };
        const { weights } = expertsOf("nf4", s);
        const { x, shares, experts, ids } = problem(s);
        const all = expertsSwiglu(x, { shares, experts }, weights).floatsSync();
        const rows = x.floatsSync();
        const parts = shares.floatsSync();
        for (const t of [0, 13, 23]) {
          const alone = expertsSwiglu(
            make(rows.slice(t * 64, t * 64 + 64), [1, 64]),
            {
              shares: make(parts.slice(t * 2, t * 2 + 2), [1, 2]),
              experts: tensor(Int32Array.from(ids.slice(t * 2, t * 2 + 2)), { shape: [1, 2], device }),
            },
            weights,
          );
          expect(relativeError(alone.floatsSync(), all.slice(t * 64, t * 64 + 64))).toBeLessThan(2e-6);
        }
      }));

    it("counts an expert twice that a row chose twice", () =>
      tidy(() => {
        const s = { tokens: 2, choices: 3, count: 2, hidden: 64, width: 64 };
        const { weights, values } = expertsOf("nf4", s);
        const { x, shares } = problem(s);
        const ids = [1, 1, 0, 1, 0, 1];
        const experts = tensor(Int32Array.from(ids), { shape: [2, 3], device });
        const y = expertsSwiglu(x, { shares, experts }, weights);
        const expected = expertsSwigluReference(x.floatsSync(), shares.floatsSync(), ids, values, s);
        expect(relativeError(y.floatsSync(), expected)).toBeLessThan(limits.float32);
      }));

    it("follows the choice in a recorded graph", () =>
      tidy(() => {
        const s = { tokens: 2, choices: 2, count: 4, hidden: 64, width: 64 };
        const { weights, values } = expertsOf("nf4", s);
        const { x, shares } = problem(s);
        const experts = tensor(Int32Array.from([0, 1, 0, 1]), { shape: [2, 2], device });
        const graph = capture(() => expertsSwiglu(x, { shares, experts }, weights), { device });
        for (const ids of [
          [2, 3, 1, 0],
          [3, 0, 3, 2],
        ]) {
          copyInto(experts, tensor(Int32Array.from(ids), { shape: [2, 2], device }));
          graph.replay();
          const expected = expertsSwigluReference(x.floatsSync(), shares.floatsSync(), ids, values, s);
          expect(relativeError(graph.outputs.floatsSync(), expected)).toBeLessThan(limits.float32);
        }
        graph.dispose();
      }));
  });

  describe("gradients", () => {
    const cases = problems.filter(({ count }) => count !== 40);
    // The oracle is a float64 forward pass a difference: the small problems for every element, the others along dy.
    it.each(cases.filter((s) => s.tokens * s.hidden <= 100))("of x and the shares: %o", ({ kind, ...s }) =>
      tidy(() => {
        const { weights, values } = expertsOf(kind, s);
        const { x, shares, experts, ids } = problem(s);
        gradcheck(
          (x, shares) => expertsSwiglu(x, { shares, experts }, weights),
          [
            { data: x.floatsSync(), shape: x.shape },
            { data: shares.floatsSync(), shape: shares.shape },
          ],
          { device, reference: (x, shares) => expertsSwigluReference(x!, shares!, ids, values, s) },
        );
      }),
    );

    it.each(cases)("along a direction: %o", ({ kind, ...s }) =>
      tidy(() => {
        const { weights, values } = expertsOf(kind, s);
        const { x, shares, experts, ids } = problem(s);
        for (const t of [x, shares]) t.requiresGrad = true;
        const dy = make(normals(x.size, 8), x.shape);
        backward(expertsSwiglu(x, { shares, experts }, weights), dy);
        const [dx, dshares] = [normals(x.size, 9), normals(shares.size, 10)];
        const [values0, shares0, weightsOfY] = [x.floatsSync(), shares.floatsSync(), dy.floatsSync()];
        const at = (step: number) => {
          const moved = (from: Float32Array, d: Float32Array) => Float64Array.from(from, (v, i) => v + step * d[i]!);
          const y = expertsSwigluReference(moved(values0, dx), moved(shares0, dshares), ids, values, s);
          return y.reduce((sum, v, i) => sum + v * weightsOfY[i]!, 0);
        };
        const numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
        const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, v, i) => sum + v * b[i]!, 0);
        const norm = (a: Float32Array) => Math.sqrt(dot(a, a));
        const [gx, gs] = [x.grad!.floatsSync(), shares.grad!.floatsSync()];
        const scale = norm(gx) * norm(dx) + norm(gs) * norm(dshares);
        expect(Math.abs(dot(gx, dx) + dot(gs, dshares) - numeric) / scale).toBeLessThan(1e-5);
      }),
    );

    it("refuse weights that were changed after the forward pass", () =>
      tidy(() => {
        const [gate, down] = [make(normals(24, 1), [4, 6]), make(normals(24, 2), [6, 4])];
        const s = { tokens: 2, choices: 1, count: 1, hidden: 6, width: 4 };
        const { x, shares, experts } = problem(s);
        x.requiresGrad = true;
        const y = expertsSwiglu(x, { shares, experts }, expertWeights([gate], [gate], [down]));
        copyInto(down, make(normals(24, 3), [6, 4]));
        expect(() => backward(y, make(normals(x.size, 8), x.shape))).toThrow(/expertsSwiglu.*changed in place/s);
      }));

    it("reach the residual as they are", () =>
      tidy(() => {
        const s = sizes[0]!;
        const { weights } = expertsOf("nf4", s);
        const { x, shares, experts, residual } = problem(s);
        residual.requiresGrad = true;
        const dy = make(normals(x.size, 8), x.shape);
        backward(expertsSwiglu(x, { shares, experts }, weights, residual), dy);
        expect([...residual.grad!.floatsSync()]).toEqual([...dy.floatsSync()]);
      }));
  });

  describe("dtypes", () => {
    it.each(["float16", "bfloat16"] as const)("%s", (dtype) =>
      tidy(() => {
        const s = { tokens: 6, choices: 2, count: 4, hidden: 64, width: 96 };
        const { weights, values } = expertsOf("nf4", s);
        const { x, residual, shares, experts, ids } = problem(s, dtype);
        x.requiresGrad = true;
        const y = expertsSwiglu(x, { shares, experts }, weights, residual);
        expect(y.dtype).toBe(dtype);
        const expected = expertsSwigluReference(
          x.floatsSync(),
          shares.floatsSync(),
          ids,
          values,
          s,
          residual.floatsSync(),
        );
        expect(relativeError(y.floatsSync(), expected)).toBeLessThan(limits[dtype]);
        const dy = make(normals(x.size, 8), x.shape, dtype);
        backward(y, dy);
        expect(x.grad!.dtype).toBe(dtype);
        const wide = make(x.floatsSync(), x.shape);
        wide.requiresGrad = true;
        backward(expertsSwiglu(wide, { shares, experts }, weights), make(dy.floatsSync(), x.shape));
        expect(relativeError(x.grad!.floatsSync(), wide.grad!.floatsSync())).toBeLessThan(limits[dtype]);
      }),
    );
  });

  describe("shapes", () => {
    it.each([
      { tokens: 0, choices: 2, count: 3, hidden: 8, width: 4 },
      { tokens: 3, choices: 2, count: 3, hidden: 0, width: 4 },
      { tokens: 3, choices: 2, count: 3, hidden: 8, width: 0 },
      { tokens: 3, choices: 0, count: 3, hidden: 8, width: 4 },
    ])("%o", (s) =>
      tidy(() => {
        const list = (n: number, k: number) => Array.from({ length: s.count }, () => make(normals(n * k, 1), [n, k]));
        const weights = expertWeights(list(s.width, s.hidden), list(s.width, s.hidden), list(s.hidden, s.width));
        const { x, residual, shares, experts, ids } = problem(s);
        for (const t of [x, shares]) t.requiresGrad = true;
        const y = expertsSwiglu(x, { shares, experts }, weights, residual);
        expect(y.shape).toEqual(x.shape);
        const values = list(s.width, s.hidden).map((gate, e) => ({
          gate: gate.floatsSync(),
          up: gate.floatsSync(),
          down: list(s.hidden, s.width)[e]!.floatsSync(),
        }));
        const expected = expertsSwigluReference(
          x.floatsSync(),
          shares.floatsSync(),
          ids,
          values,
          s,
          residual.floatsSync(),
        );
        expect(y).toBeCloseToTensor(expected);
        backward(y, make(normals(x.size, 8), x.shape));
        expect([x.grad!.shape, shares.grad!.shape]).toEqual([x.shape, shares.shape]);
      }),
    );
  });

  describe("errors", () => {
    const s = { tokens: 2, choices: 2, count: 3, hidden: 64, width: 64 };
    const floats = (n: number, k: number, dtype: DType = "float32") => make(normals(n * k, 1), [n, k], dtype);

    it("of the weights", () => {
      const w = floats(4, 6);
      const d = floats(6, 4);
      const [packed, state] = quantize4bit(w, { quantType: "nf4" });
      const q = state.quantized(packed);
      expect(() => expertWeights([], [], [])).toThrow("expertWeights: there must be at least one expert");
      expect(() => expertWeights([w, w], [w], [d])).toThrow(
        "expertWeights: there must be as many ups and downs as gates, got 1 and 1 for 2",
      );
      expect(() => expertWeights([w], [d], [d])).toThrow("expertWeights: ups[0] must have shape [4, 6], got [6, 4]");
      expect(() => expertWeights([w], [w], [w])).toThrow("expertWeights: downs[0] must have shape [6, 4], got [4, 6]");
      expect(() => expertWeights([w], [q], [d])).toThrow(
        "expertWeights: ups[0] must be floats, as gates[0] is, got a quantized weight",
      );
      expect(() => expertWeights([q], [w], [d])).toThrow(
        "expertWeights: ups[0] must be quantized, as gates[0] is, got floats",
      );
      expect(() => expertWeights([w], [floats(4, 6, "bfloat16")], [d])).toThrow(
        "expertWeights: ups must be float32, got bfloat16",
      );
      expect(() => expertWeights([floats(4, 6, "int32")], [w], [d])).toThrow(
        "expertWeights: gates must be float32, float16 or bfloat16, got int32",
      );
      expect(() => expertWeights([make([1], [1])], [w], [d])).toThrow(
        "expertWeights: gates[0] must be a matrix [width, hidden], got [1]",
      );
      expect(() => expertWeights(null as never, [w], [d])).toThrow(
        "expertWeights: gates must be an array, each a Tensor or a Quantized4Bit, got null",
      );
      expect(() => expertWeights([null as never], [w], [d])).toThrow("expertWeights: gates must be an array");
      const gone = floats(4, 6);
      gone.dispose();
      expect(() => expertWeights([gone], [w], [d])).toThrow("expertWeights: gates was disposed");
    });

    it("of the operands", () => {
      const { weights } = expertsOf("nf4", s);
      const { x, shares, experts } = problem(s);
      const call = (over: Partial<Record<"x" | "shares" | "experts" | "residual", Tensor>>) => () =>
        expertsSwiglu(
          over.x ?? x,
          { shares: over.shares ?? shares, experts: over.experts ?? experts },
          weights,
          over.residual ?? null,
        );
      expect(call({ x: floats(2, 32) })).toThrow("expertsSwiglu: x must be [tokens, 64], got [2, 32]");
      expect(call({ x: floats(2, 64, "int32") })).toThrow(
        "expertsSwiglu: x must be float32, float16 or bfloat16, got int32",
      );
      expect(call({ shares: floats(2, 3) })).toThrow("expertsSwiglu: shares must have shape [2, 2], got [2, 3]");
      expect(call({ shares: floats(2, 2, "float16") })).toThrow("expertsSwiglu: shares must be float32, got float16");
      expect(call({ experts: floats(2, 2) })).toThrow("expertsSwiglu: experts must be int32, got float32");
      expect(call({ experts: floats(3, 2, "int32") })).toThrow(
        "expertsSwiglu: experts must be [2, choices], got [3, 2]",
      );
      expect(call({ residual: floats(2, 32) })).toThrow("expertsSwiglu: residual must have shape [2, 64], got [2, 32]");
      expect(call({ residual: floats(2, 64, "float16") })).toThrow(
        "expertsSwiglu: x and residual must have one dtype, got float32 and float16",
      );
      expect(() => expertsSwiglu(x, { shares, experts }, x as never)).toThrow(
        "expertsSwiglu: weights must be ExpertWeights, got ",
      );
      expect(() => expertsSwiglu(x, null as never, weights)).toThrow(
        "expertsSwiglu: choice must be an object, got null",
      );
      weights.dispose();
      expect(call({})).toThrow("expertsSwiglu: weights was disposed");
    });

    it("of an expert that is not there, at the next read", async () => {
      const { weights } = expertsOf("nf4", s);
      const { x, shares } = problem(s);
      for (const wrong of [3, -1]) {
        const experts = tensor(Int32Array.from([0, 2, wrong, 1]), { shape: [2, 2], device });
        const message = new RegExp(`index ${wrong} .*\\[0, 3\\)`);
        await expect(expertsSwiglu(x, { shares, experts }, weights).data()).rejects.toThrow(message);
      }
      const known = tensor(Int32Array.from([0, 2, 2, 1]), { shape: [2, 2], device });
      expect((await expertsSwiglu(x, { shares, experts: known }, weights).data()).every(Number.isFinite)).toBe(true);
    });
  });
});
