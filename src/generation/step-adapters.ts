// Adapters of a model whose rows in one step may have different ones, as an engine sees them.
import type { Tensor } from "../tensor/tensor.js";

/** An adapter that a text uses, until it is disposed. */
export interface AdapterUse extends Disposable {
  /** Its number in the tables of adapters now; others may move it when they come or go. */
  readonly index: number;
  /** Belongs to what was loaded, not to its name; never given twice. */
  readonly key: number;
  /** Another use of the same adapter. */
  again(): AdapterUse;
}

/** What an engine asks of the adapters over its model. */
export interface StepAdapters {
  /** Adapters in the tables. */
  readonly size: number;
  /** Another number when the tables are others. */
  readonly version: number;
  /** Throws for a name that is not there. */
  use(op: string, name: string): AdapterUse;
  /**
   * What `fn` computes with the adapters: row t of every layer's input has number a where segment[a] <= t < segment[a + 1],
   * int32 [size + 1].
   */
  during<T>(segment: Tensor, fn: () => T): T;
}
