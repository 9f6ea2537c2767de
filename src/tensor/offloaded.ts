// Tensors whose values wait in host memory or in a file, and are in the memory of their device only while they are used.
import { runtime } from "../native/runtime.js";
import type { Tensor } from "./tensor.js";

const registry = new FinalizationRegistry<number>((id) => runtime.offloadDispose(id));

/**
 * @internal A group of tensors of one device that come and go together. Reading them while they are away is an error of
 * the op. A thread brings them, in the order of the device's work; none of the methods waits.
 */
export class OffloadedTensors implements Disposable {
  #id: number;

  /**
   * Takes the values of `tensors` away, to the open file of `descriptor`, which may then be closed and removed, or to host
   * memory. What fails on the way, such as a full disk, is the device's next error.
   */
  constructor(tensors: readonly Tensor[], descriptor: number | null) {
    this.#id = runtime.offload(
      tensors.map(({ slot }) => slot),
      descriptor ?? -1,
    );
    registry.register(this, this.#id, this);
  }

  /** Begins to bring the values, while the device computes with others. */
  fetch(): void {
    runtime.offloadFetch(this.#id);
  }

  /** Ops that are called from here on may read the tensors, until `drop`. */
  use(): void {
    runtime.offloadUse(this.#id);
  }

  /** Frees their memory behind the ops that were called so far. */
  drop(): void {
    runtime.offloadDrop(this.#id);
  }

  /** Forgets the values. The tensors are to be disposed by their owners. */
  dispose(): void {
    if (this.#id === 0) return;
    registry.unregister(this);
    runtime.offloadDispose(this.#id);
    this.#id = 0;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
