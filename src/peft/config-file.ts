// adapter_config.json as PEFT writes and reads it. What was loaded and did not change is written as it was.
import { parseConfig } from "../hub/config-text.js";
import { formatError } from "../hub/safetensors-header.js";
import { snakeCase } from "../nn/index.js";
import type { PythonObject, PythonValue } from "../ops/python-json.js";
import { PythonFloat, pythonJson } from "../ops/python-json.js";
import { isPlainObject } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import type { LoraConfigOptions } from "./config.js";
import { LoraConfig, loraDefaults } from "./config.js";

export const CONFIG = "adapter_config.json";

/** The version of PEFT whose keys these are. */
const PEFT_VERSION = "0.21.0";

/** Keys of PEFT that mean nothing here, with the values that they have when they are not used. */
const unused: Readonly<Record<string, PythonValue>> = {
  peft_type: "LORA",
  peft_version: PEFT_VERSION,
  ...{ alora_invocation_tokens: null, arrow_config: null, auto_mapping: null, corda_config: null, eva_config: null },
  ...{ kasa_config: null, layer_replication: null, lora_ga_config: null, megatron_config: null },
  ...{ megatron_core: "megatron.core", monteclora_config: null, qalora_group_size: 16 },
  ...{ use_bdlora: null, use_qalora: false, velora_config: null },
};
/** Those that may have any value: they say something of the file, or of what is not used. */
const free = new Set(["peft_version", "auto_mapping", "megatron_core", "qalora_group_size", "runtime_config"]);
const floats = new Set(["loraDropout"]);

const settings = Object.keys(loraDefaults) as (keyof LoraConfigOptions)[];

/** The text of the file for settings that are not those of a file. */
export function configText(config: LoraConfig): string {
  const own = settings.map((key) => {
    const value: unknown = config[key];
    return [snakeCase(key), floats.has(key) ? new PythonFloat(value as number) : pythonOf(key, value)] as const;
  });
  const entries = [...own, ...Object.entries(unused)].sort(([a], [b]) => (a < b ? -1 : 1));
  return pythonJson(Object.fromEntries(entries) as PythonObject, 2);
}

function pythonOf(key: string, value: unknown): PythonValue {
  if (key === "inferenceMode") return true;
  if (key === "initLoraWeights" && value === "loftq") return true;
  if (key !== "loftqConfig") return value as PythonValue;
  return Object.fromEntries(Object.entries(value as object).map(([name, v]) => [snakeCase(name), v as PythonValue]));
}

// The text that settings were read from.
const texts = new WeakMap<LoraConfig, string>();

/** The text that a config was read from, or null for one made in code. */
export function originalText(config: LoraConfig): string | null {
  return texts.get(config) ?? null;
}

/**
 * The settings of a file's text. Keys that are not known warn when they have a value that does nothing (null, false, empty),
 * and throw ERR_BNB_UNSUPPORTED otherwise; ERR_BNB_FORMAT for values of a wrong kind. `file` is named in errors.
 */
export function readConfig(text: string, file: string = CONFIG): LoraConfig {
  const json = parseConfig(text, file);
  const type = json["peft_type"];
  if (type !== "LORA") {
    throw new BnbError("ERR_BNB_UNSUPPORTED", `${file}: peft_type must be LORA, got ${JSON.stringify(type)}`);
  }
  const options: Record<string, unknown> = {};
  const known = new Map(settings.map((key) => [snakeCase(key), key]));
  const ignored: string[] = [];
  for (const [name, value] of Object.entries(json)) {
    const key = known.get(name);
    if (key !== undefined) {
      const isDefault = value === null && loraDefaults[key] !== null;
      if (!isDefault) options[key] = key === "loftqConfig" ? loftqOf(value) : value;
    } else if (!free.has(name) && !isSame(value, unused[name])) {
      if (!isNothing(value)) {
        const shown = JSON.stringify(value).slice(0, 80);
        throw new BnbError("ERR_BNB_UNSUPPORTED", `${file}: "${name}" is not supported, got ${shown}`);
      }
      if (!Object.hasOwn(unused, name)) ignored.push(name);
    }
  }
  if (ignored.length > 0) {
    process.emitWarning(`${file}: unknown keys are ignored: ${ignored.join(", ")}`, {
      type: "BnbWarning",
      code: "BNB_UNKNOWN_KEYS",
    });
  }
  const config = checked(options, file);
  texts.set(config, text);
  return config;
}

function checked(options: Record<string, unknown>, file: string): LoraConfig {
  const init = options["initLoraWeights"];
  // Its base is quantized by now.
  if (init === "loftq") options["initLoraWeights"] = true;
  // How it started once does not matter to what is loaded.
  if (typeof init === "string" && !["gaussian", "pissa", "olora", "loftq"].includes(init)) {
    if (!init.startsWith("pissa_niter_") && init !== "orthogonal") {
      const shown = JSON.stringify(init);
      throw new BnbError("ERR_BNB_UNSUPPORTED", `${file}: "init_lora_weights" is not supported, got ${shown}`);
    }
    options["initLoraWeights"] = init === "orthogonal" ? true : "pissa";
  }
  try {
    return new LoraConfig(options as LoraConfigOptions);
  } catch (error) {
    if (!(error instanceof BnbError)) throw error;
    throw formatError(file, error.message.replace(/^LoraConfig: /, ""), error);
  }
}

function loftqOf(value: unknown): unknown {
  if (!isPlainObject(value)) return value;
  const { loftq_bits: loftqBits, loftq_iter: loftqIter } = value as Record<string, unknown>;
  return { ...(loftqBits === 4 && { loftqBits }), ...(loftqIter !== undefined && { loftqIter }) };
}

const isSame = (a: unknown, b: unknown): boolean => JSON.stringify(a) === JSON.stringify(b);

function isNothing(value: unknown): boolean {
  if (value === null || value === false || value === "") return true;
  return typeof value === "object" && Object.keys(value).length === 0;
}
