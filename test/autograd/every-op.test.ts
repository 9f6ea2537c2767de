// Every differentiable op: each mix of dtypes and each rank that its forward takes, its backward takes, too.
import { describe, expect, it } from "vitest";
import * as ops from "../../src/ops/index.js";
import { tensor } from "../../src/tensor/create.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import type { BackwardCase } from "../helpers/backward-sweep.js";
import { checkBackward, floats, representable } from "../helpers/backward-sweep.js";
import { testDevices } from "../helpers/devices.js";

const named = { ...ops };

const ranks = [[], [1], [5], [2, 3], [2, 1, 3], [2, 1, 2, 2], [0], [2, 0, 3]] as const;
const alone = ranks.map((shape) => [shape]);
const rows = ranks.filter((shape) => shape.length > 0 && shape.at(-1) !== 0);
const pairs = [
  ...ranks.map((shape) => [shape, shape]),
  [[2, 3], []],
  [[], [3]],
  [
    [2, 1, 3],
    [4, 1],
  ],
];

/** Ops that have no gradient, because their results are codes, indices, random numbers, plans or writes in place. */
const withoutGradient = new Set(
  (
    "argmax expertWeights createDynamicMap createFp8Map createLinearMap createNormalMap get4bitType quantTypes embedding4bit " +
    "embedding8bit embeddingRenorm int8LinearMatmul int8MmDequant int8VectorwiseDequant int8VectorwiseQuant " +
    "int8DoubleQuant gemv4bit linear4bitEach linear4bitSwiglu quantize4bit quantizeFp4 quantizeNf4 dequantize4bit " +
    "dequantizeFp4 dequantizeNf4 quantizeBlockwise dequantizeBlockwise expandAbsmax copyInto kvAppend loraRows " +
    "pagedAttention sampleToken sampleTokens " +
    "manualSeed rand randn randint bernoulli randperm uniform normal fmaPeak packDictToTensor unpackTensorToDict"
  ).split(" "),
);

function casesOn(device: string): BackwardCase[] {
  const put = (values: ArrayLike<number>, shape: readonly number[]): Tensor =>
    tensor(Float32Array.from(values), { shape, device });
  const ids = (values: readonly number[], shape: readonly number[]): Tensor =>
    tensor(Int32Array.from(values), { shape, device });
  const any = (): boolean => true;

  const unary = (
    ["neg", "abs", "sign", "square", "exp", "sigmoid", "tanh", "relu", "silu", "gelu", "geluTanh"] as const
  ).map((name): BackwardCase => ({ name, shapes: alone, fn: named[name] }));
  const soft: BackwardCase = { name: "softplus", shapes: alone, fn: (x) => named.softplus(x as Tensor, { beta: 2 }) };
  const losses = (["mseLoss", "l1Loss", "bceWithLogitsLoss"] as const).map(
    (name): BackwardCase => ({
      name,
      shapes: alone.filter(([s]) => !s?.includes(0 as never)).map(([s = []]) => [s, s]),
      fn: (x, target) => named[name](x as Tensor, target as Tensor),
    }),
  );
  const positive = (["reciprocal", "sqrt", "rsqrt", "log"] as const).map(
    (name): BackwardCase => ({ name, shapes: alone, positive: true, fn: named[name] }),
  );
  const binary = (["add", "sub", "mul", "div", "maximum", "minimum"] as const).flatMap((name): BackwardCase[] => [
    { name, shapes: pairs, positive: name === "div", fn: (a, b) => named[name](a as Tensor, b as Tensor) },
    { name, shapes: alone, fn: (a) => named[name](a as Tensor, 0.7) },
  ]);
  const reductions = (["sum", "mean", "max", "min"] as const).flatMap((name): BackwardCase[] => [
    { name, shapes: alone.filter(([s]) => !s?.includes(0 as never)), fn: (x) => named[name](x as Tensor) },
    {
      name,
      shapes: rows.map((shape) => [shape]),
      fn: (x) => named[name](x as Tensor, { axis: -1 }),
    },
    { name, shapes: [[[2, 3, 2]], [[2, 3]]], fn: (x) => named[name](x as Tensor, { axis: 0, keepDims: true }) },
  ]);
  const moves: BackwardCase[] = [
    { name: "reshape", shapes: alone, fn: (x) => ops.reshape(x as Tensor, [x?.size as number, 1]) },
    {
      name: "permute",
      shapes: [[[2, 3]], [[3, 1, 2, 1]]],
      fn: (x) => ops.permute(x as Tensor, [...x!.shape.keys()].reverse()),
    },
    { name: "transpose", shapes: [[[2, 3]], [[2, 1, 3]], [[2, 0]]], fn: (x) => ops.transpose(x as Tensor) },
    { name: "slice", shapes: [[[5]], [[3, 2]], [[3, 0]]], fn: (x) => ops.slice(x as Tensor, 0, 1, 3) },
    {
      name: "concat",
      shapes: [
        [
          [2, 3],
          [2, 1],
        ],
        [[1], [2]],
        [
          [0, 0],
          [0, 2],
        ],
      ].map((s) => s),
      fn: (a, b) => ops.concat([a as Tensor, b as Tensor], -1),
    },
    {
      name: "broadcastTo",
      shapes: [[[]], [[3]], [[2, 1]], [[2, 3]]],
      fn: (x) => ops.broadcastTo(x as Tensor, [4, 2, 3]),
    },
    { name: "to", shapes: alone, fn: (x) => ops.to(x as Tensor, device) },
    { name: "clone", shapes: alone, fn: ops.clone },
    ...floats.map(
      (dtype): BackwardCase => ({
        name: "cast",
        shapes: alone,
        fn: (x) => ops.cast(x as Tensor, dtype),
        smooth: (x) => ops.cast(x as Tensor, "float32"),
      }),
    ),
  ];
  const matrices: BackwardCase[] = [
    {
      name: "matmul",
      shapes: [
        [
          [2, 3],
          [3, 4],
        ],
        [
          [2, 2, 3],
          [3, 4],
        ],
        [
          [2, 2, 3],
          [2, 3, 1],
        ],
        [
          [2, 1, 2, 3],
          [2, 1, 3, 4],
        ],
        [
          [0, 3],
          [3, 2],
        ],
        [
          [2, 0],
          [0, 2],
        ],
        [
          [0, 2, 3],
          [3, 2],
        ],
      ],
      fn: (a, b) => ops.matmul(a as Tensor, b as Tensor),
    },
    {
      name: "matmul",
      shapes: [
        [
          [3, 2],
          [4, 3],
        ],
        [
          [2, 3, 2],
          [4, 3],
        ],
        [
          [2, 3, 2],
          [2, 4, 3],
        ],
      ],
      fn: (a, b) => ops.matmul(a as Tensor, b as Tensor, { transposeA: true, transposeB: true }),
    },
    {
      name: "linear",
      shapes: [
        [[3], [2, 3], [2]],
        [[4, 3], [2, 3], [2]],
        [[2, 1, 3], [2, 3], [2]],
        [[2, 1, 1, 3], [2, 3], [2]],
        [[0, 3], [2, 3], [2]],
        [[2, 3], [0, 3], [0]],
      ],
      fn: (x, w, b) => ops.linear(x as Tensor, w as Tensor, b as Tensor),
    },
    { name: "linear", shapes: [[[3], [2, 3]]], fn: (x, w) => ops.linear(x as Tensor, w as Tensor, null) },
  ];
  const [n, k] = [3, 64];
  const w = put(representable(n * k, 7), [n, k]);
  const [packed, state] = ops.quantize4bit(w, { quantType: "nf4", compressStatistics: true });
  const weight4 = state.quantized(packed);
  const float4 = ops.dequantize4bit(packed, { quantState: state });
  const codes = ops.int8VectorwiseQuant(w);
  const float8 = ops.int8VectorwiseDequant(codes.codes, codes.stats);
  const inputs = [[k], [2, k], [2, 1, k], [1, 2, 1, k], [0, k]];
  const quantized: BackwardCase[] = [
    {
      name: "linear4bit",
      shapes: inputs.map((s) => [s, [n]]),
      takes: any,
      fn: (x, b) => ops.linear4bit(x as Tensor, weight4, b as Tensor),
      smooth: (x, b) => ops.linear(x as Tensor, float4, b as Tensor),
    },
    {
      name: "linear4bit",
      shapes: inputs.map((s) => [s, [...s.slice(0, -1), n]]),
      fn: (x, r) => ops.linear4bit(x as Tensor, weight4, null, r as Tensor),
      smooth: (x, r) => ops.add(ops.linear(x as Tensor, float4, null), r as Tensor),
    },
    {
      name: "matmul4bit",
      shapes: inputs.map((s) => [s, [n]]),
      takes: any,
      fn: (x, b) => ops.matmul4bit(x as Tensor, packed, state, { bias: b as Tensor }),
      smooth: (x, b) => ops.linear(x as Tensor, float4, b as Tensor),
    },
    ...[0, 1.5].map(
      (threshold): BackwardCase => ({
        name: "matmul8bit",
        shapes: inputs.map((s) => [s, [n]]),
        takes: any,
        fn: (x, b) => ops.matmul8bit(x as Tensor, codes.codes, codes.stats, { bias: b as Tensor, threshold }),
        smooth: (x, b) => ops.linear(x as Tensor, float8, b as Tensor),
      }),
    ),
    {
      name: "matmul8bit",
      shapes: inputs.map((s) => [s, [n, k], [n]]),
      takes: any,
      fn: (x, weight, b) =>
        ops.matmul8bit(x as Tensor, codes.codes, codes.stats, {
          weight: weight as Tensor,
          bias: b as Tensor,
          threshold: 1.5,
        }),
      smooth: (x, weight, b) => ops.linear(x as Tensor, weight as Tensor, b as Tensor),
    },
  ];
  const experts = ids([2, 0, 1, 2], [2, 2]);
  const matrices3 = (rows: number, cols: number, seed: number) =>
    [0, 1, 2].map((e) => put(representable(rows * cols, seed + e), [rows, cols]));
  const [gates, ups, downs] = [matrices3(2, 3, 1), matrices3(2, 3, 4), matrices3(3, 2, 7)];
  const mlps = ops.expertWeights(gates, ups, downs);
  const mixtures: BackwardCase[] = [
    {
      name: "chooseExperts",
      shapes: [[[2, 3]], [[1, 2]], [[0, 4]]],
      fn: (x) => ops.chooseExperts(x as Tensor, 2).shares,
    },
    ...[true, false].map(
      (hasResidual): BackwardCase => ({
        name: "expertsSwiglu",
        shapes: [
          hasResidual
            ? [
                [2, 3],
                [2, 3],
              ]
            : [[2, 3]],
        ],
        fn: (x, r) =>
          ops.expertsSwiglu(x as Tensor, { shares: put([1, 0.5, 0.25, 2], [2, 2]), experts }, mlps, r ?? null),
      }),
    ),
  ];
  const tables = [
    put([1, 0.5, 0.25, -0.5, 0.75, 1, 0.5, 0.25], [4, 2]),
    put([0, 0.5, 1, -0.5, 0.25, 0, 0.5, 1], [4, 2]),
  ];
  const models: BackwardCase[] = [
    { name: "softmax", shapes: rows.map((s) => [s]), fn: ops.softmax },
    { name: "logSoftmax", shapes: rows.map((s) => [s]), fn: ops.logSoftmax },
    {
      name: "rmsNorm",
      shapes: rows.filter((s) => s.at(-1) !== 1).map((s) => [s, [s.at(-1) as number]]),
      fn: (x, g) => ops.rmsNorm(x as Tensor, g as Tensor),
    },
    {
      name: "layerNorm",
      shapes: rows.filter((s) => s.at(-1) !== 1).map((s) => [s, [s.at(-1) as number], [s.at(-1) as number]]),
      fn: (x, g, b) => ops.layerNorm(x as Tensor, g as Tensor, b as Tensor),
    },
    {
      name: "layerNorm",
      shapes: rows.filter((s) => s.at(-1) !== 1).map((s) => [s, [s.at(-1) as number]]),
      fn: (x, b) => ops.layerNorm(x as Tensor, null, b as Tensor),
    },
    {
      name: "layerNorm",
      shapes: rows.filter((s) => s.at(-1) !== 1).map((s) => [s]),
      fn: (x) => ops.layerNorm(x as Tensor),
    },
    { name: "swiglu", shapes: ranks.map((s) => [s, s]), fn: (a, b) => ops.swiglu(a as Tensor, b as Tensor) },
    { name: "clamp", shapes: alone, fn: (x) => ops.clamp(x as Tensor, -1, 0.5) },
    { name: "pow", shapes: alone, positive: true, fn: (x) => ops.pow(x as Tensor, 1.5) },
    ...[0.25, 0].map(
      (p): BackwardCase => ({
        name: "dropout",
        shapes: alone,
        fn: (x) => ops.dropout(x as Tensor, p, { generator: new ops.Generator(3) }),
      }),
    ),
    {
      name: "rope",
      shapes: [[[1, 3, 2, 4]], [[2, 1, 1, 4]]],
      fn: (x) => ops.rope(x as Tensor, tables[0] as Tensor, tables[1] as Tensor, 1),
    },
    {
      name: "attention",
      shapes: [
        [
          [2, 2, 2, 4],
          [2, 3, 1, 4],
          [2, 3, 1, 4],
        ],
      ],
      fn: (q, key, v) => ops.attention(q as Tensor, key as Tensor, v as Tensor),
    },
    ...([[], [3], [2, 1], [0], [1, 1, 2]] as number[][]).map(
      (shape): BackwardCase => ({
        name: "embedding",
        shapes: [[[4, 3]]],
        fn: (table) => ops.embedding(ids(Array(shape.reduce((a, b) => a * b, 1)).fill(2), shape), table as Tensor),
      }),
    ),
    {
      name: "crossEntropy",
      shapes: [[[4]], [[2, 4]], [[2, 1, 4]]],
      fn: (x) => ops.crossEntropy(x as Tensor, ids(Array(x!.size / 4).fill(1), x!.shape.slice(0, -1))),
    },
  ];
  return [
    ...unary,
    soft,
    soft,
    ...losses,
    ...positive,
    ...binary,
    ...reductions,
    ...moves,
    ...matrices,
    ...quantized,
    ...mixtures,
    ...models,
  ];
}

describe.each(testDevices())("on %s", (device) => {
  const cases = casesOn(device);
  it.each(cases.map((c, i) => [c.name, i] as const))("%s (%i)", (_, i) => {
    const c = cases[i] as BackwardCase;
    for (const shapes of c.shapes) checkBackward(c, shapes, device);
  });

  it("leaves no function of the library out", () => {
    const covered = new Set(cases.map(({ name }) => name));
    const functions = Object.entries(ops).filter(([name, value]) => typeof value === "function" && /^[a-z]/.test(name));
    const missing = functions.map(([name]) => name).filter((name) => !covered.has(name) && !withoutGradient.has(name));
    expect(missing.filter((name) => !name.endsWith("Plan"))).toEqual([]);
  });
});
