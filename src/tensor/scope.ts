// tidy(): everything made inside is disposed at its end, except what is returned or kept. Scopes are a plain
// stack; since no code inside may await, two scopes cannot interleave.
import { runtime } from "../native/runtime.js";
import { describe } from "./describe.js";
import type { DeviceLike } from "./device.js";
import { deviceAt, knownDevices, toDevice } from "./device.js";
import { BnbError } from "./errors.js";

/** @internal What a scope tracks: tensors and quantized weights. */
export interface Scoped {
  dispose(): void;
  /** Leaves all scopes: from now on the garbage collector is its net. */
  escape(): void;
}

/** Key of the method by which an object that is not a plain one tells `tidy` what it owns. */
export const owned: unique symbol = Symbol("owned");

/** An object that owns tensors: returning it from a `tidy` returns them. */
export interface Owner {
  [owned](): Iterable<unknown>;
}

class Scope {
  readonly members = new Set<Scoped>();
}

const stack: Scope[] = [];

/** @internal Adds a new owner to the innermost scope; false when there is none. */
export function enterScope(owner: Scoped): boolean {
  const scope = stack[stack.length - 1];
  scope?.members.add(owner);
  return scope !== undefined;
}

/** @internal Takes an owner out of whatever scope it is in. */
export function leaveScope(owner: Scoped): void {
  for (let i = stack.length - 1; i >= 0; i--) if ((stack[i] as Scope).members.delete(owner)) return;
}

/**
 * Runs `fn` and disposes every tensor made inside, except those it returns (directly, in arrays, Maps and plain objects,
 * or in modules and other owners) and those passed to `keep`. Synchronous only: throws ERR_BNB_ARGUMENT when `fn`
 * returns a promise. On an exception everything made inside is disposed, too.
 *
 * @example
 * const y = tidy(() => x.mul(2).add(1)); // the product is gone, y lives
 */
export function tidy<T>(fn: () => T): T {
  if (typeof fn !== "function") {
    throw new BnbError("ERR_BNB_ARGUMENT", `tidy: fn must be a function, got ${describe(fn)}`);
  }
  const scope = new Scope();
  stack.push(scope);
  let result: T;
  let found: Scoped[];
  try {
    result = fn();
    if (isThenable(result)) {
      // What it rejects with later is beside the point, and must not end the process.
      Promise.resolve(result).catch(() => {});
      throw new BnbError("ERR_BNB_ARGUMENT", "tidy: the function must be synchronous, it returned a promise");
    }
    found = scopedIn(result);
  } catch (error) {
    stack.pop();
    for (const member of scope.members) member.dispose();
    throw error;
  }
  stack.pop();
  for (const member of found) if (scope.members.delete(member) && !enterScope(member)) member.escape();
  for (const member of scope.members) member.dispose();
  return result;
}

// Everything that a value holds: itself, or what is in arrays, Maps, plain objects and owners.
function scopedIn(value: unknown): Scoped[] {
  if (typeof value !== "object" || value === null) return [];
  if (isScoped(value)) return [value];
  const found: Scoped[] = [];
  // Grows while it is gone through; a container that holds itself is looked into once.
  const containers = new Set<object>([value]);
  for (const container of containers) {
    const items = itemsOf(container);
    if (typeof items?.[Symbol.iterator] !== "function") {
      const rule = "tidy: what fn returns must be made of values, arrays, Maps, plain objects and owners of tensors";
      throw new BnbError("ERR_BNB_ARGUMENT", `${rule}, got ${describe(container)}, which cannot be gone through`);
    }
    for (const item of items) {
      if (typeof item !== "object" || item === null) continue;
      if (isScoped(item)) found.push(item);
      else containers.add(item);
    }
  }
  return found;
}

function itemsOf(container: object): Iterable<unknown> {
  if (Array.isArray(container)) return container;
  if (container instanceof Map) return container.values();
  if (owned in container) return (container as Owner)[owned]();
  const prototype: unknown = Object.getPrototypeOf(container);
  return prototype === Object.prototype || prototype === null ? Object.values(container) : [];
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === "object" && value !== null && typeof (value as Partial<Promise<unknown>>).then === "function";
}

function isScoped(value: object): value is Scoped {
  return typeof (value as Partial<Scoped>).escape === "function";
}

/** Takes a tensor out of every `tidy`, so that it lives until it is disposed. Returns it. */
export function keep<T extends Scoped>(tensor: T): T {
  if (typeof tensor !== "object" || tensor === null || !isScoped(tensor)) {
    throw new BnbError("ERR_BNB_ARGUMENT", `keep: it must be a Tensor or what owns some, got ${describe(tensor)}`);
  }
  leaveScope(tensor);
  tensor.escape();
  return tensor;
}

/**
 * @internal Keeps every tensor found in a value (as a `tidy` that returns it would); the function returned disposes
 * them all.
 */
export function escapeAll(value: unknown): () => void {
  const members = scopedIn(value).map(keep);
  return () => {
    for (const member of members) member.dispose();
  };
}

/** Memory of one device, in bytes. */
export interface DeviceMemory {
  /** Held by tensors. */
  liveBytes: number;
  /** Freed by tensors and kept for the next ones. */
  cachedBytes: number;
  /** Most that was live at once since the start or the last `emptyCache`. */
  peakBytes: number;
}

/** What this environment (main thread or worker) holds. */
export interface MemoryInfo extends DeviceMemory {
  /** Handles alive: tensors, quantized weights, and what graphs saved. */
  tensors: number;
  /** By name. GPUs are here once a program has asked for one, or for `devices()`. */
  devices: Record<string, DeviceMemory>;
}

/** Live tensors and bytes, in total and per device. A program that frees what it makes returns to where it began. */
export function memory(): MemoryInfo {
  const total: MemoryInfo = { tensors: 0, liveBytes: 0, cachedBytes: 0, peakBytes: 0, devices: {} };
  for (const device of knownDevices()) {
    const { tensors, ...bytes } = runtime.memory(device.index);
    total.tensors = tensors;
    total.liveBytes += bytes.liveBytes;
    total.cachedBytes += bytes.cachedBytes;
    total.peakBytes += bytes.peakBytes;
    total.devices[String(device)] = bytes;
  }
  return total;
}

/** Gives cached memory back to the system, on one device or on all, and starts `peakBytes` anew. */
export function emptyCache(device?: DeviceLike): void {
  const indices = device === undefined ? knownDevices().map((d) => d.index) : [toDevice(device).index];
  for (const index of indices) runtime.emptyCache(deviceAt(index).index);
}
