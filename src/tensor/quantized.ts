// Quantized4Bit: a packed 4-bit weight with its statistics as one native object behind one handle.
import type { Device } from "./device.js";
import type { Handle } from "./handle.js";
import { Claim, forgetCollected, releaseWhenCollected } from "./handle.js";
import { refuseJson } from "./native-only.js";
import type { Scoped } from "./scope.js";
import { enterScope, leaveScope } from "./scope.js";

const DISPOSED = -(2 ** 31 - 1);

/** A frozen 4-bit weight, as `linear4bit` takes it. It has no gradient: that the base is frozen is in the types. */
export class Quantized4Bit implements Scoped {
  /** Shape of the unquantized tensor. */
  readonly shape: readonly number[];
  readonly device: Device;
  readonly #claim: Claim;
  #registered = false;

  /** @internal */
  constructor(handle: Handle, shape: readonly number[], device: Device) {
    this.#claim = new Claim(handle);
    this.shape = shape;
    this.device = device;
    if (!enterScope(this)) this.escape();
  }

  get disposed(): boolean {
    return this.#claim.handle === null;
  }

  /** @internal */
  get slot(): number {
    return this.#claim.handle?.slot ?? DISPOSED;
  }

  /** Throws ERR_BNB_UNSUPPORTED: JSON would hold no element. */
  toJSON(): never {
    refuseJson("a quantized weight");
  }

  dispose(): void {
    if (this.disposed) return;
    if (this.#registered) forgetCollected(this);
    else leaveScope(this);
    this.#claim.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal */
  escape(): void {
    if (this.#registered || this.disposed) return;
    this.#registered = true;
    releaseWhenCollected(this, this.#claim);
  }
}
