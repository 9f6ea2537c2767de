// Devices: the CPU, and the GPUs that the addon was built for and found.
import type { NativeDevice } from "../native/runtime.js";
import { runtime } from "../native/runtime.js";
import { shown } from "./describe.js";
import { BnbError } from "./errors.js";
import { notCloneable } from "./native-only.js";

/** "cpu", "cuda" (the first GPU), "cuda:N", "auto" (the first GPU that can be used, else the CPU), or a Device. */
export type DeviceLike = Device | "cpu" | "cuda" | "auto" | (string & {});

/** One device of this machine. `String(device)` is its name in options: "cpu", "cuda:0". */
export class Device {
  /** Position in `devices()`: what crosses to the addon. */
  readonly index: number;
  readonly type: "cpu" | "cuda";
  /** The product name, such as "NVIDIA H200". */
  readonly name: string;
  /** Bytes of memory. */
  readonly memory: number;
  /** CUDA compute capability, such as 9.0; 0 on a CPU. */
  readonly computeCapability: number;
  /** Instruction set of the CPU kernels: "base", "avx2", "avx_vnni" (AVX2 with VNNI) or "avx512"; empty on a GPU. */
  readonly isa: string;
  /** @internal A device is none on another thread, and neither is what holds one. */
  readonly transfer: typeof notCloneable = notCloneable;
  readonly #label: string;
  readonly #processors: number;
  #open = false;

  /** @internal */
  constructor(index: number, native: NativeDevice) {
    this.index = index;
    this.type = native.device === "cpu" ? "cpu" : "cuda";
    this.name = native.name;
    this.memory = native.memory;
    this.computeCapability = native.computeCapability;
    this.#processors = native.processors;
    this.isa = native.isa;
    this.#label = native.device;
  }

  /** Threads that kernels use, which `setNumThreads` sets, or multiprocessors. */
  get processors(): number {
    return this.type === "cpu" ? runtime.threads(0) : this.#processors;
  }

  toString(): string {
    return this.#label;
  }

  /**
   * @internal Makes it usable, which else its first tensor does: a GPU takes memory for that. Throws ERR_BNB_CUDA with the
   * reason where it cannot be.
   */
  open(): this {
    if (!this.#open) runtime.openDevice(this.index);
    this.#open = true;
    return this;
  }

  /** Resolves when everything queued on the device has run; rejects with the first error among it. */
  async synchronize(): Promise<void> {
    await runtime.synchronize(this.index, new ArrayBuffer(0));
  }
}

let fallback: Device | undefined;

const cpu = new Device(0, runtime.cpu());
/** The CPU alone until a GPU may be meant: a program that uses none does not load the driver. */
let known: readonly Device[] = [cpu];
let hasLooked = false;

/**
 * The devices of this machine, the CPU first. The first call asks the driver for the GPUs, as the first use of one does;
 * importing the library does not.
 */
export function devices(): readonly Device[] {
  if (!hasLooked) known = [cpu, ...runtime.gpus().map((native, i) => new Device(1 + i, native))];
  hasLooked = true;
  return known;
}

/** @internal The devices that can hold anything by now. */
export function knownDevices(): readonly Device[] {
  return known;
}

/** @internal The device at a position of `devices()`. */
export function deviceAt(index: number): Device {
  return known[index] as Device;
}

/**
 * `missing` says why no GPU, or not every GPU, is among `devices()`, or why one of them could not be opened when it was
 * first used, and what to do about it; it is "" when none is missing. `libraries` says what GPUs use beside the package's own kernels, and is "" without a GPU.
 */
export function gpuStatus(): { missing: string; libraries: string } {
  return runtime.gpuStatus();
}

/** The device of tensors and layers that are made without a `device`: the CPU, until setDefaultDevice says otherwise. */
export function defaultDevice(): Device {
  return fallback ?? cpu;
}

/**
 * Makes `device` the one that tensors, layers and models get when no `device` is given, in this thread. Tensors that
 * exist stay where they are. Throws ERR_BNB_DEVICE where there is no such device, and ERR_BNB_CUDA, with what to do, for
 * a GPU that cannot be used.
 *
 * @example
 * setDefaultDevice("auto"); // the first GPU, else the CPU
 */
export function setDefaultDevice(device: DeviceLike): void {
  fallback = toDevice(device).open();
}

/**
 * Resolves a device option; undefined is the default device. Throws ERR_BNB_CUDA, with what to do, when a GPU is asked
 * for and none can be used, and ERR_BNB_DEVICE when there is no such device.
 */
export function toDevice(device: DeviceLike | undefined): Device {
  if (device === undefined) return defaultDevice();
  if (device === "cpu") return cpu;
  if (device instanceof Device) return device;
  const all = devices();
  if (device === "auto") return all.slice(1).find(canOpen) ?? cpu;
  const label = device === "cuda" ? "cuda:0" : device;
  const found = all.find((d) => String(d) === label);
  if (found) return found;
  const why = gpuStatus().missing;
  if (/^cuda(:\d+)?$/.test(shown(device)) && why !== "") {
    throw new BnbError("ERR_BNB_CUDA", `device: ${shown(device)} must be a usable GPU, but ${why}`);
  }
  const has = all.map(String).join(", ");
  throw new BnbError("ERR_BNB_DEVICE", `device: must be one of auto, ${has}, got ${shown(device)}`);
}

function canOpen(device: Device): boolean {
  try {
    device.open();
    return true;
  } catch {
    return false; // gpuStatus() has the reason
  }
}

/** Resolves when everything queued on the device (default: on all devices) has run. */
export async function synchronize(device?: DeviceLike): Promise<void> {
  await Promise.all((device === undefined ? known : [toDevice(device)]).map((d) => d.synchronize()));
}
