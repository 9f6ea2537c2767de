// Dictionaries as uint8 tensors of JSON: how safetensors files carry what is no tensor.

import { aDevice, checkTensor } from "../tensor/checks.js";
import { fromBytes } from "../tensor/create.js";
import type { DeviceLike } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import type { PythonObject } from "./python-json.js";
import { pythonJson } from "./python-json.js";

/** Options of `packDictToTensor`. */
export interface PackDictOptions {
  device?: DeviceLike;
}
const packOptions = optionTable<PackDictOptions>({ device: aDevice });

/**
 * A dictionary of strings, numbers, booleans, null, lists and dictionaries as its JSON in UTF-8, uint8 [bytes], to the
 * byte what Python's `json.dumps` writes; a whole number is written as an integer.
 */
export function packDictToTensor(dict: PythonObject, options: PackDictOptions = {}): Tensor {
  checkOptions("packDictToTensor", options, packOptions);
  const bytes = new TextEncoder().encode(pythonJson(dict));
  return fromBytes(bytes, { dtype: "uint8", shape: [bytes.length], ...options });
}

/** The inverse of `packDictToTensor`. Waits for the device. Throws ERR_BNB_FORMAT for anything but a JSON object. */
export function unpackTensorToDict(data: Tensor): Record<string, unknown> {
  const fail = (rule: string, cause?: unknown): never => {
    throw new BnbError("ERR_BNB_FORMAT", `unpackTensorToDict: data must be ${rule}`, { cause });
  };
  checkTensor("unpackTensorToDict", "data", data);
  if (data.dtype !== "uint8") fail(`uint8, got ${data.dtype}`);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(data.dataSync()));
  } catch (cause) {
    fail("JSON", cause);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) fail("a JSON object");
  return value as Record<string, unknown>;
}
