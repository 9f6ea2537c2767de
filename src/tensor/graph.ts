// Graphs: a function of ops recorded once and run again by one call, without JavaScript in between. On a GPU the
// recording becomes a CUDA graph, so that a replay launches everything at once.
import { runtime } from "../native/runtime.js";
import { aDevice, checkFunction } from "./checks.js";
import type { Device, DeviceLike } from "./device.js";
import { toDevice } from "./device.js";
import { checkOptions, optionTable } from "./options.js";
import { escapeAll, tidy } from "./scope.js";

const registry = new FinalizationRegistry<number>((id) => runtime.finalizeGraph(id));

/**
 * What `capture` recorded. `replay()` runs it again on the tensors that the function saw: their memory, not their
 * values, is part of the graph, so new inputs are copied into the old tensors (`copyInto`) before a replay, and results
 * appear in `outputs` after it.
 *
 * Holds, until `dispose()` or until it is collected, the memory of everything made inside and of every tensor from
 * outside that its ops read or write: such a tensor may be disposed before, and a replay then still uses what was its
 * memory. `dispose()` disposes the outputs, too.
 */
export class Graph<T> implements Disposable {
  /** What the function returned: its tensors hold the results of the last replay. */
  readonly outputs: T;
  readonly device: Device;
  #id: number;
  readonly #release: () => void;

  /** @internal */
  constructor(id: number, device: Device, outputs: T, release: () => void) {
    this.#id = id;
    this.device = device;
    this.outputs = outputs;
    this.#release = release;
    registry.register(this, id, this);
  }

  /** @internal Whether every tensor from outside that it uses still exists. Throws ERR_BNB_DISPOSED after `dispose()`. */
  get hasTensors(): boolean {
    return runtime.graphHasTensors(this.#id);
  }

  /** Queues all recorded ops. Throws ERR_BNB_DISPOSED after `dispose()`. */
  replay(): void {
    runtime.replayGraph(this.#id);
  }

  dispose(): void {
    if (this.#id === 0) return;
    registry.unregister(this);
    this.#release();
    runtime.disposeGraph(this.#id);
    this.#id = 0;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

export interface CaptureOptions {
  /** Default: the default device. */
  device?: DeviceLike;
}
const captureOptions = optionTable<CaptureOptions>({ device: aDevice });

/**
 * Records the ops that `fn` calls on `device` (default: the default device) and returns them as a Graph. Nothing runs
 * until `replay()`: the outputs are uninitialized before.
 *
 * Numbers that `fn` computes in JavaScript (sizes, offsets, seeds, learning rates) are recorded as they are now.
 * Throws ERR_BNB_UNSUPPORTED when `fn` reads a tensor or makes one from JavaScript values, and ERR_BNB_ARGUMENT when
 * it is not synchronous or another recording is under way.
 *
 * @example
 * const step = capture(() => silu(linear(x, weight, null)));
 * copyInto(x, tensor(values));
 * step.replay();
 * console.log(await step.outputs.data());
 */
export function capture<T>(fn: () => T, options: CaptureOptions = {}): Graph<T> {
  checkFunction("capture", "fn", fn);
  checkOptions("capture", options, captureOptions);
  const target = toDevice(options.device);
  runtime.beginGraph(target.index);
  let outputs: T;
  try {
    outputs = tidy(fn);
  } catch (error) {
    runtime.endGraph(target.index, false);
    throw error;
  }
  const id = runtime.endGraph(target.index, true);
  return new Graph(id, target, outputs, escapeAll(outputs));
}
