// Arguments that fit: for each public function, method and class, what makes a list of arguments from the generator.
// `plan.mjs` calls them as they are or spoils some. The names that need no arguments of their own, or take one tensor,
// are in lists.
import { dtypes, elements, floats, ids, number, shape, size, tensor } from "./values.mjs";

/** @typedef {import("./values.mjs").Random} Random */
/** @typedef {(B: any, r: Random) => unknown[]} Recipe */

/** @param {Random} r */
const blocksize = (r) => r.pick([64, 64, 32, 128, 256, 4096, 16]);
/** @param {Random} r */
const quantType = (r) => r.pick(["nf4", "fp4", "af4", "int4"]);
/** @param {Random} r */
const axis = (r) => r.pick([0, 1, -1, 2]);
/** @param {Random} r */
const float = (r) => r.pick(["float32", "float32", "float16", "bfloat16"]);
/** @param {any} B @param {Random} r @param {number[]} [dims] @param {string} [dtype] */
const floatTensor = (B, r, dims, dtype = float(r)) => tensor(B, r, dims, dtype);
/** @param {any} B @param {Random} r */
const generator = (B, r) => new B.Generator(r.int(100));

/** A matrix in 4 bits: [packed, state]. @param {any} B @param {Random} r @param {number[]} dims */
const packed4bit = (B, r, dims) =>
  B.quantize4bit(B.randn(dims, { dtype: float(r) }), {
    quantType: quantType(r),
    blocksize: blocksize(r),
    compressStatistics: r.chance(0.3),
  });

/**
 * Gates, ups and downs of experts, and how wide their input is.
 * @param {any} B @param {Random} r @param {number} count @returns {[lists: any[][], hidden: number]}
 */
const experts = (B, r, count) => {
  const [width, hidden, isQuantized, dtype] = [size(r), r.pick([64, 3, 20]), r.chance(0.5), float(r)];
  const matrix = (/** @type {number[]} */ dims) => {
    if (!isQuantized) return B.randn(dims, { dtype });
    const [packed, state] = packed4bit(B, r, dims);
    return state.quantized(packed);
  };
  const list = (/** @type {number[]} */ dims) => Array.from({ length: count }, () => matrix(dims));
  return [[list([width, hidden]), list([width, hidden]), list([hidden, width])], hidden];
};

/** A matrix in 8 bits: [codes, statistics of rows]. @param {any} B @param {number[]} dims */
const rows8bit = (B, dims) => {
  const { codes, stats } = B.int8VectorwiseQuant(B.randn(dims));
  return [codes, stats];
};

/** Three pages of 16 tokens for one head, perhaps in int8. @param {any} B @param {Random} r @param {number} d */
const kvLayer = (B, r, d) => {
  const dtype = r.pick(["float32", "float16", "bfloat16", "int8"]);
  const make = () => B.zeros([3, 1, 16, d], { dtype });
  const scales = () => B.zeros([3, 1, 16]);
  return { keys: make(), values: make(), ...(dtype === "int8" && { keyScales: scales(), valueScales: scales() }) };
};

export const unary = [
  ...["neg", "abs", "sign", "square", "reciprocal", "sqrt", "rsqrt", "exp", "log", "sigmoid", "tanh", "relu", "silu"],
  ...["gelu", "geluTanh", "softmax", "logSoftmax", "clone", "softplus"],
];
export const binary = ["add", "sub", "mul", "div", "maximum", "minimum", "swiglu"];
export const reductions = ["sum", "mean", "max", "min", "argmax"];

/** @type {Record<string, Recipe>} */
export const functions = {
  tensor: (_, r) => {
    const dims = shape(r);
    return [
      new Float32Array(elements(dims)),
      r.some({ shape: dims, dtype: r.pick(dtypes), requiresGrad: false, device: "cpu" }),
    ];
  },
  fromBytes: (_, r) => {
    const dims = shape(r, 2);
    return [new Uint8Array(4 * elements(dims)), { dtype: "float32", shape: dims }];
  },
  zeros: (_, r) => [shape(r), r.some({ dtype: r.pick(dtypes) })],
  ones: (_, r) => [shape(r), r.some({ dtype: r.pick(dtypes) })],
  empty: (_, r) => [shape(r), r.some({ dtype: r.pick(dtypes) })],
  full: (_, r) => [shape(r), number(r), r.some({ dtype: r.pick(dtypes) })],
  arange: (_, r) => [r.int(5), r.int(50), r.pick([1, 0.5, 2]), r.some({ dtype: r.pick(dtypes) })],
  rand: (B, r) => [shape(r), r.some({ low: -1, high: 1, dtype: float(r), generator: generator(B, r) })],
  randn: (B, r) => [shape(r), r.some({ mean: 0, std: 1, dtype: float(r), generator: generator(B, r) })],
  randint: (B, r) => [shape(r), { high: 1 + r.int(9), ...r.some({ low: 0, generator: generator(B, r) }) }],
  manualSeed: (_, r) => [r.int(1000)],
  backward: (B, r) => {
    const x = tensor(B, r, shape(r), "float32");
    if (!x.disposed) x.requiresGrad = true;
    const y = B.mul(x, 2);
    return [y, B.ones(y.shape)];
  },
  noGrad: (B, r) => [() => B.exp(floatTensor(B, r))],
  tidy: (B, r) => [() => [floatTensor(B, r), floatTensor(B, r)]],
  keep: (B, r) => [tensor(B, r)],
  copyInto: (B, r) => {
    const [a, b] = [size(r), size(r)];
    return [B.zeros([a, b]), tensor(B, r, [Math.min(a, 2), b], "float32"), r.some({ axis: 0, start: 0 })];
  },
  cast: (B, r) => [tensor(B, r), r.pick(dtypes)],
  clamp: (B, r) => [floatTensor(B, r), -r.next(), r.next()],
  pow: (B, r) => [floatTensor(B, r), number(r)],
  to: (B, r) => [tensor(B, r), "cpu"],
  crossEntropy: (B, r) => {
    const [n, c] = [size(r), size(r) || 1];
    return [floatTensor(B, r, [n, c]), ids(B, r, [n], c), r.some({ ignoreIndex: -100, reduction: "mean" })];
  },
  dropout: (B, r) => [floatTensor(B, r), r.next(), r.some({ training: r.chance(0.5), generator: generator(B, r) })],
  embedding: (B, r) => {
    const [n, d] = [size(r) || 1, size(r)];
    return [ids(B, r, shape(r, 2), n), floatTensor(B, r, [n, d]), r.some({ paddingIdx: 0, scaleGradByFreq: true })];
  },
  embeddingRenorm: (B, r) => [
    ids(B, r, [size(r)], 4),
    tensor(B, r, [4, size(r)], "float32"),
    1,
    r.pick([2, 1, Infinity, 3]),
  ],
  embedding4bit: (B, r) => {
    const [packed, state] = packed4bit(B, r, [8, 64]);
    return [ids(B, r, [size(r)], 8), state.quantized(packed), float(r)];
  },
  embedding8bit: (B, r) => [ids(B, r, [size(r)], 8), ...rows8bit(B, [8, size(r)]), float(r)],
  int8VectorwiseQuant: (B, r) => [floatTensor(B, r, [size(r), size(r)]), r.some({ threshold: r.pick([0, 1, 6]) })],
  int8VectorwiseDequant: (B, r) => rows8bit(B, [size(r), size(r)]),
  int8LinearMatmul: (B, r) => {
    const k = size(r);
    return [tensor(B, r, [size(r), k], "int8"), tensor(B, r, [size(r), k], "int8")];
  },
  int8MmDequant: (B, r) => {
    const [m, n] = [size(r), size(r)];
    return [tensor(B, r, [m, n], "int32"), B.ones([m]), B.ones([n]), r.some({ bias: B.ones([n]), dtype: float(r) })];
  },
  matmul8bit: (B, r) => {
    const [m, n, k] = [size(r), size(r), size(r)];
    return [
      floatTensor(B, r, [m, k]),
      ...rows8bit(B, [n, k]),
      r.some({ bias: floatTensor(B, r, [n]), threshold: 1, weight: floatTensor(B, r, [n, k]) }),
    ];
  },
  layerNorm: (B, r) => {
    const [d, dtype] = [size(r), float(r)];
    const [w, b] = [tensor(B, r, [d], dtype), tensor(B, r, [d], dtype)];
    return [tensor(B, r, [size(r), d], dtype), w, r.pick([b, null]), r.pick([1e-5, 0])];
  },
  rmsNorm: (B, r) => {
    const [d, dtype] = [size(r), float(r)];
    return [tensor(B, r, [size(r), d], dtype), tensor(B, r, [d], dtype), 1e-6];
  },
  linear4bit: (B, r) => {
    const [packed, state] = packed4bit(B, r, [size(r), 64]);
    return [floatTensor(B, r, [size(r), 64]), state.quantized(packed)];
  },
  linear4bitEach: (B, r) => {
    const weights = [8, 16].map((n) => {
      const [packed, state] = packed4bit(B, r, [n, 64]);
      return state.quantized(packed);
    });
    return [floatTensor(B, r, [size(r), 64]), weights];
  },
  linear4bitSwiglu: (B, r) => {
    const [packed, state] = packed4bit(B, r, [size(r), 64]);
    const weight = state.quantized(packed);
    return [floatTensor(B, r, [size(r), 64]), weight, weight];
  },
  chooseExperts: (B, r) => {
    const count = 1 + r.int(20);
    return [floatTensor(B, r, [size(r), count]), 1 + r.int(count), r.some({ normalize: true })];
  },
  expertWeights: (B, r) => {
    const [list] = experts(B, r, 1 + r.int(3));
    return list;
  },
  expertsSwiglu: (B, r) => {
    const [count, tokens, choices] = [1 + r.int(3), size(r), r.int(3)];
    const [lists, hidden] = experts(B, r, count);
    const [x, dtype] = [[tokens, hidden], float(r)];
    const choice = { shares: B.rand([tokens, choices]), experts: ids(B, r, [tokens, choices], count) };
    return [tensor(B, r, x, dtype), choice, B.expertWeights(...lists), r.pick([null, tensor(B, r, x, dtype)])];
  },
  matmul4bit: (B, r) => {
    const k = r.pick([64, 128, 33]);
    const [packed, state] = packed4bit(B, r, [size(r), k]);
    return [floatTensor(B, r, [size(r), k]), packed, state, r.some({ bias: null, activationQuant: "none" })];
  },
  gemv4bit: (B, r) => {
    const [packed, state] = packed4bit(B, r, [size(r), 64]);
    return [floatTensor(B, r, [1, 64]), packed, state];
  },
  linear4bitPlan: (_, r) => [1 + r.int(500), 64 * (1 + r.int(64))],
  quantize4bit: (B, r) => [
    floatTensor(B, r),
    r.some({
      blocksize: blocksize(r),
      compressStatistics: true,
      quantType: quantType(r),
      quantStorage: r.pick(["uint8", "float32", "bfloat16"]),
    }),
  ],
  quantizeNf4: (B, r) => [floatTensor(B, r), r.some({ blocksize: blocksize(r) })],
  quantizeFp4: (B, r) => [floatTensor(B, r), r.some({ blocksize: blocksize(r) })],
  dequantize4bit: (B, r) => {
    const [packed, state] = packed4bit(B, r, shape(r));
    return [packed, { quantState: state }];
  },
  dequantizeNf4: (B, r) => {
    const [packed, state] = packed4bit(B, r, shape(r));
    return [packed, { quantState: state }];
  },
  dequantizeFp4: (B, r) => [tensor(B, r, [32, 1], "uint8"), { absmax: B.ones([1]), blocksize: 64, dtype: "float32" }],
  quantizeBlockwise: (B, r) => [
    floatTensor(B, r),
    r.some({ blocksize: blocksize(r), nested: true, code: B.createDynamicMap() }),
  ],
  dequantizeBlockwise: (B, r) => {
    const [codes, state] = B.quantizeBlockwise(B.randn(shape(r)), { blocksize: blocksize(r), nested: r.chance(0.5) });
    return [codes, { quantState: state }];
  },
  expandAbsmax: (B, r) => [B.quantizeBlockwise(B.randn(shape(r)), { nested: r.chance(0.8) })[1]],
  get4bitType: (_, r) => [quantType(r), r.some({ blocksize: 64, device: "cpu" })],
  createDynamicMap: (_, r) => [r.chance(0.5), 7, 8],
  createLinearMap: (_, r) => [r.chance(0.5), r.pick([8, 4, 2]), r.chance(0.5)],
  createFp8Map: () => [true, 5, 2, 8],
  createNormalMap: () => [0.9677083, true],
  matmul: (B, r) => {
    const [m, k, n, dtype] = [size(r), size(r), size(r), float(r)];
    const lead = r.chance(0.2) ? [2] : [];
    return [tensor(B, r, [...lead, m, k], dtype), tensor(B, r, [...lead, k, n], dtype), r.some({ transposeA: false })];
  },
  linear: (B, r) => {
    const [m, k, n, dtype] = [size(r), size(r), size(r), float(r)];
    return [tensor(B, r, [m, k], dtype), tensor(B, r, [n, k], dtype), r.pick([null, tensor(B, r, [n], dtype)])];
  },
  fmaPeak: (B, r) => [r.int(100), B.defaultDevice()],
  attention: (B, r) => {
    const [t, s, heads, d, dtype] = [1 + r.int(5), 5 + r.int(8), r.pick([1, 2, 4]), r.pick([4, 8, 33]), float(r)];
    const [k, v] = [0, 0].map(() => tensor(B, r, [2, s, 1, d], dtype));
    const rules = r.some({
      causal: r.chance(0.5),
      scale: 0.3,
      length: s,
      window: 1 + r.int(9),
      softcap: 3,
      sinks: B.ones([heads]),
    });
    return [tensor(B, r, [2, t, heads, d], dtype), k, v, rules];
  },
  rope: (B, r) => {
    const [t, d] = [1 + r.int(5), r.pick([4, 8])];
    return [floatTensor(B, r, [1, t, 2, d]), B.ones([8, d]), B.zeros([8, d]), r.int(3)];
  },
  kvAppend: (B, r) => {
    const [t, d, dtype] = [1 + r.int(3), 4, float(r)];
    const [q, k, v] = [2, 1, 1].map((h) => B.randn([t, h, d], { dtype }));
    const ids = (/** @type {number} */ n) => B.tensor(Int32Array.from({ length: t }, () => r.int(n)));
    const rotary = { cos: B.ones([8, 2]), sin: B.zeros([8, 2]), positions: ids(8) };
    return [q, k, v, kvLayer(B, r, d), ids(48), r.pick([null, rotary])];
  },
  loraRows: (B, r) => {
    const [t, n, rank, k, m, dtype] = [size(r), size(r), size(r), size(r), size(r), float(r)];
    const segment = B.tensor(
      Int32Array.from({ length: n + 1 }, () => r.int(t + 2) - 1),
      { shape: [n + 1] },
    );
    const [y, x, a, b] = [
      [t, m],
      [t, k],
      [n, rank, k],
      [n, rank, m],
    ].map((dims) => tensor(B, r, dims, dtype));
    return [y, x, a, b, segment];
  },
  pagedAttention: (B, r) => {
    const [t, d, heads] = [1 + r.int(4), 4, r.pick([1, 2])];
    /** @param {number[]} values @param {number[]} dims */
    const int = (values, dims) => B.tensor(values, { shape: dims, dtype: "int32" });
    const table = { starts: int([0, t], [2]), lengths: int([t + r.int(20)], [1]), pages: int([1, 2], [1, 2]) };
    return [
      tensor(B, r, [t, heads, d], float(r)),
      kvLayer(B, r, d),
      table,
      r.some({ window: 1 + r.int(9), softcap: 2 }),
    ];
  },
  sampleToken: (B, r) => [
    floatTensor(B, r, [1 + r.int(3), 1 + r.int(40)]),
    r.some({ temperature: r.pick([0, 1, 0.1]), topK: 1 + r.int(5), topP: r.next(), seed: r.int(9), step: r.int(9) }),
  ],
  sampleTokens: (B, r) => {
    const rows = 1 + r.int(3);
    const vocabulary = 1 + r.int(70);
    const value = (/** @type {number[]} */ choices) => B.full([rows], r.pick(choices));
    const ints = (/** @type {number[]} */ shape, most = 3) => ids(B, r, shape, most);
    return [
      floatTensor(B, r, [rows, vocabulary]),
      {
        ...{ temperature: value([0, 1, 0.1]), topP: value([1, 0.5]), minP: value([0, 0.3]), typicalP: value([1, 0.4]) },
        ...{ repetition: value([1, 2]), presence: value([0, 1]), frequency: value([0, 0.5]) },
        ...{ topK: ints([rows]), seed: ints([rows, 2]), step: ints([rows]) },
        ...r.some({
          counts: ints([rows, vocabulary]),
          mask: ints([rows, Math.ceil(vocabulary / 32)]),
          bias: { offsets: B.tensor(new Int32Array(rows + 1).fill(1, 1)), ids: ints([1], 1), values: B.rand([1]) },
        }),
      },
      r.some({ best: r.int(21), logprobs: r.chance(0.5) }),
    ];
  },
  reshape: (B, r) => [tensor(B, r, [4, 6]), r.pick([[24], [-1], [2, -1], [6, 4], [1, 24, 1]])],
  permute: (B, r) => [
    tensor(B, r, shape(r, 3)),
    r.pick([
      [2, 0, 1],
      [0, 1, 2],
      [-1, 0, 1],
    ]),
  ],
  transpose: (B, r) => [tensor(B, r, shape(r, 3)), 0, r.pick([1, -1, 2])],
  slice: (B, r) => [tensor(B, r, [8, 3]), 0, r.int(8), r.pick([8, -1, 20, undefined])],
  concat: (B, r) => {
    const [d, dtype] = [size(r), r.pick(dtypes)];
    return [[tensor(B, r, [2, d], dtype), tensor(B, r, [3, d], dtype)], 0];
  },
  broadcastTo: (B, r) => [
    tensor(B, r, [1, 3]),
    r.pick([
      [4, 3],
      [2, 4, 3],
      [0, 3],
      [1, 3],
    ]),
  ],
  capture: (B, r) => {
    const x = B.randn([4]);
    const y = B.zeros([4]);
    return [() => B.copyInto(y, B.add(x, r.int(3)))];
  },
  seededRandom: (_, r) => [r.int(99)],
  setDefaultDevice: () => ["cpu"],
  synchronize: () => [],
  emptyCache: () => [],
  memory: () => [],
  devices: () => [],
  defaultDevice: () => [],
  gpuStatus: () => [],
  isGradEnabled: () => [],
};
for (const name of unary) functions[name] = (B, r) => [floatTensor(B, r)];
for (const name of binary) {
  functions[name] = (B, r) => {
    const [dims, dtype] = [shape(r), float(r)];
    return [
      tensor(B, r, dims, dtype),
      r.chance(0.3) ? number(r) : tensor(B, r, r.chance(0.2) ? dims.slice(1) : dims, dtype),
    ];
  };
}
for (const name of reductions) {
  functions[name] = (B, r) => [
    floatTensor(B, r, shape(r, 1 + r.int(3))),
    r.some({ axis: axis(r), keepDims: r.chance(0.5) }),
  ];
}

/** @param {Random} r */
const layerOptions = (r) => r.some({ bias: r.chance(0.5), dtype: float(r), device: "cpu" });
const fourBit = (/** @type {Random} */ r) => ({
  ...layerOptions(r),
  ...r.some({ blocksize: blocksize(r), compressStatistics: r.chance(0.5), computeDtype: float(r) }),
});

/**
 * Layers: the arguments of the constructor, and an input for forward given the first two of them.
 * @type {Record<string, { make: Recipe, input: (B: any, r: Random, args: any[]) => unknown[] }>}
 */
export const layers = {
  Linear: { make: (_, r) => [size(r), size(r), layerOptions(r)], input: rowsOf },
  Linear4bit: {
    make: (_, r) => [r.pick([64, 33, 128, 0]), size(r), { ...fourBit(r), ...r.some({ quantType: quantType(r) }) }],
    input: rowsOf,
  },
  LinearNF4: { make: (_, r) => [64, size(r), fourBit(r)], input: rowsOf },
  LinearFP4: { make: (_, r) => [64, size(r), fourBit(r)], input: rowsOf },
  Linear8bitLt: {
    make: (_, r) => [
      size(r),
      size(r),
      { ...layerOptions(r), ...r.some({ hasFp16Weights: r.chance(0.5), threshold: 6 }) },
    ],
    input: rowsOf,
  },
  Embedding: {
    make: (_, r) => [8, size(r), r.some({ paddingIdx: 0, maxNorm: 1, scaleGradByFreq: true, dtype: float(r) })],
    input: idsOf,
  },
  StableEmbedding: { make: (_, r) => [8, size(r), r.some({ paddingIdx: 0, dtype: float(r) })], input: idsOf },
  Embedding4bit: {
    make: (_, r) => [8, r.pick([64, 33]), r.some({ quantType: quantType(r), dtype: float(r) })],
    input: idsOf,
  },
  EmbeddingNF4: { make: () => [8, 64], input: idsOf },
  EmbeddingFP4: { make: () => [8, 64], input: idsOf },
  Embedding8bit: { make: (_, r) => [8, size(r)], input: idsOf },
  RMSNorm: { make: (_, r) => [size(r)], input: (B, r, [d]) => [tensor(B, r, [3, d], "float32")] },
  LayerNorm: { make: (_, r) => [size(r)], input: (B, r, [d]) => [tensor(B, r, [3, d], "float32")] },
  Dropout: { make: (_, r) => [r.next()], input: (B, r) => [floatTensor(B, r)] },
  ReLU: { make: () => [], input: (B, r) => [floatTensor(B, r)] },
  SiLU: { make: () => [], input: (B, r) => [floatTensor(B, r)] },
  Tanh: { make: () => [], input: (B, r) => [floatTensor(B, r)] },
  Sigmoid: { make: () => [], input: (B, r) => [floatTensor(B, r)] },
  GELU: { make: (_, r) => [r.some({ approximate: r.pick(["none", "tanh"]) })], input: (B, r) => [floatTensor(B, r)] },
  Softmax: { make: (_, r) => [r.int(4) - 2], input: (B, r) => [floatTensor(B, r)] },
  Flatten: { make: (_, r) => [r.int(3), r.int(3) - 2], input: (B, r) => [floatTensor(B, r)] },
};

/** @param {any} B @param {Random} r @param {any[]} args */
function rowsOf(B, r, [inputs]) {
  return [floatTensor(B, r, r.chance(0.1) ? [inputs] : [...shape(r, 1 + r.int(2)), inputs])];
}
/** @param {any} B @param {Random} r */
function idsOf(B, r) {
  return [ids(B, r, shape(r, 1 + r.int(2)), 8)];
}

/** Options of a small model. @param {Random} r */
export const llamaOptions = (r) => ({
  vocabSize: 16,
  hiddenSize: 64,
  intermediateSize: 64,
  numHiddenLayers: 1,
  numAttentionHeads: 4,
  ...r.some({
    numKeyValueHeads: 2,
    maxPositionEmbeddings: 32,
    tieWordEmbeddings: true,
    rmsNormEps: 1e-6,
    ropeTheta: 100,
  }),
});

/** Optimizers and their options besides `lr`. @param {Random} r */
export const optimizerOptions = (r) => ({
  lr: r.pick([1e-3, 0.1, 0, 1]),
  ...r.some({
    weightDecay: 0.1,
    optimBits: r.pick([8, 32]),
    min8bitSize: r.pick([0, 4096]),
    maxUnorm: 0.1,
    skipZeros: true,
  }),
});

// Classes whose objects the library alone makes, and its error.
const made = new Set(["Device", "Graph", "Int8Rows", "Int8DoubleQuant", "BnbError"]);

/** Names of all exports that have neither a recipe nor a scenario here, called with anything. @param {any} B */
export function others(B) {
  const known = new Set([...Object.keys(functions), ...Object.keys(layers)]);
  // `fmaPeak`, `train` and friends are in scenarios; a setter of global state would disturb later calls.
  return Object.entries({ ...B, ...B.functional, ...B.nn, ...B.nn.init, ...B.optim, ...B.train })
    .filter(([name, value]) => typeof value === "function" && !known.has(name) && !made.has(name))
    .map(([name, value]) => /** @type {const} */ ([name, value]));
}

export { floats };
