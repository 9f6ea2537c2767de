// Ownership of native handles. A Handle is one slot of the addon with a count of those who hold it: the tensor
// that was made for it and the graph nodes that saved it. The slot is freed with the last of them.
import { BnbError } from "../native/errors.js";
import { runtime } from "../native/runtime.js";

/** Something that owns native memory and sits in a scope: a tensor or a quantized weight. */
export interface Disposable {
  dispose(): void;
}

/** What a graph node must offer to the tensor that it produced. */
export interface NodeOwner {
  /** The output tensor is gone. */
  release(): void;
}

export class Handle {
  readonly slot: number;
  #holders = 1;

  constructor(slot: number) {
    this.slot = slot;
  }

  retain(): this {
    this.#holders++;
    return this;
  }

  release(fromFinalizer = false): void {
    if (--this.#holders > 0) return;
    if (fromFinalizer) runtime.finalize(this.slot);
    else runtime.dispose(this.slot);
  }
}

/** What a tensor owns. Kept apart from it, so that the finalizer can hold it without holding the tensor. */
export class Claim {
  #handle: Handle | null;
  node: NodeOwner | null = null;

  constructor(handle: Handle) {
    if (!(handle instanceof Handle)) {
      throw new BnbError(
        "ERR_BNB_ARGUMENT",
        "Tensor: it must be made by a function such as tensor() or zeros(), not by new",
      );
    }
    this.#handle = handle;
  }

  /** Null once released. */
  get handle(): Handle | null {
    return this.#handle;
  }

  /** Gives the handle up without releasing it: ownership moves to whoever receives it. */
  take(): Handle | null {
    const handle = this.#handle;
    this.#handle = null;
    return handle;
  }

  /** Releases the handle and owns another from now on. */
  replace(handle: Handle): void {
    this.#handle?.release();
    this.#handle = handle;
  }

  release(fromFinalizer = false): void {
    const handle = this.#handle;
    if (!handle) return;
    this.#handle = null;
    handle.release(fromFinalizer);
    this.node?.release();
    this.node = null;
  }
}

const registry = new FinalizationRegistry<Claim>((claim) => claim.release(true));

/** The net under forgotten tensors: when `owner` is collected, its claim is released. */
export function releaseWhenCollected(owner: object, claim: Claim): void {
  registry.register(owner, claim, owner);
}

/** The owner was disposed deliberately. */
export function forgetCollected(owner: object): void {
  registry.unregister(owner);
}
