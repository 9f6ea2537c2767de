// How many threads the CPU's kernels use.
import { runtime } from "../native/runtime.js";
import { anInteger, checkArgument } from "./checks.js";

const aCount = anInteger(1, 1024);

/** Threads that kernels on the CPU use: by default the cores that the process may run on, or BNB_THREADS. */
export function getNumThreads(): number {
  return runtime.threads(0);
}

/**
 * From now on so many threads compute on the CPU, 1 to 1024, in the whole process, its worker threads included. Results do not
 * depend on it. The event loop's own threads are others.
 */
export function setNumThreads(count: number): void {
  checkArgument("setNumThreads", "count", count, aCount);
  runtime.threads(count);
}
