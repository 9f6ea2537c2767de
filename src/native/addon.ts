// The typed table of native ops, one line each. Arguments cross as integers and numbers: run() (tensor/run.ts)
// replaces tensors by their handles and reads the outputs from the shared results buffer.
import type { Quantized4Bit } from "../tensor/quantized.js";
import type { Tensor } from "../tensor/tensor.js";
import { loadAddon } from "./load.js";

/** What an op may return: tensors, null for an optional one that is absent, or plain numbers. */
export type Output = Tensor | Quantized4Bit | number | null;

/** A native op: what it takes and what run() gives back. */
export interface NativeOp<Args extends readonly unknown[], Outputs extends readonly Output[]> {
  (...args: unknown[]): void;
  /** Only for the type checker. */
  readonly signature?: (...args: Args) => Outputs;
}

/** A device as the addon describes it. */
export interface NativeDevice {
  device: string;
  name: string;
  memory: number;
  computeCapability: number;
  processors: number;
  isa: string;
}

/** Memory of one device, in bytes; `tensors` counts the handles of the whole environment. */
export interface NativeMemory {
  tensors: number;
  liveBytes: number;
  cachedBytes: number;
  peakBytes: number;
}

/** What is not an op: called directly, with handles. */
export interface NativeRuntime {
  setup(results: Float64Array, errorClass: unknown, warn: (message: string) => void): void;
  dispose(handle: number): void;
  finalize(handle: number): void;
  fromBytes(bytes: Uint8Array, dtype: number, shape: readonly number[], device: number): void;
  read(handle: number, buffer: ArrayBuffer): Promise<ArrayBuffer>;
  readSync(handle: number, buffer: ArrayBuffer): void;
  synchronize(device: number, buffer: ArrayBuffer): Promise<ArrayBuffer>;
  devices(): NativeDevice[];
  memory(device: number): NativeMemory;
  emptyCache(device: number): void;
}

/** dtype, quantType and device arguments are the numbers of tensor/dtype.ts and Device.index. */
export interface NativeOps {
  // tensors
  empty: NativeOp<[shape: readonly number[], dtype: number, device: number], [Tensor]>;
  view: NativeOp<[x: Tensor, shape: readonly number[], dtype: number, offset: number], [Tensor]>;
  toDevice: NativeOp<[x: Tensor, device: number], [Tensor]>;
  quantized4bit: NativeOp<
    [
      packed: Tensor,
      absmax: Tensor,
      nestedAbsmax: Tensor | null,
      nestedCode: Tensor | null,
      offset: Tensor | null,
      shape: readonly number[],
      blocksize: number,
      nestedBlocksize: number,
      type: number,
      dtype: number,
    ],
    [Quantized4Bit]
  >;
  quantizedParts: NativeOp<[weight: Quantized4Bit], Tensor[]>;

  // elementwise
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
}

export const addon = loadAddon() as NativeOps & NativeRuntime;
