// A 4-bit QuantState as a dictionary: Python's keys, the JSON of checkpoints, and the checks of what is read.
import { fromBytes, tensor } from "../tensor/create.js";
import { describe } from "../tensor/describe.js";
import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { Tensor } from "../tensor/tensor.js";
import type { QuantType } from "./codebooks.js";
import { get4bitType, mapProblem } from "./codebooks.js";
import type { PythonObject } from "./python-json.js";
import { PythonFloat, pythonJson } from "./python-json.js";

/** A checkpoint's form: `absmax`, `quant_map`, the nested ones, and the JSON under `quant_state.bitsandbytes__X`. */
export type PackedQuantState = Record<string, Tensor>;

/** Every part under its Python name. */
export interface QuantStateDict {
  [key: string]: StateDictValue;
  quant_type: QuantType;
  absmax: Tensor;
  blocksize: number;
  quant_map: Tensor;
  dtype: DType;
  shape: readonly number[];
}

export type StateDictValue = Tensor | string | number | readonly number[] | undefined;

/** @internal The parts of a QuantState that are saved. */
export interface SavedState {
  readonly absmax: Tensor;
  readonly code: Tensor;
  readonly shape: readonly number[] | null;
  readonly blocksize: number;
  readonly quantType: QuantType | null;
  readonly dtype: DType;
  readonly offset: Tensor | null;
  readonly state2: SavedState | null;
  readonly device: Device;
}

const PREFIX = "quant_state.bitsandbytes__";

/** @internal */
export function stateUnpacked(state: SavedState): QuantStateDict {
  const { quantType, shape } = fileable(state);
  checkSavable(state);
  const { state2, offset } = state;
  return {
    quant_type: quantType,
    absmax: state.absmax,
    blocksize: state.blocksize,
    quant_map: state.code,
    dtype: state.dtype,
    shape,
    ...(state2 && {
      nested_absmax: state2.absmax,
      nested_blocksize: state2.blocksize,
      nested_quant_map: state2.code,
      nested_dtype: state2.dtype,
      nested_offset: (offset as Tensor).itemSync(),
    }),
  };
}

/** @internal */
export function statePacked(state: SavedState): PackedQuantState {
  const { quantType, shape } = fileable(state);
  checkSavable(state);
  const { state2, offset } = state;
  const json: Record<string, PythonObject[string]> = {
    quant_type: quantType,
    blocksize: state.blocksize,
    dtype: state.dtype,
    shape,
  };
  const packed: PackedQuantState = { absmax: state.absmax, quant_map: state.code };
  if (state2) {
    const mean = (offset as Tensor).itemSync();
    Object.assign(packed, { nested_absmax: state2.absmax, nested_quant_map: state2.code });
    Object.assign(json, {
      nested_blocksize: state2.blocksize,
      nested_dtype: state2.dtype,
      nested_offset: new PythonFloat(mean),
    });
  }
  const bytes = new TextEncoder().encode(pythonJson(json));
  packed[PREFIX + quantType] = fromBytes(bytes, { dtype: "uint8", shape: [bytes.length], device: state.device });
  return packed;
}

// Reading refuses scales that are not finite and not negative, so writing does.
function checkSavable({ absmax, state2, offset }: SavedState): void {
  const wrong = (what: string, value: unknown): never => {
    throw new BnbError("ERR_BNB_NONFINITE", `QuantState.asDict: ${what} must be finite to be saved, got ${value}`);
  };
  const mean = offset?.itemSync() ?? 0;
  if (!Number.isFinite(mean)) wrong("the offset", mean);
  const [scales, name] = state2 ? [state2.absmax, "nested_absmax"] : [absmax, "absmax"];
  const bad = badScale(scales);
  if (bad) wrong(name, `${bad.value} at ${bad.index}`);
}

// Only nf4 and fp4 have a file format.
function fileable(state: SavedState): { quantType: "nf4" | "fp4"; shape: readonly number[] } {
  const { quantType, shape } = state;
  if ((quantType !== "nf4" && quantType !== "fp4") || !shape) {
    const got = quantType ?? "an 8-bit state";
    throw new BnbError("ERR_BNB_OPTION", `QuantState.asDict: only nf4 and fp4 have a file format, got ${got}`);
  }
  return { quantType, shape };
}

/** @internal What a dictionary holds, checked. Its tensors are those given. */
export interface StateParts {
  absmax: Tensor;
  code: Tensor;
  shape: readonly number[];
  blocksize: number;
  quantType: QuantType;
  dtype: DType;
  nested: { absmax: Tensor; code: Tensor; blocksize: number; offset(device: Device): Tensor } | null;
}

function wrong(rule: string, cause?: unknown): never {
  throw new BnbError("ERR_BNB_FORMAT", `QuantState.fromDict: ${rule}`, cause === undefined ? undefined : { cause });
}

/** @internal */
export function readStateDict(dict: Readonly<Record<string, StateDictValue>>): StateParts {
  const values = collect(dict);
  const has = (key: string): boolean => values.get(key) !== undefined;
  const nested = has("nested_absmax");
  const required = ["quant_type", "absmax", "blocksize", "quant_map", "dtype", "shape"];
  const extra = ["nested_absmax", "nested_blocksize", "nested_quant_map", "nested_dtype", "nested_offset"];
  for (const key of required) if (!has(key)) wrong(`"${key}" is missing`);
  for (const key of extra) {
    if (has(key) !== nested) wrong(`"${nested ? key : "nested_absmax"}" is missing in a nested state`);
  }
  for (const key of values.keys()) if (![...required, ...extra].includes(key)) wrong(`unknown key "${key}"`);

  const quantType = values.get("quant_type");
  if (quantType !== "nf4" && quantType !== "fp4") wrong(`quant_type must be nf4 or fp4, got ${shown(quantType)}`);
  const dtype = values.get("dtype");
  if (dtype !== "float32" && dtype !== "float16" && dtype !== "bfloat16") {
    wrong(`dtype must be float32, float16 or bfloat16, got ${shown(dtype)}`);
  }
  const shape = shapeOf(values.get("shape"));
  const blocksize = blocksizeOf(values, "blocksize", 32);
  const blocks = Math.ceil(shape.reduce((n, dim) => n * dim, 1) / blocksize);

  const absmax = tensorOf(values, "absmax", nested ? "uint8" : "float32", blocks);
  const code = tensorOf(values, "quant_map", "float32", 16);
  checkTable(code, quantType);
  if (!nested) {
    checkScales(absmax, "absmax");
    return { absmax, code, shape, blocksize, quantType, dtype, nested: null };
  }
  if (values.get("nested_dtype") !== "float32") {
    wrong(`nested_dtype must be float32, got ${shown(values.get("nested_dtype"))}`);
  }
  const nestedBlocksize = blocksizeOf(values, "nested_blocksize", 64);
  const nestedAbsmax = tensorOf(values, "nested_absmax", "float32", Math.ceil(blocks / nestedBlocksize));
  checkScales(nestedAbsmax, "nested_absmax");
  const nestedCode = tensorOf(values, "nested_quant_map", "float32", 256);
  const problem = mapProblem(nestedCode.floatsSync());
  if (problem) wrong(`nested_quant_map ${problem}`);
  const offset = values.get("nested_offset");
  if (typeof offset !== "number" || !Number.isFinite(Math.fround(offset))) {
    wrong(`nested_offset must be a finite number, got ${shown(offset)}`);
  }
  const { fround } = Math;
  return {
    absmax,
    code,
    shape,
    blocksize,
    quantType,
    dtype,
    nested: {
      absmax: nestedAbsmax,
      code: nestedCode,
      blocksize: nestedBlocksize,
      offset: (device) => tensor(fround(offset), { device }),
    },
  };
}

// The entries without prefixes, the JSON unpacked among them.
function collect(dict: Readonly<Record<string, StateDictValue>>): Map<string, StateDictValue> {
  if (typeof dict !== "object" || dict === null) wrong(`the dict must be an object, got ${describe(dict)}`);
  const values = new Map<string, StateDictValue>();
  const add = (key: string, value: StateDictValue): void => {
    if (values.has(key)) wrong(`"${key}" is there twice`);
    values.set(key, value);
  };
  const packed: [type: string, json: Tensor][] = [];
  for (const [key, value] of Object.entries(dict)) {
    const at = key.lastIndexOf(PREFIX);
    if (at >= 0 && value instanceof Tensor) packed.push([key.slice(at + PREFIX.length), value]);
    else if (value !== undefined) add(key.slice(key.lastIndexOf(".") + 1), value);
  }
  if (packed.length > 1) wrong(`one quant_state is needed, got ${packed.length}`);
  for (const [type, json] of packed) {
    for (const [key, value] of Object.entries(parse(json))) add(key, value);
    if (values.get("quant_type") !== type) {
      wrong(`quant_type must be ${shown(type)} as in the key, got ${shown(values.get("quant_type"))}`);
    }
  }
  if (packed.length === 0 && !values.has("quant_type")) wrong("neither quant_type nor a packed quant_state is there");
  return values;
}

function parse(json: Tensor): Record<string, StateDictValue> {
  if (json.dtype !== "uint8" || json.size > 65536) wrong("quant_state must be at most 65536 bytes of uint8");
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(json.dataSync()));
  } catch (cause) {
    wrong("quant_state must be JSON", cause);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) wrong("quant_state must be a JSON object");
  return value as Record<string, StateDictValue>;
}

function shapeOf(value: StateDictValue): readonly number[] {
  const good = Array.isArray(value) && value.length >= 1 && value.every((dim) => Number.isSafeInteger(dim) && dim >= 0);
  if (!good) wrong(`shape must be a list of sizes, got ${shown(value)}`);
  const shape = value as readonly number[];
  if (!Number.isSafeInteger(shape.reduce((n, dim) => n * dim, 1))) wrong(`shape is too large: ${shown(value)}`);
  return shape;
}

function blocksizeOf(values: Map<string, StateDictValue>, key: string, smallest: number): number {
  const value = values.get(key);
  for (let size = smallest; size <= 4096; size *= 2) if (value === size) return size;
  wrong(`${key} must be a power of two from ${smallest} to 4096, got ${shown(value)}`);
}

function tensorOf(values: Map<string, StateDictValue>, key: string, dtype: DType, size: number): Tensor {
  const value = values.get(key);
  if (!(value instanceof Tensor)) wrong(`"${key}" must be a tensor, got ${shown(value)}`);
  if (value.dtype !== dtype) wrong(`"${key}" must be ${dtype}, got ${value.dtype}`);
  if (value.size !== size) wrong(`"${key}" must have ${size} elements, got ${value.size}`);
  return value;
}

function checkTable(code: Tensor, quantType: QuantType): void {
  const table = get4bitType(quantType);
  const expected = table.floatsSync();
  table.dispose();
  const at = code.floatsSync().findIndex((value, i) => !(Math.abs(value - (expected[i] as number)) <= 1e-6));
  if (at >= 0) wrong(`quant_map differs from ${quantType} at ${at}`);
}

function checkScales(scales: Tensor, key: string): void {
  const bad = badScale(scales);
  if (bad) wrong(`"${key}" must be finite and not negative, got ${bad.value} at ${bad.index}`);
}

function badScale(scales: Tensor): { value: number; index: number } | null {
  const values = scales.floatsSync();
  const index = values.findIndex((value) => !(value >= 0 && value < Infinity));
  return index < 0 ? null : { value: values[index] as number, index };
}

function shown(value: unknown): string {
  return value instanceof Tensor ? String(value) : (JSON.stringify(value) ?? String(value));
}
