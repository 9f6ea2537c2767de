// Axes of size 0: rows, columns, outputs and batches, in every op, forward and backward, on every device. Nothing stops
// the process, shapes are what they would be for any size, and a sum of nothing is 0 and not what the memory held.
import { describe, expect, it } from "vitest";
import type { DType, Tensor } from "../../src/index.js";
import * as bnb from "../../src/index.js";
import { backward, full, ones, Tensor as TensorClass, tidy, zeros } from "../../src/index.js";
import * as ops from "../../src/ops/index.js";
import { testDevices } from "../helpers/devices.js";

const floats: DType[] = ["float32", "bfloat16", "float16"];
// Of three axes: none, one or several are 0.
const sizes = [0, 1, 2, 3, 4, 5, 6].map((bits) => [bits & 1, bits >> 1, bits >> 2].map((bit) => (bit & 1 ? 3 : 0)));

/** A tensor of ones of some shape, whose gradient is wanted unless it holds integers. */
type Make = (shape: number[], dtype?: DType) => Tensor;
interface Case {
  /** The op on tensors of sizes a, b, c. Undefined: those sizes are none of it. */
  run: (make: Make, a: number, b: number, c: number) => Tensor | readonly Tensor[] | undefined;
  /** What a result holds that has elements although all else is empty; default 0. */
  value?: number;
  /** Its message, where the op refuses an empty axis. */
  refuses?: RegExp;
  /** Not differentiable. */
  discrete?: boolean;
}

const unary = ["neg", "abs", "sign", "square", "reciprocal", "sqrt", "rsqrt", "exp", "log", "sigmoid", "tanh"] as const;
const more = ["relu", "silu", "gelu", "geluTanh", "softplus", "softmax", "logSoftmax"] as const;
const binary = ["add", "sub", "mul", "div", "maximum", "minimum"] as const;

// Called by name.
const named = { ...bnb } as unknown as Record<string, (x: Tensor, y?: Tensor | number) => Tensor>;

const cases: Record<string, Case> = {
  ...Object.fromEntries(
    [...unary, ...more].map((op) => [
      op,
      { run: (make: Make, a: number, b: number, c: number) => named[op]!(make([a, b, c])) },
    ]),
  ),
  ...Object.fromEntries(
    binary.map((op) => [
      op,
      {
        run: (make: Make, a: number, b: number, c: number) => [
          named[op]!(make([a, b, c]), make([b, 1])),
          named[op]!(make([a, b, c]), 2),
        ],
      },
    ]),
  ),
  pow: { run: (make, a, b, c) => bnb.pow(make([a, b, c]), 3) },
  clamp: { run: (make, a, b, c) => bnb.clamp(make([a, b, c]), 0, 2) },
  swiglu: { run: (make, a, b, c) => bnb.swiglu(make([a, b, c]), make([a, b, c])) },
  dropout: { run: (make, a, b, c) => bnb.dropout(make([a, b, c]), 0.5) },
  sum: {
    run: (make, a, b, c) =>
      [-3, 1, 2].map((axis) => bnb.sum(make([a, b, c]), { axis })).concat(bnb.sum(make([a, b, c]))),
  },
  mean: { run: (make, a, b, c) => bnb.mean(make([a, b, c]), { axis: 1 }), value: NaN },
  max: {
    run: (make, a, b, c) => bnb.max(make([a, b, c]), { axis: 1 }),
    refuses: /^max: the reduced axis must not be empty/,
  },
  min: {
    run: (make, a, b, c) => bnb.min(make([a, b, c]), { axis: 1 }),
    refuses: /^min: the reduced axis must not be empty/,
  },
  argmax: {
    run: (make, a, b, c) => bnb.argmax(make([a, b, c]), { axis: 1 }),
    refuses: /^argmax: the reduced axis must not be empty/,
    discrete: true,
  },
  matmul: {
    run: (make, a, b, c) => [
      bnb.matmul(make([2, a, b]), make([b, c])),
      bnb.matmul(make([a, b, 2]), make([a, 2, c])),
      bnb.matmul(make([b, a]), make([c, b]), { transposeA: true, transposeB: true }),
      bnb.matmul(make([2, b, a]), make([b, c]), { transposeA: true }),
      bnb.matmul(make([c, b, a]), make([3, b]), { transposeA: true, transposeB: true }),
    ],
  },
  linear: { run: (make, a, b, c) => bnb.linear(make([2, a, b]), make([c, b]), make([c])), value: 1 },
  cast: { run: (make, a, b, c) => [bnb.cast(make([a, b, c]), "float32"), bnb.cast(make([a, b, c]), "bfloat16")] },
  reshape: { run: (make, a, b, c) => bnb.reshape(make([a, b, c]), [c, b, a]) },
  permute: { run: (make, a, b, c) => bnb.permute(make([a, b, c]), [2, 0, 1]) },
  transpose: { run: (make, a, b, c) => bnb.transpose(make([a, b, c])) },
  slice: {
    run: (make, a, b, c) => [
      bnb.slice(make([a, b, c]), 1, 0, b),
      bnb.slice(make([a, 4, c]), 1, 2, 2),
      bnb.slice(make([a, b]), 0, a, a),
    ],
  },
  concat: {
    run: (make, a, b, c) => [bnb.concat([make([a, b]), make([a, c])], 1), bnb.concat([make([a, b]), make([c, b])], 0)],
    value: 1,
  },
  broadcastTo: { run: (make, a, b, c) => bnb.broadcastTo(make([b, 1]), [a, b, c]) },
  copyInto: {
    run: (_, a, b) => {
      const dst = zeros([4, a, b]);
      bnb.copyInto(dst, zeros([2, a, b]), { start: 1 });
      bnb.copyInto(dst, zeros([0, a, b]), { start: 4 });
      dst.dispose();
      return undefined;
    },
  },
  rmsNorm: { run: (make, a, b, c) => bnb.rmsNorm(make([a, b, c]), make([c])) },
  layerNorm: {
    run: (make, a, b, c) => [bnb.layerNorm(make([a, b, c]), make([c]), make([c])), bnb.layerNorm(make([a, b, c]))],
  },
  embedding: {
    run: (make, a, b, c) => bnb.embedding(bnb.cast(make([a, b]).detach(), "int32"), make([a * b === 0 ? c : 3, 2 * c])),
  },
  crossEntropy: {
    run: (make, a, b, c) =>
      a * b > 0 ? undefined : bnb.crossEntropy(make([a, b, c]), zeros([a, b], { dtype: "int32" })),
    value: NaN,
  },
  ...Object.fromEntries(
    (["mseLoss", "l1Loss", "bceWithLogitsLoss"] as const).map((name) => [
      name,
      {
        run: (make: Make, a: number, b: number, c: number) => named[name]!(make([a, b, c]), make([a, b, c])),
        value: NaN,
      },
    ]),
  ),
  rope: { run: (make, a, b, c) => bnb.rope(make([a, b, c, 4]), ones([8, 2]), ones([8, 2])) },
  attention: {
    run: (make, a, b, c) =>
      bnb.attention(make([a, b, 2, 4]), make([a, c, 2, 4]), make([a, c, 2, 4]), { causal: false }),
  },
  linear4bit: {
    run: (make, a, b, c) => bnb.matmul4bit(make([2, a, b]), ...fourBits([c, b]), { bias: make([c]) }),
    value: 1,
  },
  linear4bitEach: {
    run: (make, a, b, c) =>
      bnb.noGrad(() => bnb.linear4bitEach(make([a, b]), [quantized([c, b]), quantized([2 * c, b])])),
    discrete: true,
  },
  linear4bitSwiglu: {
    run: (make, a, b, c) => bnb.noGrad(() => bnb.linear4bitSwiglu(make([a, b]), quantized([c, b]), quantized([c, b]))),
    discrete: true,
  },
  chooseExperts: {
    run: (make, a, b) => bnb.chooseExperts(make([a, 1 + b]), 1, { normalize: true }).shares,
    value: 1,
  },
  expertsSwiglu: {
    run: (make, a, b, c) => {
      const weights = bnb.expertWeights([quantized([c, b])], [quantized([c, b])], [quantized([b, c])]);
      const experts = zeros([a, 1], { dtype: "int32" });
      return bnb.expertsSwiglu(make([a, b]), { shares: make([a, 1], "float32"), experts }, weights, make([a, b]));
    },
    value: 1,
  },
  gemv4bit: {
    run: (make, _, b, c) => (b * c > 0 ? undefined : bnb.noGrad(() => bnb.gemv4bit(make([1, b]), ...fourBits([c, b])))),
    discrete: true,
  },
  quantize4bit: {
    run: (make, a, b, c) => {
      const [packed, state] = bnb.quantize4bit(make([a, b, c]).detach(), { compressStatistics: true });
      return bnb.dequantize4bit(packed, { quantState: state });
    },
    discrete: true,
  },
  quantizeBlockwise: {
    run: (make, a, b, c) => {
      const [codes, state] = bnb.quantizeBlockwise(make([a, b, c]).detach(), { nested: true });
      return bnb.dequantizeBlockwise(codes, { quantState: state });
    },
    discrete: true,
  },
  embedding4bit: {
    run: (_, a, b, c) => bnb.embedding4bit(zeros([a, b], { dtype: "int32" }), quantized([3, 64 * c]), "float32"),
    discrete: true,
  },
  int8VectorwiseQuant: {
    run: (make, a, b, c) => {
      const rows = bnb.int8VectorwiseQuant(make([a, b, c]).detach(), { threshold: 6 });
      const back = bnb.int8VectorwiseDequant(rows.codes, rows.stats);
      return rows.outlierMask ? [rows.codes, rows.stats, rows.outlierMask, back] : back;
    },
    discrete: true,
  },
  int8DoubleQuant: {
    run: (make, a, b, c) => {
      const quantized = bnb.int8DoubleQuant(make([a, b, c]).detach());
      return [quantized.rowCodes, quantized.rowStats, quantized.colCodes, quantized.colStats];
    },
    discrete: true,
  },
  embedding8bit: {
    run: (make, a, b, c) => {
      const { codes, stats } = bnb.int8VectorwiseQuant(make([3, c]).detach());
      return bnb.embedding8bit(zeros([a, b], { dtype: "int32" }), codes, stats);
    },
    discrete: true,
  },
  int8LinearMatmul: {
    run: (make, a, b, c) => {
      const product = bnb.int8LinearMatmul(
        bnb.cast(make([a, b]).detach(), "int8"),
        bnb.cast(make([c, b]).detach(), "int8"),
      );
      return [product, bnb.int8MmDequant(product, ones([a]), ones([c]), { bias: null })];
    },
    discrete: true,
  },
  matmul8bit: {
    run: (make, a, b, c) => {
      const weight = make([c, b]);
      const { codes, stats } = bnb.int8VectorwiseQuant(weight.detach());
      const x = make([2, a, b]);
      return [false, true].map((kept) =>
        bnb.matmul8bit(x, codes, stats, { bias: make([c]), threshold: 6, weight: kept ? weight : null }),
      );
    },
    value: 1,
  },
  sampleToken: {
    run: (make, a, b, c) => bnb.sampleToken(make([a, b, c]).detach(), { temperature: 1 }),
    refuses: /^sampleToken: the last axis of logits must have 1 to \d+ elements/,
    discrete: true,
  },
  kvAppend: {
    run: (make, a, b, c) => {
      const [q, k, v] = [make([a * b, 4, 4]), make([a * b, c, 4]), make([a * b, c, 4])].map((t) => t.detach()) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      const pages = () => zeros([2, c, 16, 4]);
      const slots = zeros([a * b], { dtype: "int32" });
      return c === 0 ? undefined : bnb.kvAppend(q, k, v, { keys: pages(), values: pages() }, slots, null);
    },
    discrete: true,
  },
  pagedAttention: {
    run: (make, a, b, c) => {
      const table = { starts: zeros([2], { dtype: "int32" }), lengths: zeros([1], { dtype: "int32" }) };
      const layer = { keys: zeros([2, 1, 16, 4]), values: zeros([2, 1, 16, 4]) };
      const pages = zeros([1, 2], { dtype: "int32" });
      return c === 0 ? undefined : bnb.pagedAttention(make([a * b, c, 4]).detach(), layer, { ...table, pages });
    },
    discrete: true,
  },
  loraRows: {
    run: (make, a, b, c) => {
      const segment = bnb.tensor([0, Math.min(a, 1), a], { dtype: "int32" });
      const [y, x, down, up] = [make([a, b]), make([a, c]), make([2, 3, c]), make([2, 3, b])].map((one) =>
        one.detach(),
      );
      return bnb.loraRows(y!, x!, down!, up!, segment);
    },
    value: 1, // y stays as it is
    discrete: true,
  },
  sampleTokens: {
    run: (make, a, b, c) => {
      const rows = (value: number) => bnb.full([a * b], value);
      const ints = (shape: number[]) => zeros(shape, { dtype: "int32" });
      const { ids, logprobs } = bnb.sampleTokens(
        make([a, b, c])
          .detach()
          .reshape([a * b, c]),
        {
          ...{ temperature: rows(1), topP: rows(0.9), minP: rows(0), typicalP: rows(0.9) },
          ...{ repetition: rows(2), presence: rows(1), frequency: rows(1), counts: ints([a * b, c]) },
          ...{ topK: ints([a * b]), seed: ints([a * b, 2]), step: ints([a * b]) },
        },
      );
      return [ids, logprobs as Tensor];
    },
    refuses: /^sampleTokens: the last axis of logits must have 1 to \d+ elements/,
    discrete: true,
  },
  to: { run: (make, a, b, c) => bnb.to(make([a, b, c]), "cpu") },
  clone: { run: (make, a, b, c) => bnb.clone(make([a, b, c])) },
  rand: { run: (_, a, b, c) => [bnb.rand([a, b, c]), bnb.randn([a, b, c])], discrete: true },
  randint: { run: (_, a, b, c) => bnb.randint([a, b, c], { high: 3 }), discrete: true },
  embeddingRenorm: {
    run: (make, a, b, c) => {
      const weight = make([3, c]).detach();
      bnb.embeddingRenorm(zeros([a, b], { dtype: "int32" }), weight, 1);
      return weight;
    },
    value: 1,
    discrete: true,
  },
};

function fourBits(shape: number[]): [Tensor, bnb.QuantState] {
  return bnb.quantize4bit(ones(shape), { quantType: "nf4" });
}
function quantized(shape: number[]): bnb.Quantized4Bit {
  const [packed, state] = fourBits(shape);
  return state.quantized(packed);
}

// Functions that take no tensor with free sizes, or that another case calls.
const apart =
  /^(create\w+Map|get4bitType|\w+Plan|fmaPeak|manualSeed|(de)?quantize(Nf4|Fp4)|dequantize(4bit|Blockwise)|expandAbsmax|expertWeights|randn|matmul4bit|packDictToTensor|unpackTensorToDict|int8(VectorwiseDequant|MmDequant))$/;

// Freed memory that is handed out again must not pass for zeros.
function dirty(): void {
  const held = [64, 128, 192, 256, 512, 1024, 4096].flatMap((bytes) => [1, 2, 3, 4].map(() => full([bytes / 4], NaN)));
  for (const t of held) t.dispose();
}

function check(name: string, { run, value = 0, refuses, discrete }: Case, dtype: DType, [a, b, c]: number[]): void {
  dirty();
  const leaves: Tensor[] = [];
  const make: Make = (shape, own = dtype) => {
    const leaf = full(shape, 1, { dtype: own, requiresGrad: true });
    leaves.push(leaf);
    return leaf;
  };
  let results: readonly Tensor[];
  try {
    const result = run(make, a!, b!, c!);
    results = result === undefined ? [] : result instanceof TensorClass ? [result] : (result as readonly Tensor[]);
  } catch (error) {
    if (refuses?.test((error as Error).message)) return;
    throw error;
  }
  for (const y of results) {
    const strange = [...y.floatsSync()].filter((v) => v !== 0 && !Object.is(v, value));
    expect(strange, `${name} [${a}, ${b}, ${c}]`).toEqual([]);
    if (discrete || !y.requiresGrad) continue;
    for (const leaf of leaves) leaf.grad = null;
    backward(y, ones(y.shape, { dtype: y.dtype }));
    for (const leaf of leaves) {
      const gradient = leaf.grad as Tensor | null;
      if (!gradient) continue;
      expect(gradient.shape).toEqual(leaf.shape);
      const values = [...gradient.floatsSync()];
      const wrong = y.size === 0 ? values.filter((v) => v !== 0) : values.filter((v) => !Number.isFinite(v));
      expect(wrong, `gradient of ${name} [${a}, ${b}, ${c}] at [${leaf.shape.join()}]`).toEqual([]);
    }
  }
}

describe.each(testDevices())("sizes of 0 on %s", (device) => {
  it.each(Object.entries(cases))("%s", (name, entry) => {
    const before = bnb.defaultDevice();
    bnb.setDefaultDevice(device);
    try {
      for (const dtype of floats) for (const size of sizes) tidy(() => check(name, entry, dtype, size));
    } finally {
      bnb.setDefaultDevice(before);
    }
  });
});

it("names every op", () => {
  const functions = Object.entries(ops).filter(([name, value]) => typeof value === "function" && /^[a-z]/.test(name));
  const missing = functions.map(([name]) => name).filter((name) => !(name in cases) && !apart.test(name));
  expect(missing).toEqual([]);
});
