// tidy(): everything made inside is disposed at its end, except what is returned or kept. Scopes are a plain
// stack; since no code inside may await, two scopes cannot interleave.
import { runtime } from "../native/runtime.js";
import type { DeviceLike } from "./device.js";
import { deviceAt, devices, toDevice } from "./device.js";
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
  const scope = new Scope();
  stack.push(scope);
  let result: T;
  try {
    result = fn();
    if (result instanceof Promise) {
      throw new BnbError("ERR_BNB_ARGUMENT", "tidy: the function must be synchronous, it returned a promise");
    }
  } catch (error) {
    stack.pop();
    for (const member of scope.members) member.dispose();
    throw error;
  }
  stack.pop();
  release(result, scope);
  for (const member of scope.members) member.dispose();
  return result;
}

// Moves what is found in a result to the outer scope.
function release(value: unknown, scope: Scope): void {
  eachScoped(value, (member) => {
    if (scope.members.delete(member) && !enterScope(member)) member.escape();
  });
}

// Everything that a value holds: itself, or what is in arrays, Maps, plain objects and owners.
function eachScoped(value: unknown, visit: (member: Scoped) => void): void {
  if (typeof value !== "object" || value === null) return;
  if (isScoped(value)) {
    visit(value);
  } else if (Array.isArray(value)) {
    for (const item of value) eachScoped(item, visit);
  } else if (value instanceof Map) {
    for (const item of value.values()) eachScoped(item, visit);
  } else if (owned in value) {
    for (const item of (value as Owner)[owned]()) eachScoped(item, visit);
  } else {
    const prototype: unknown = Object.getPrototypeOf(value);
    if (prototype === Object.prototype || prototype === null) {
      for (const item of Object.values(value)) eachScoped(item, visit);
    }
  }
}

function isScoped(value: object): value is Scoped {
  return typeof (value as Partial<Scoped>).escape === "function";
}

/** Takes a tensor out of every `tidy`, so that it lives until it is disposed. Returns it. */
export function keep<T extends Scoped>(tensor: T): T {
  leaveScope(tensor);
  tensor.escape();
  return tensor;
}

/**
 * @internal Keeps every tensor found in a value (as a `tidy` that returns it would); the function returned disposes
 * them all.
 */
export function escapeAll(value: unknown): () => void {
  const members: Scoped[] = [];
  eachScoped(value, (member) => members.push(keep(member)));
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
  devices: Record<string, DeviceMemory>;
}

/** Live tensors and bytes, in total and per device. A program that frees what it makes returns to where it began. */
export function memory(): MemoryInfo {
  const total: MemoryInfo = { tensors: 0, liveBytes: 0, cachedBytes: 0, peakBytes: 0, devices: {} };
  for (const device of devices()) {
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
  const indices = device === undefined ? devices().map((d) => d.index) : [toDevice(device).index];
  for (const index of indices) runtime.emptyCache(deviceAt(index).index);
}
