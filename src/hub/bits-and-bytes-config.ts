// BitsAndBytesConfig: how a model's linear layers are quantized, as transformers names it and writes it into config.json.
import type { QuantStorage } from "../ops/index.js";
import type { Check } from "../tensor/checks.js";
import {
  aBoolean,
  aFloatDType,
  aNumberIn,
  aPlainObject,
  arrayOf,
  aString,
  checkArgument,
  failCheck,
  oneOf,
  orNull,
} from "../tensor/checks.js";
import type { DType } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { checkSkipPattern } from "./skip-patterns.js";

/** How a model's linear layers are quantized as it loads: what `new BitsAndBytesConfig` takes, all of it optional. */
export interface BitsAndBytesConfigOptions {
  /** Linear layers become `Linear8bitLt`. Default false. */
  loadIn8bit?: boolean;
  /** Linear layers become `Linear4bit`. Default false. */
  loadIn4bit?: boolean;
  /** Activations of at least this magnitude are multiplied in floating point; 0 is never. Default 6. */
  llmInt8Threshold?: number;
  /**
   * Modules that stay as they are: regular expressions that match the start of a module's path, or its end as it is. null,
   * the default, is the output embedding, what is tied to others and the module of the last parameter.
   */
  llmInt8SkipModules?: readonly string[] | null;
  /**
   * Whether layers that wait in host memory or on disk (`deviceMap`) stay float32 where others become int8. Default false: they
   * wait there quantized.
   */
  llmInt8EnableFp32CpuOffload?: boolean;
  /** 8-bit layers keep their float weight. Default false. */
  llmInt8HasFp16Weight?: boolean;
  /** The type that 4-bit layers may compute in. Default "float32". */
  bnb4bitComputeDtype?: DType;
  /** Default "fp4". */
  bnb4bitQuantType?: "fp4" | "nf4";
  /** Whether the scales are quantized, too. Default false. */
  bnb4bitUseDoubleQuant?: boolean;
  /** What packed codes are declared as. Default "uint8". */
  bnb4bitQuantStorage?: QuantStorage;
}

const storages = ["uint8", "int8", "float16", "bfloat16", "float32", "float64"];
const checks = {
  loadIn8bit: aBoolean,
  loadIn4bit: aBoolean,
  llmInt8Threshold: aNumberIn(0),
  llmInt8SkipModules: orNull(arrayOf(aString)),
  llmInt8EnableFp32CpuOffload: aBoolean,
  llmInt8HasFp16Weight: aBoolean,
  bnb4bitComputeDtype: aFloatDType,
  bnb4bitQuantType: oneOf(["fp4", "nf4"]),
  bnb4bitUseDoubleQuant: aBoolean,
  bnb4bitQuantStorage: oneOf(storages),
};
const configOptions = optionTable<BitsAndBytesConfigOptions>(checks);

/** The keys of files, by the options they are here, in the order in which transformers writes them. */
const fileKeys = {
  bnb4bitComputeDtype: "bnb_4bit_compute_dtype",
  bnb4bitQuantStorage: "bnb_4bit_quant_storage",
  bnb4bitQuantType: "bnb_4bit_quant_type",
  bnb4bitUseDoubleQuant: "bnb_4bit_use_double_quant",
  llmInt8EnableFp32CpuOffload: "llm_int8_enable_fp32_cpu_offload",
  llmInt8HasFp16Weight: "llm_int8_has_fp16_weight",
  llmInt8SkipModules: "llm_int8_skip_modules",
  llmInt8Threshold: "llm_int8_threshold",
  loadIn4bit: "load_in_4bit",
  loadIn8bit: "load_in_8bit",
} as const satisfies Record<keyof BitsAndBytesConfigOptions, string>;
type Key = keyof typeof fileKeys;
const keys = Object.keys(fileKeys) as Key[];
const others = ["_load_in_4bit", "_load_in_8bit", "quant_method"];

/** The object `quantization_config` of a config.json. */
export type QuantizationConfigJson = Record<string, string | number | boolean | null | readonly string[]>;

/**
 * How linear layers are quantized while a model is loaded. Throws ERR_BNB_OPTION for unknown keys, and for settings that
 * contradict each other.
 *
 * @example
 * const quantizationConfig = new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" });
 */
export class BitsAndBytesConfig {
  readonly loadIn8bit: boolean;
  readonly loadIn4bit: boolean;
  readonly llmInt8Threshold: number;
  readonly llmInt8SkipModules: readonly string[] | null;
  readonly llmInt8EnableFp32CpuOffload: boolean;
  readonly llmInt8HasFp16Weight: boolean;
  readonly bnb4bitComputeDtype: DType;
  readonly bnb4bitQuantType: "fp4" | "nf4";
  readonly bnb4bitUseDoubleQuant: boolean;
  readonly bnb4bitQuantStorage: QuantStorage;

  constructor(options: BitsAndBytesConfigOptions = {}) {
    checkOptions("BitsAndBytesConfig", options, configOptions);
    this.loadIn8bit = options.loadIn8bit ?? false;
    this.loadIn4bit = options.loadIn4bit ?? false;
    this.llmInt8Threshold = options.llmInt8Threshold ?? 6;
    this.llmInt8SkipModules = options.llmInt8SkipModules ?? null;
    this.llmInt8EnableFp32CpuOffload = options.llmInt8EnableFp32CpuOffload ?? false;
    this.llmInt8HasFp16Weight = options.llmInt8HasFp16Weight ?? false;
    this.bnb4bitComputeDtype = options.bnb4bitComputeDtype ?? "float32";
    this.bnb4bitQuantType = options.bnb4bitQuantType ?? "fp4";
    this.bnb4bitUseDoubleQuant = options.bnb4bitUseDoubleQuant ?? false;
    this.bnb4bitQuantStorage = options.bnb4bitQuantStorage ?? "uint8";
    refuseContradictions(options);
  }

  /**
   * Reads the `quantization_config` of a config.json. Missing keys take their defaults, unknown ones are ignored with a
   * warning (BNB_UNKNOWN_KEY). Throws ERR_BNB_FORMAT for wrong values, ERR_BNB_UNSUPPORTED for another method.
   */
  static fromJSON(json: Record<string, unknown>): BitsAndBytesConfig {
    checkArgument("quantization_config", "the object", json, aPlainObject);
    const method = json["quant_method"] ?? "bitsandbytes";
    if (method !== "bitsandbytes") {
      const rule = "quantization_config: quant_method must be bitsandbytes";
      throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got ${JSON.stringify(method)}`);
    }
    const options: Partial<Record<Key, unknown>> = {};
    for (const key of keys) {
      const value = fileValue(key, json[fileKeys[key]]);
      if (value === undefined) continue;
      const check: Check = checks[key];
      if (!check.holds(value)) {
        failCheck("quantization_config", fileKeys[key], value, { ...check, code: "ERR_BNB_FORMAT" }, "ERR_BNB_FORMAT");
      }
      options[key] = value;
    }
    for (const pattern of (options.llmInt8SkipModules ?? []) as string[]) checkSkipPattern(pattern);
    const known: readonly string[] = [...Object.values(fileKeys), ...others];
    const unknown = Object.keys(json).filter((key) => !known.includes(key));
    if (unknown.length > 0) {
      process.emitWarning(`quantization_config: ignored, because unknown: ${unknown.join(", ")}`, {
        type: "BnbWarning",
        code: "BNB_UNKNOWN_KEY",
      });
    }
    if (options.loadIn4bit && options.loadIn8bit) {
      throw new BnbError("ERR_BNB_FORMAT", `quantization_config: ${BOTH}`);
    }
    // A file has the settings of both methods, of which one is in use.
    const unused = options.loadIn4bit ? only8bit : options.loadIn8bit ? only4bit : [];
    const used = Object.fromEntries(Object.entries(options).filter(([key]) => !unused.includes(key as Key)));
    const rest = Object.fromEntries(Object.entries(options).filter(([key]) => unused.includes(key as Key)));
    return Object.assign(new BitsAndBytesConfig(used), rest);
  }

  /** The object as transformers writes it, with its keys in order. */
  toJSON(): QuantizationConfigJson {
    const settings = Object.fromEntries(keys.map((key) => [fileKeys[key], this[key]]));
    return {
      _load_in_4bit: this.loadIn4bit,
      _load_in_8bit: this.loadIn8bit,
      ...settings,
      quant_method: "bitsandbytes",
    };
  }
}

const BOTH = "load_in_4bit and load_in_8bit must not both be true: choose one";
const only4bit: readonly Key[] = [
  "bnb4bitComputeDtype",
  "bnb4bitQuantType",
  "bnb4bitUseDoubleQuant",
  "bnb4bitQuantStorage",
];
const only8bit: readonly Key[] = ["llmInt8Threshold", "llmInt8HasFp16Weight"];

/** Settings given for a method that is not in use are a mistake of who gives them. */
function refuseContradictions(options: BitsAndBytesConfigOptions): void {
  const { loadIn4bit = false, loadIn8bit = false } = options;
  if (loadIn4bit && loadIn8bit) {
    const rule = "loadIn4bit and loadIn8bit must not both be true";
    throw new BnbError("ERR_BNB_OPTION", `BitsAndBytesConfig: ${rule}: choose one`);
  }
  const refuse = (names: readonly Key[], switchName: string): void => {
    const given = names.find((name) => options[name] !== undefined);
    if (given === undefined) return;
    const rule = `${given} needs ${switchName}: true, which is not set`;
    throw new BnbError("ERR_BNB_OPTION", `BitsAndBytesConfig: ${rule}: set it, or leave ${given} out`);
  };
  if (!loadIn4bit) refuse(only4bit, "loadIn4bit");
  if (!loadIn8bit) refuse(only8bit, "loadIn8bit");
}

/** A dtype also as `torch.float16`, which older files have. */
function fileValue(key: Key, value: unknown): unknown {
  if (value === null && key !== "llmInt8SkipModules") return undefined;
  const isDType = key === "bnb4bitComputeDtype" || key === "bnb4bitQuantStorage";
  return isDType && typeof value === "string" ? value.replace(/^torch\./, "") : value;
}
