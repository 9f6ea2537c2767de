// What the addon offers beside its ops (tensor/addon.ts has those): handles, reads, devices, memory and graphs.
import { loadAddon } from "./load.js";

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
  /** `clock` [1] grows with every change of a tensor in place. */
  setup(results: Float64Array, errorClass: unknown, warn: (message: string) => void, clock: Float64Array): void;
  dispose(handle: number): void;
  finalize(handle: number): void;
  /** How often the memory behind a handle was changed in place, and the clock's time of the last. 0 for a stale one. */
  version(handle: number): number;
  changedAt(handle: number): number;
  fromBytes(bytes: Uint8Array, dtype: number, shape: readonly number[], device: number): void;
  read(handle: number, buffer: ArrayBuffer): Promise<ArrayBuffer>;
  readSync(handle: number, buffer: ArrayBuffer): void;
  /** Whether a byte of the tensor's memory is `byte`, without a copy for JavaScript. Waits. */
  includesByte(handle: number, byte: number): boolean;
  /** Fills a tensor from an open file, from byte `offset` on; `buffer` has no bytes. */
  readFile(handle: number, descriptor: number, offset: number, buffer: ArrayBuffer): Promise<ArrayBuffer>;
  synchronize(device: number, buffer: ArrayBuffer): Promise<ArrayBuffer>;
  cpu(): NativeDevice;
  /** The devices after the CPU. The first call asks the driver for them, as gpuStatus does. */
  gpus(): NativeDevice[];
  /** Makes a device usable, which the first tensor on it would do, or throws ERR_BNB_CUDA with the reason. */
  openDevice(device: number): void;
  /** How many threads compute, in all environments of the process; from now on `count` unless it is 0. */
  threads(count: number): number;
  memory(device: number): NativeMemory;
  emptyCache(device: number): void;
  /**
   * `missing`: why no GPU, or not every GPU, is among the devices, "" when none is missing; `libraries`: what GPUs use
   * beside the package's own kernels, "" without a GPU. Looks for the libraries, so not for hot code.
   */
  gpuStatus(): { missing: string; libraries: string };
  /** Records the ops of a device until endGraph, which gives the id of the graph, or 0 without `keep`. */
  beginGraph(device: number): void;
  endGraph(device: number, keep: boolean): number;
  replayGraph(graph: number): void;
  /** Whether every tensor from outside that the graph reads or writes still exists. */
  graphHasTensors(graph: number): boolean;
  disposeGraph(graph: number): void;
  /** As disposeGraph, for one that was collected. */
  finalizeGraph(graph: number): void;
  /**
   * Writes tensors of one device into an open file, or into memory of the host where `descriptor` is -1, and gives up their
   * memory; the id of the group. What goes wrong then is an error of the device's stream.
   */
  offload(handles: readonly number[], descriptor: number): number;
  /** Takes memory for a group and has it filled beside other work; `use`: what is queued later may read the tensors. */
  offloadFetch(id: number): void;
  offloadUse(id: number): void;
  /** Gives the memory up again. */
  offloadDrop(id: number): void;
  /** The values are gone for good. */
  offloadDispose(id: number): void;
  /** Queues a kernel that is wrong in a known way: test/native/emulator.test.ts. */
  provoke(device: number, which: number): void;
}

export const runtime = loadAddon() as NativeRuntime;
