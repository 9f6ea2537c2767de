// NativeObject: the life of everything that holds native memory behind one handle, written once: in a scope from its
// making, under the garbage collector's net when it leaves, freed by dispose().
import { BnbError } from "./errors.js";
import type { Handle } from "./handle.js";
import { Claim, forgetCollected, releaseWhenCollected } from "./handle.js";
import { refuseJson } from "./native-only.js";
import type { Scoped } from "./scope.js";
import { enterScope, leaveScope } from "./scope.js";

/** Handle 0 never exists: the addon answers it with "must be a Tensor" or, for a disposed one, this slot. */
const DISPOSED = -(2 ** 31 - 1);

/** What owns native memory: a tensor, a quantized weight, the scales of blocks. */
export abstract class NativeObject implements Scoped {
  /** @internal Apart from the object, so that the finalizer can hold it. */
  protected readonly claim: Claim;
  #registered = false;

  /** @internal Takes over one holder of the handle. Not scoped: whoever makes it disposes it. */
  constructor(handle: Handle, scoped = true) {
    this.claim = new Claim(handle);
    if (scoped && !enterScope(this)) this.escape();
  }

  /**
   * @internal Whether `value` was made by the constructor: neither a Proxy of such an object, which has none of its
   * private fields, nor what only has the prototype.
   */
  static is(value: unknown): value is NativeObject {
    return typeof value === "object" && value !== null && #registered in value;
  }

  get disposed(): boolean {
    return !this.claim?.handle; // nor does one that only has the prototype hold memory
  }

  /** @internal What crosses to the addon. */
  get slot(): number {
    return this.claim?.handle?.slot ?? DISPOSED;
  }

  /** Frees the memory at once, also while queued work still reads it: what reuses the memory is queued behind. */
  dispose(): void {
    if (this.disposed) return;
    this.checkOwn("dispose");
    this.#leave();
    this.claim.release();
  }

  /** Throws ERR_BNB_UNSUPPORTED: JSON would hold no element. */
  toJSON(): never {
    refuseJson(`a ${this.constructor.name}`);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal */
  escape(): void {
    this.checkOwn("keep");
    if (this.#registered || this.disposed) return;
    this.#registered = true;
    releaseWhenCollected(this, this.claim);
  }

  /** @internal Moves the handle out; this object is then disposed. */
  protected takeClaim(): Handle | null {
    this.#leave();
    return this.claim.take();
  }

  /** @internal Throws ERR_BNB_ARGUMENT when `this` is a Proxy. */
  protected checkOwn(op: string): void {
    if (NativeObject.is(this)) return;
    throw new BnbError("ERR_BNB_ARGUMENT", `${op}: it must be the object itself, got a Proxy of it`);
  }

  #leave(): void {
    if (this.#registered) forgetCollected(this);
    else leaveScope(this);
  }
}
