// The tape: one node per recorded op. A node lives as long as its output tensor or a later node needs it, and
// frees what it saved when the last of them goes or when its backward has run.
import type { NodeOwner } from "../tensor/handle.js";
import type { NativeObject } from "../tensor/native-object.js";
import { changedSince, changeTime } from "../tensor/run.js";
import { Tensor } from "../tensor/tensor.js";

/** Where a gradient goes: to the node that made the input, or to a leaf; null when it is not wanted. */
export type Edge = GradNode | Tensor | null;

let created = 0;

/** What an op kept of its forward pass: a tensor is a holder of the node's own. */
export interface Saved {
  readonly object: NativeObject;
  /** Which argument it was; -1 for a result. */
  readonly argument: number;
}

export class GradNode implements NodeOwner {
  readonly name: string;
  /** Later nodes have higher numbers: descending order is a valid order for backward. */
  readonly order = created++;
  /** One per tensor argument, lists flattened. */
  edges: readonly Edge[];
  /** Gradients for the edges, from the gradient of the output; null once it has run or was released. */
  apply: ((dy: Tensor) => readonly (Tensor | null)[]) | null;
  #saved: readonly Saved[];
  readonly #savedAt = changeTime();
  #holders = 1;

  constructor(
    name: string,
    edges: readonly Edge[],
    saved: readonly Saved[],
    apply: (dy: Tensor) => readonly (Tensor | null)[],
  ) {
    this.name = name;
    this.edges = edges;
    this.#saved = saved;
    this.apply = apply;
    for (const edge of edges) if (edge instanceof GradNode) edge.#holders++;
  }

  /** What was saved and has been changed in place since, in words; null when nothing was. */
  changed(): string | null {
    for (const { object, argument } of this.#saved) {
      if (!changedSince(object, this.#savedAt)) continue;
      const what = argument < 0 ? `a result of ${this.name}` : `argument ${argument} of ${this.name}`;
      return object instanceof Tensor ? `${what}, ${object.dtype} [${object.shape.join(", ")}],` : what;
    }
    return null;
  }

  /** One holder more. */
  retain(): void {
    this.#holders++;
  }

  /** One holder less. */
  release(): void {
    // A loop, because a graph may be deeper than the call stack.
    const pending: GradNode[] = [this];
    for (let node = pending.pop(); node; node = pending.pop()) {
      if (--node.#holders > 0) continue;
      pending.push(...node.#clear());
    }
  }

  /** Frees what was saved; the node cannot run again. */
  free(): void {
    for (const parent of this.#clear()) parent.release();
  }

  #clear(): GradNode[] {
    const parents = this.edges.filter((edge) => edge instanceof GradNode);
    for (const { object } of this.#saved) if (object instanceof Tensor) object.dispose();
    this.#saved = [];
    this.edges = [];
    this.apply = null;
    return parents;
  }
}
