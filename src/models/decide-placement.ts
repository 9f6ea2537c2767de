// From the options of fromPretrained to the places of a model's parts.
import { freemem } from "node:os";
import type { BitsAndBytesConfig, TensorSource } from "../hub/index.js";
import type { ModelTies } from "../hub/quantize-linears.js";
import { formatsOf, isQuantized } from "../hub/quantize-linears.js";
import type { Module } from "../nn/index.js";
import type { Check } from "../tensor/checks.js";
import { aPlainObject } from "../tensor/checks.js";
import { isPlainObject } from "../tensor/describe.js";
import type { DeviceLike } from "../tensor/device.js";
import { Device, devices, toDevice } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { sizeOf } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { withNearest } from "../tensor/nearest.js";
import { memory } from "../tensor/scope.js";
import { CausalLM } from "./causal-lm.js";
import type { DeviceMap, Place, Plan, Rooms, Strategy } from "./device-map.js";
import { checkRooms, parseBytes, placeName, planUnits, resolveMap, sizeText } from "./device-map.js";
import { OffloadFolder } from "./offload-folder.js";
import { ModelPlacement } from "./placement.js";
import type { ModelUnit } from "./units.js";
import { unitsOf } from "./units.js";

/** Where a model goes; see `FromPretrainedOptions`. */
export interface PlacementOptions {
  /**
   * A device for the whole model; "auto": the first GPU if it has room, else all GPUs alike, then host memory, then disk (the
   * CPU and disk where there is no GPU); "balanced": all GPUs alike; "sequential": one GPU after the other; or a place for
   * each module by its path, such as `{ "": "cuda:0", "model.layers.30": "cpu", "model.layers.31": "disk" }`. Layers on "cpu"
   * beside a GPU, and those on "disk", wait there and are brought to the first device of the map as they are needed. Default:
   * the default device, or "auto" with maxMemory.
   */
  deviceMap?: DeviceLike | number | DeviceMap;
  /**
   * What weights may take of each device, with what is brought to it: bytes or a text such as "10GiB", by device. GPUs that are
   * not named are not used. Keys, values and activations come beside it. Default: nine tenths of what is there.
   */
  maxMemory?: Readonly<Record<string, number | string>>;
  /** Where files of layers on disk are. They have no names while they are used, and end with the model. */
  offloadFolder?: string;
}

const strategies = ["auto", "balanced", "sequential"];

/** @internal */
export const aDeviceMap: Check = {
  rule: '"auto", "balanced", "sequential", a Device or the name of one, or an object of places by module',
  holds: (v) => typeof v === "string" || v instanceof Device || isIndex(v) || (isPlainObject(v) && arePlaces(v)),
  code: "ERR_BNB_DEVICE",
};

/** @internal */
export const aMemoryMap: Check = {
  ...aPlainObject,
  rule: 'an object of bytes by device, such as { "cuda:0": "10GiB" }',
};

const isIndex = (v: unknown): boolean => Number.isSafeInteger(v) && (v as number) >= 0;
const arePlaces = (map: object): boolean =>
  Object.values(map).every((v) => typeof v === "string" || v instanceof Device || isIndex(v));

/** @internal The one device that a model goes to as a whole; null where parts of it may go elsewhere. */
export function wholeDevice({ deviceMap, maxMemory }: PlacementOptions): { device?: DeviceLike } | null {
  if (maxMemory !== undefined || isPlainObject(deviceMap)) return null;
  if (deviceMap === undefined) return {};
  if (strategies.includes(deviceMap as string)) return null;
  return { device: deviceOf(deviceMap as DeviceLike | number) };
}

function deviceOf(device: DeviceLike | number): Device {
  if (typeof device === "string" && !/^(cpu|cuda)(:|$)/.test(device)) {
    const known = [...strategies, ...devices().map(String)];
    throw new BnbError(
      "ERR_BNB_DEVICE",
      `deviceMap: must be one of ${known.join(", ")}, got ${withNearest(device, known)}`,
    );
  }
  return toDevice(typeof device === "number" ? placeName(device) : device);
}

/** @internal What is known of a model that is about to be loaded. */
export interface Loading {
  readonly source: TensorSource;
  readonly config: BitsAndBytesConfig | null;
  readonly ties: ModelTies;
  readonly blocksize: number;
  readonly dtype: DType;
}

/**
 * @internal Decides for each part of `model`, whose weights have no memory yet, where it goes. Throws ERR_BNB_OPTION for a map
 * that does not fit the model, ERR_BNB_OOM where it has no room, ERR_BNB_FILE for an offloadFolder that cannot be written.
 */
export async function decidePlacement(
  model: Module,
  loading: Loading,
  options: PlacementOptions,
): Promise<{ placement: ModelPlacement; tied: string | null }> {
  const { source, config, ties, blocksize } = loading;
  const { formats } = formatsOf(model, source, config, ties);
  const keepsFloat = config?.llmInt8EnableFp32CpuOffload === true && config.loadIn8bit && !isQuantized(source);
  const units = unitsOf(model, { formats, source, config, blocksize }, keepsFloat);
  const [alias, weight] = Object.entries(ties.tied)[0] ?? [];
  const holder = weight && units.find(({ path }) => weight.startsWith(`${path}.`));
  const tied = alias && holder ? { head: alias.replace(/\.weight$/, ""), unit: holder.path } : null;
  const plan = planOf(model, units, tied, loading, options);
  const plans = tied ? { ...plan, places: withHead(plan.places, tied) } : plan;
  const folder = await folderFor(units, plan, options.offloadFolder);
  return { placement: new ModelPlacement(model, units, plans, folder), tied: tied?.unit ?? null };
}

function withHead(places: ReadonlyMap<string, Place>, tied: { head: string; unit: string }): Map<string, Place> {
  return new Map([...places, [tied.head, places.get(tied.unit) as Place]]);
}

function planOf(
  model: Module,
  units: readonly ModelUnit[],
  tied: { head: string; unit: string } | null,
  loading: Loading,
  { deviceMap = "auto", maxMemory, offloadFolder }: PlacementOptions,
): Plan {
  const limits = maxMemory === undefined ? null : limitsOf(maxMemory);
  if (isPlainObject(deviceMap)) {
    const paths = model.namedModules().map(([path]) => path);
    const plan = resolveMap(deviceMap as DeviceMap, units, paths, tied);
    for (const place of new Set(plan.places.values())) if (place !== "disk") toDevice(place).open();
    if (limits) checkRooms(plan, units, limits);
    return plan;
  }
  const planFor = (gpus: readonly Device[], strategy: Strategy): Plan =>
    planUnits(units, roomsOf(gpus, limits, model, loading, offloadFolder), strategy);
  if (strategies.includes(deviceMap as string)) {
    const isUsable = (device: Device): boolean => limits?.has(String(device)) ?? canOpen(device);
    const gpus = devices().filter((device) => device.type === "cuda" && isUsable(device));
    return planFor(gpus, deviceMap as Strategy);
  }
  const device = deviceOf(deviceMap as DeviceLike | number);
  return planFor(device.type === "cuda" ? [device] : [], "sequential");
}

/** Bytes by the names of devices. Throws ERR_BNB_OPTION, and as toDevice does. */
function limitsOf(maxMemory: Readonly<Record<string, number | string>>): Map<Place, number> {
  const limits = new Map<Place, number>();
  for (const [key, value] of Object.entries(maxMemory)) {
    const place = placeName(key);
    if (place !== "disk") limits.set(String(toDevice(place)), parseBytes(key, value));
  }
  if ([...limits.values()].some((bytes) => bytes > 0)) return limits;
  throw new BnbError("ERR_BNB_OPTION", "maxMemory: it must give some device more than 0 bytes, got none");
}

/** What may be filled: what the user allows, or nine tenths of what is there, with room for keys and values of a text. */
function roomsOf(
  gpus: readonly Device[],
  limits: ReadonlyMap<Place, number> | null,
  model: Module,
  { dtype }: Loading,
  offloadFolder: string | undefined,
): Rooms {
  const kv = keysAndValues(model, dtype);
  // A machine with a disk to go to keeps a tenth of its memory free; without, what is too large fails as it ever did.
  const free = gpus.length > 0 || offloadFolder !== undefined ? 0.9 * freemem() : Number.MAX_SAFE_INTEGER;
  const host = limits?.get("cpu") ?? Math.floor(free);
  if (gpus.length === 0) return { devices: new Map([["cpu", host]]), host: 0 };
  const roomOf = (gpu: Device): number => {
    const { liveBytes = 0, cachedBytes = 0 } = memory().devices[String(gpu)] ?? {};
    return Math.max(0, Math.floor(0.9 * gpu.memory - liveBytes - cachedBytes - kv / gpus.length));
  };
  return { devices: new Map(gpus.map((gpu) => [String(gpu), limits?.get(String(gpu)) ?? roomOf(gpu)])), host };
}

/** Bytes of a text of as many tokens as most are short of. */
function keysAndValues(model: Module, dtype: DType): number {
  if (!(model instanceof CausalLM)) return 0;
  const tokens = Math.min(model.config.maxPositionEmbeddings, TOKENS);
  return model
    .kvLayout()
    .reduce((sum, { kvHeads, headDim }) => sum + 2 * tokens * kvHeads * headDim * sizeOf(dtype), 0);
}

const TOKENS = 4096;

async function folderFor(
  units: readonly ModelUnit[],
  { places, main }: Plan,
  path: string | undefined,
): Promise<OffloadFolder | null> {
  const onDisk = units.filter((unit) => places.get(unit.path) === "disk");
  if (onDisk.length === 0) return null;
  if (path === undefined) {
    const bytes = onDisk.reduce((sum, { offloadedBytes }) => sum + offloadedBytes, 0);
    const which = `${onDisk[0]?.path}${onDisk.length > 1 ? ` to ${onDisk.at(-1)?.path}` : ""}`;
    const rule = `deviceMap: ${sizeText(bytes)} of the model (${which}) must wait on disk, as ${main} has no room for them`;
    throw new BnbError("ERR_BNB_OPTION", `${rule}: give offloadFolder, a folder for them, or more maxMemory`);
  }
  const folder = new OffloadFolder(path);
  await folder.check();
  return folder;
}

function canOpen(device: Device): boolean {
  try {
    device.open();
    return true;
  } catch {
    return false; // gpuStatus() has the reason
  }
}
