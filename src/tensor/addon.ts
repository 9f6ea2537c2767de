// The typed table of native ops, one line each. Arguments cross as integers and numbers: run() (tensor/run.ts)
// replaces tensors by their handles and reads the outputs from the shared results buffer.
import type { NativeRuntime } from "../native/runtime.js";
import { runtime } from "../native/runtime.js";
import type { BlockScales, ExpertWeights, Quantized4Bit } from "./quantized.js";
import type { Tensor } from "./tensor.js";

/** What an op may return: tensors and other native objects, null for an absent one, or plain numbers. */
export type Output = Tensor | Quantized4Bit | BlockScales | ExpertWeights | number | null;

/** A native op: what it takes and what run() gives back. */
export interface NativeOp<Args extends readonly unknown[], Outputs extends readonly Output[]> {
  (...args: unknown[]): void;
  /** Only for the type checker. */
  readonly signature?: (...args: Args) => Outputs;
}

/** dtype, quantType and device arguments are the numbers of tensor/dtype.ts and Device.index. */
export interface NativeOps {
  // tensors
  empty: NativeOp<[shape: readonly number[], dtype: number, device: number], [Tensor]>;
  view: NativeOp<[x: Tensor, shape: readonly number[], dtype: number, offset: number], [Tensor]>;
  toDevice: NativeOp<[x: Tensor, device: number], [Tensor]>;
  blockScales: NativeOp<
    [
      absmax: Tensor,
      nestedAbsmax: Tensor | null,
      nestedCode: Tensor | null,
      offset: Tensor | null,
      blocksize: number,
      nestedBlocksize: number,
    ],
    [BlockScales]
  >;
  quantized4bit: NativeOp<
    [packed: Tensor, scales: BlockScales, shape: readonly number[], type: number, dtype: number, activations: number],
    [Quantized4Bit]
  >;

  // optimizers
  optimizerStep: NativeOp<[tensors: readonly Tensor[], options: Float64Array, nonFiniteCount: Tensor], []>;
  clipGradients: NativeOp<[gradients: readonly Tensor[], rule: number, limit: number], [norm: Tensor]>;

  // elementwise
  unary: NativeOp<[op: number, x: Tensor, exponent: number], [y: Tensor]>;
  unaryBackward: NativeOp<[op: number, dy: Tensor, saved: Tensor, exponent: number], [dx: Tensor]>;
  binary: NativeOp<[op: number, a: Tensor, b: Tensor | null, number: number], [Tensor]>;

  // matrix products
  matmul: NativeOp<[a: Tensor, b: Tensor, transposeA: boolean, transposeB: boolean], [Tensor]>;
  matmulBackward: NativeOp<
    [a: Tensor, b: Tensor, dy: Tensor, transposeA: boolean, transposeB: boolean, needsA: boolean, needsB: boolean],
    [Tensor | null, Tensor | null]
  >;
  linear: NativeOp<[x: Tensor, weight: Tensor, bias: Tensor | null], [Tensor]>;
  linearBackward: NativeOp<
    [x: Tensor, weight: Tensor, dy: Tensor, needsX: boolean, needsWeight: boolean, needsBias: boolean],
    [Tensor | null, Tensor | null, Tensor | null]
  >;
  fmaPeak: NativeOp<[iterations: number, device: number], [Tensor]>;

  // softmax
  softmax: NativeOp<[x: Tensor, log: boolean], [Tensor]>;
  softmaxBackward: NativeOp<[y: Tensor, dy: Tensor, log: boolean], [Tensor]>;

  // attention
  attention: NativeOp<
    [
      q: Tensor,
      k: Tensor,
      v: Tensor,
      scale: number,
      causal: boolean,
      window: number,
      softcap: number,
      sinks: Tensor | null,
      starts: Tensor | null,
      keepLse: boolean,
    ],
    [y: Tensor, lse: Tensor | null]
  >;
  attentionBackward: NativeOp<
    [
      q: Tensor,
      k: Tensor,
      v: Tensor,
      y: Tensor,
      lse: Tensor,
      dy: Tensor,
      scale: number,
      causal: boolean,
      window: number,
      softcap: number,
      sinks: Tensor | null,
      starts: Tensor | null,
    ],
    [dq: Tensor, dk: Tensor, dv: Tensor, dsinks: Tensor | null]
  >;

  // rms_norm
  rmsNorm: NativeOp<[x: Tensor, weight: Tensor, eps: number], [y: Tensor, rstd: Tensor]>;
  rmsNormBackward: NativeOp<
    [dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, wantsWeight: boolean],
    [dx: Tensor, dweight: Tensor | null]
  >;

  // layer_norm
  layerNorm: NativeOp<
    [x: Tensor, weight: Tensor | null, bias: Tensor | null, eps: number],
    [y: Tensor, mean: Tensor, rstd: Tensor]
  >;
  layerNormBackward: NativeOp<
    [
      dy: Tensor,
      x: Tensor,
      weight: Tensor | null,
      mean: Tensor,
      rstd: Tensor,
      wantsWeight: boolean,
      wantsBias: boolean,
    ],
    [dx: Tensor, dweight: Tensor | null, dbias: Tensor | null]
  >;

  // rope
  rope: NativeOp<
    [x: Tensor, cos: Tensor, sin: Tensor, offset: number, inverse: boolean, position: Tensor | null],
    [y: Tensor]
  >;

  // pages of keys and values
  kvAppend: NativeOp<
    [
      q: Tensor,
      k: Tensor,
      v: Tensor,
      keys: Tensor,
      values: Tensor,
      keyScales: Tensor | null,
      valueScales: Tensor | null,
      slots: Tensor,
      cos: Tensor | null,
      sin: Tensor | null,
      positions: Tensor | null,
    ],
    [turned: Tensor]
  >;
  pagedAttention: NativeOp<
    [
      q: Tensor,
      keys: Tensor,
      values: Tensor,
      keyScales: Tensor | null,
      valueScales: Tensor | null,
      starts: Tensor,
      lengths: Tensor,
      pages: Tensor,
      scale: number,
      window: number,
      softcap: number,
      sinks: Tensor | null,
    ],
    [y: Tensor]
  >;

  // lora_rows
  loraRows: NativeOp<[y: Tensor, x: Tensor, a: Tensor, b: Tensor, segment: Tensor], [z: Tensor]>;

  // clamp
  clamp: NativeOp<[x: Tensor, low: number, high: number], [y: Tensor]>;
  clampBackward: NativeOp<[dy: Tensor, x: Tensor, low: number, high: number], [dx: Tensor]>;

  // softplus
  softplus: NativeOp<[x: Tensor, beta: number, threshold: number], [y: Tensor]>;
  softplusBackward: NativeOp<[dy: Tensor, x: Tensor, beta: number, threshold: number], [dx: Tensor]>;

  // swiglu
  swiglu: NativeOp<[gate: Tensor, up: Tensor], [y: Tensor]>;
  swigluBackward: NativeOp<[dy: Tensor, gate: Tensor, up: Tensor], [dgate: Tensor, dup: Tensor]>;

  // embedding
  embedding: NativeOp<[ids: Tensor, weight: Tensor], [y: Tensor]>;
  embeddingBackward: NativeOp<
    [dy: Tensor, ids: Tensor, rows: number, padding: number, scaleByFrequency: boolean],
    [dweight: Tensor]
  >;
  embeddingRenorm: NativeOp<[ids: Tensor, weight: Tensor, maxNorm: number, normType: number], []>;

  // cross_entropy
  crossEntropy: NativeOp<
    [logits: Tensor, targets: Tensor, ignoreIndex: number],
    [loss: Tensor, lse: Tensor, count: Tensor]
  >;
  crossEntropyBackward: NativeOp<
    [dloss: Tensor, logits: Tensor, targets: Tensor, lse: Tensor, count: Tensor, ignoreIndex: number],
    [dlogits: Tensor]
  >;

  // sample_token
  sampleToken: NativeOp<
    [
      logits: Tensor,
      temperature: number,
      topK: number,
      topP: number,
      seed: number,
      step: number,
      position: Tensor | null,
    ],
    [y: Tensor]
  >;

  // sample_tokens
  sampleTokens: NativeOp<
    [
      logits: Tensor,
      temperature: Tensor,
      topP: Tensor,
      minP: Tensor,
      typicalP: Tensor,
      repetition: Tensor,
      presence: Tensor,
      frequency: Tensor,
      topK: Tensor,
      seed: Tensor,
      step: Tensor,
      counts: Tensor | null,
      slots: Tensor | null,
      biasOffsets: Tensor | null,
      biasIds: Tensor | null,
      biasValues: Tensor | null,
      mask: Tensor | null,
      wantsLogprobs: boolean,
      best: number,
    ],
    [ids: Tensor, logprobs: Tensor | null, bestIds: Tensor | null, bestLogprobs: Tensor | null]
  >;

  // blockwise quantization
  codebook: NativeOp<[which: number, device: number], [Tensor]>;
  quantize4bit: NativeOp<
    [A: Tensor, blocksize: number, quantType: number, quantStorage: number, absmax: Tensor | null, out: Tensor | null],
    [packed: Tensor, absmax: Tensor]
  >;
  dequantize4bit: NativeOp<[A: Quantized4Bit, dtype: number, out: Tensor | null], [Tensor]>;
  quantizeBlockwise: NativeOp<
    [
      A: Tensor,
      code: Tensor | null,
      isSigned: boolean,
      offset: Tensor | null,
      blocksize: number,
      absmax: Tensor | null,
      out: Tensor | null,
    ],
    [codes: Tensor, absmax: Tensor]
  >;
  dequantizeBlockwise: NativeOp<
    [A: Tensor, code: Tensor, scales: BlockScales, dtype: number, out: Tensor | null],
    [Tensor]
  >;
  expandScales: NativeOp<[scales: BlockScales], [Tensor]>;
  meanFloat64: NativeOp<[x: Tensor], [Tensor]>;
  binaryBackward: NativeOp<
    [
      op: number,
      dy: Tensor,
      a: Tensor | null,
      b: Tensor | null,
      number: number,
      aShape: readonly number[],
      bShape: readonly number[],
      needsA: boolean,
      needsB: boolean,
    ],
    [da: Tensor | null, db: Tensor | null]
  >;

  // reductions
  reduce: NativeOp<[op: number, x: Tensor, all: boolean, axis: number, keepDims: boolean], [y: Tensor]>;
  reduceBackward: NativeOp<
    [op: number, dy: Tensor, x: Tensor | null, y: Tensor | null, shape: readonly number[], all: boolean, axis: number],
    [dx: Tensor]
  >;
  argmax: NativeOp<[x: Tensor, all: boolean, axis: number, keepDims: boolean], [y: Tensor]>;
  sumTo: NativeOp<[x: Tensor, shape: readonly number[], dtype: number], [y: Tensor]>;

  // moving elements
  permute: NativeOp<[x: Tensor, axes: readonly number[]], [y: Tensor]>;
  broadcastTo: NativeOp<[x: Tensor, shape: readonly number[]], [y: Tensor]>;
  slice: NativeOp<[x: Tensor, axis: number, start: number, end: number], [y: Tensor]>;
  sliceBackward: NativeOp<[dy: Tensor, shape: readonly number[], axis: number, start: number], [dx: Tensor]>;
  concat: NativeOp<[xs: readonly Tensor[], axis: number], [y: Tensor]>;
  copyInto: NativeOp<[dst: Tensor, src: Tensor, axis: number, start: number, position: Tensor | null], []>;
  full: NativeOp<[shape: readonly number[], value: number, dtype: number, device: number], [y: Tensor]>;
  cast: NativeOp<[x: Tensor, dtype: number], [y: Tensor]>;

  // random numbers
  randomFill: NativeOp<
    [
      shape: readonly number[],
      dtype: number,
      device: number,
      distribution: number,
      low: number,
      high: number,
      seed: number,
      offset: number,
    ],
    [y: Tensor]
  >;
  dropout: NativeOp<[x: Tensor, p: number, seed: number, offset: number], [y: Tensor]>;

  // 4-bit linear
  linear4bit: NativeOp<[x: Tensor, weight: Quantized4Bit, bias: Tensor | null, residual: Tensor | null], [y: Tensor]>;
  linear4bitEach: NativeOp<
    [x: Tensor, first: Quantized4Bit, second: Quantized4Bit, third: Quantized4Bit | null],
    [first: Tensor, second: Tensor, third: Tensor | null]
  >;
  linear4bitSwiglu: NativeOp<[x: Tensor, gate: Quantized4Bit, up: Quantized4Bit], [y: Tensor]>;
  linear4bitInto: NativeOp<[x: Tensor, weight: Quantized4Bit, bias: Tensor | null, out: Tensor], []>;
  linear4bitBackward: NativeOp<
    [dy: Tensor, weight: Quantized4Bit, biasDtype: number, needsX: boolean, needsBias: boolean],
    [dx: Tensor | null, dbias: Tensor | null]
  >;
  linear4bitLora: NativeOp<
    [
      x: Tensor,
      weight: Quantized4Bit,
      bias: Tensor | null,
      residual: Tensor | null,
      a: Tensor,
      b: Tensor,
      scaling: number,
      p: number,
      seed: number,
      offset: number,
    ],
    [y: Tensor, low: Tensor]
  >;
  linear4bitLoraBackward: NativeOp<
    [
      dy: Tensor,
      x: Tensor,
      weight: Quantized4Bit,
      low: Tensor,
      a: Tensor,
      b: Tensor,
      scaling: number,
      p: number,
      seed: number,
      offset: number,
      biasDtype: number,
      needsX: boolean,
      needsBias: boolean,
      needsA: boolean,
      needsB: boolean,
    ],
    [dx: Tensor | null, dbias: Tensor | null, da: Tensor | null, db: Tensor | null]
  >;
  embedding4bit: NativeOp<[ids: Tensor, weight: Quantized4Bit, dtype: number], [Tensor]>;

  // experts
  chooseExperts: NativeOp<[logits: Tensor, k: number, normalize: boolean], [shares: Tensor, experts: Tensor]>;
  chooseExpertsBackward: NativeOp<
    [dshares: Tensor, logits: Tensor, shares: Tensor, experts: Tensor, normalize: boolean],
    [dlogits: Tensor]
  >;
  expertWeights: NativeOp<
    [
      gates: readonly (Tensor | Quantized4Bit)[],
      ups: readonly (Tensor | Quantized4Bit)[],
      downs: readonly (Tensor | Quantized4Bit)[],
    ],
    [ExpertWeights]
  >;
  expertsSwiglu: NativeOp<
    [x: Tensor, shares: Tensor, experts: Tensor, weights: ExpertWeights, residual: Tensor | null],
    [y: Tensor]
  >;
  expertsSwigluBackward: NativeOp<
    [dy: Tensor, x: Tensor, shares: Tensor, experts: Tensor, weights: ExpertWeights],
    [dx: Tensor, dshares: Tensor]
  >;

  // plans: records of numbers both ways, see ops/plans.ts
  linear4bitPlan: NativeOp<[m: number, k: number], [number]>;
  linear4bitGpuPlan: NativeOp<
    [problem: Float64Array],
    [
      possible: number,
      variant: number,
      tokens: number,
      outputs: number,
      sumWarps: number,
      splits: number,
      stages: number,
      wideTable: number,
      blocks: number,
      sharedBytes: number,
    ]
  >;
  linear4bitGroupGpuPlan: NativeOp<
    [group: Float64Array],
    [possible: number, sharedBytes: number, first: number, second: number, third: number]
  >;
  matmulGpuPlan: NativeOp<
    [problem: Float64Array],
    [possible: number, variant: number, tile: number, blocks: number, sharedBytes: number]
  >;
  residentBlocks: NativeOp<[kernel: Float64Array], [number]>;

  // LLM.int8()
  int8QuantizeRows: NativeOp<[a: Tensor, threshold: number], [codes: Tensor, stats: Tensor, mask: Tensor | null]>;
  int8DequantizeRows: NativeOp<[codes: Tensor, stats: Tensor, ids: Tensor | null, dtype: number], [Tensor]>;
  int8Matmul: NativeOp<[a: Tensor, b: Tensor], [Tensor]>;
  int8DequantizeProduct: NativeOp<
    [c: Tensor, rowStats: Tensor, colStats: Tensor, bias: Tensor | null, dtype: number],
    [Tensor]
  >;
  int8Linear: NativeOp<
    [x: Tensor, codes: Tensor, stats: Tensor, weight: Tensor | null, bias: Tensor | null, threshold: number],
    [Tensor]
  >;
  int8LinearBackward: NativeOp<[dy: Tensor, codes: Tensor, stats: Tensor], [dx: Tensor]>;
}

export const addon = runtime as NativeOps & NativeRuntime;
