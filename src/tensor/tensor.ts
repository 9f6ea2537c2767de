// Tensor: a handle on native memory with a dtype, a shape and a device. No arithmetic here: src/ops adds it.
import { inspect } from "node:util";
import { runtime } from "../native/runtime.js";
import { describe } from "./describe.js";
import type { Device } from "./device.js";
import type { DType, TypedArray } from "./dtype.js";
import { decode, sizeOf, typedArray } from "./dtype.js";
import type { ErrorCode } from "./errors.js";
import { BnbError } from "./errors.js";
import type { Handle, NodeOwner } from "./handle.js";
import { hostBuffer } from "./host-buffer.js";
import { NativeObject } from "./native-object.js";
import { elementCount, sameShape } from "./shape.js";

/**
 * An n-dimensional array on a device, contiguous and row-major.
 *
 * Ops return at once: they queue work on the device's stream, and the order of calls is the order of execution. Only
 * reading a value (`data()`, `item()`) is awaited. Memory is freed by `dispose()`, `using`, `tidy()`, or at some later
 * time by the garbage collector.
 */
export class Tensor extends NativeObject {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly device: Device;
  /** Whether `backward()` computes a gradient for it. Set on leaves; results of ops on such tensors have it, too. */
  requiresGrad = false;
  private gradient: Tensor | null = null;

  /** @internal Takes over one holder of the handle. */
  constructor(handle: Handle, dtype: DType, shape: readonly number[], device: Device, scoped = true) {
    super(handle, scoped);
    this.dtype = dtype;
    this.shape = shape;
    this.device = device;
  }

  /**
   * The gradient that `backward()` accumulated; only on leaves. Disposed with the tensor. One that is set must have the
   * shape and the device of the tensor: throws ERR_BNB_SHAPE, ERR_BNB_DEVICE, and ERR_BNB_ARGUMENT for what is no tensor.
   */
  get grad(): Tensor | null {
    return this.gradient;
  }
  set grad(grad: Tensor | null) {
    if (grad !== null) this.checkGradient(grad);
    this.gradient = grad;
  }

  get ndim(): number {
    return this.shape.length;
  }

  /** Number of elements. */
  get size(): number {
    return elementCount(this.shape);
  }

  get nbytes(): number {
    return this.size * sizeOf(this.dtype);
  }

  /** Not the result of a differentiable op: `backward()` stores its gradient in `grad`. */
  get isLeaf(): boolean {
    return this.claim.node === null;
  }

  /**
   * How often the memory was changed in place: by an optimizer, `copyInto`, an `out` of an op, a replayed graph. All
   * tensors that share it have the same. 0 once disposed.
   */
  get version(): number {
    return runtime.version(this.slot);
  }

  /** @internal The graph node that made it. */
  get node(): NodeOwner | null {
    return this.claim.node;
  }
  set node(node: NodeOwner | null) {
    this.claim.node = node;
  }

  /**
   * Frees the memory at once, and that of `grad`, also while queued work still reads it: what reuses the memory is
   * queued behind.
   */
  override dispose(): void {
    if (this.disposed) return;
    this.checkOwn("dispose");
    this.grad?.dispose();
    this.grad = null;
    super.dispose();
  }

  /** The same memory as a tensor of its own, without history: disposing one leaves the other. */
  detach(): Tensor {
    return this.alias(true);
  }

  /** @internal Another tensor on the same handle. */
  alias(scoped: boolean): Tensor {
    return new Tensor(this.held("detach").retain(), this.dtype, this.shape, this.device, scoped);
  }

  /** @internal Moves the handle out; this tensor is then disposed. */
  takeHandle(): Handle {
    this.held("takeHandle");
    const handle = this.takeClaim() as Handle;
    this.claim.node?.release();
    this.claim.node = null;
    return handle;
  }

  /** @internal Whether its handle is among these. */
  isHeldBy(handles: WeakSet<Handle>): boolean {
    const handle = this.claim.handle;
    return handle !== null && handles.has(handle);
  }

  /** @internal Holds another handle, of a tensor that is alike, from now on. */
  replaceHandle(handle: Handle): void {
    this.held("replaceHandle");
    this.claim.replace(handle);
  }

  /**
   * The elements, copied, when everything queued before has run. float16 and bfloat16 come as their bits in a
   * Uint16Array; `floats()` decodes. Rejects with the first error of the queued work, and with ERR_BNB_OOM where the
   * copy has no room.
   */
  async data(): Promise<TypedArray> {
    return typedArray(this.dtype, await runtime.read(this.held("data").slot, this.buffer("data")));
  }

  /** As `data()`, but blocks the event loop: for tests and the REPL. */
  dataSync(): TypedArray {
    const { slot } = this.held("dataSync");
    const buffer = this.buffer("dataSync");
    runtime.readSync(slot, buffer);
    return typedArray(this.dtype, buffer);
  }

  /** The elements of any dtype as float32. */
  async floats(): Promise<Float32Array> {
    return decode(await this.data(), this.dtype);
  }

  /** As `floats()`, but blocks the event loop. */
  floatsSync(): Float32Array {
    return decode(this.dataSync(), this.dtype);
  }

  /** The value of a tensor with one element. */
  async item(): Promise<number> {
    this.single("item");
    return (await this.floats())[0] as number;
  }

  /** As `item()`, but blocks the event loop. */
  itemSync(): number {
    this.single("itemSync");
    return this.floatsSync()[0] as number;
  }

  override toString(): string {
    if (!Tensor.is(this)) return "a Proxy or heir of a Tensor"; // without a shape, perhaps
    const state = this.disposed ? "disposed" : this.device.toString();
    return `Tensor(${this.dtype} [${this.shape.join(", ")}], ${state}${this.requiresGrad ? ", requiresGrad" : ""})`;
  }

  [inspect.custom](): string {
    return this.toString();
  }

  private held(op: string): Handle {
    this.checkOwn(op);
    const handle = this.claim.handle;
    if (!handle) throw new BnbError("ERR_BNB_DISPOSED", `${op}: x was disposed`);
    return handle;
  }

  private checkGradient(grad: Tensor): void {
    const refuse = (code: ErrorCode, rule: string): never => {
      throw new BnbError(code, `grad: ${rule}`);
    };
    if (!(Tensor.is(grad) && grad instanceof Tensor)) {
      refuse("ERR_BNB_ARGUMENT", `it must be a Tensor or null, got ${describe(grad)}`);
    }
    if (!sameShape(grad.shape, this.shape)) {
      const [wanted, got] = [this.shape, grad.shape].map((shape) => `[${shape.join(", ")}]`);
      refuse("ERR_BNB_SHAPE", `it must have the shape ${wanted} of its tensor, got ${got}`);
    }
    if (grad.device !== this.device) {
      refuse("ERR_BNB_DEVICE", `it must be on the device ${this.device} of its tensor, got ${grad.device}`);
    }
  }

  private buffer(op: string): ArrayBuffer {
    return hostBuffer(op, this.nbytes);
  }

  private single(op: string): void {
    if (this.size !== 1) {
      throw new BnbError("ERR_BNB_SHAPE", `${op}: the tensor must have one element, got [${this.shape.join(", ")}]`);
    }
  }
}
