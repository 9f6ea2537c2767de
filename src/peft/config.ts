// LoraConfig: what adapters there are and how they are made, with the names of PEFT in camelCase.
import type { Check } from "../tensor/checks.js";
import {
  aBoolean,
  aFiniteNumber,
  aNumberIn,
  anInteger,
  aPlainObject,
  arrayOf,
  aString,
  either,
  oneOf,
  orNull,
} from "../tensor/checks.js";
import { isPlainObject } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { checkPathPattern, matchesEnd } from "./path-patterns.js";

/** How A and B start: see `LoraConfigOptions.initLoraWeights`. */
export type InitLoraWeights = boolean | "gaussian" | "pissa" | "olora" | "loftq";

/** The settings of a LoRA adapter (Hu et al., 2021); a file holds them in snake_case. */
export interface LoraConfigOptions {
  /** Rank of the updates. Default 8. */
  r?: number;
  /** Updates are scaled by loraAlpha / r, or loraAlpha / sqrt(r) with `useRslora`. Default 8. */
  loraAlpha?: number;
  /** Probability of dropping an input of A while training. Default 0. */
  loraDropout?: number;
  /**
   * Which modules get an adapter. A list: those whose path is an item or ends with "." + item. A string: those whose whole
   * path it matches as a regular expression. "all-linear": every linear layer but the head. null (the default) with other
   * parts, such as `trainableTokenIndices`, alone.
   */
  targetModules?: readonly string[] | string | null;
  /** Of those, the ones that get none, in the same two forms. */
  excludeModules?: readonly string[] | string | null;
  /**
   * Modules that are trained and saved as a whole, by the last part of their paths or by the paths; as in PEFT in the base's
   * dtype, which `prepareModelForKbitTraining` makes float32.
   */
  modulesToSave?: readonly string[] | null;
  /** Of PEFT's stacked experts. Models here hold experts as layers: a model refuses it with ERR_BNB_UNSUPPORTED. */
  targetParameters?: readonly string[] | null;
  /** Rows of the input embedding that are trained and saved: a list, or lists by the end of the embedding's path. */
  trainableTokenIndices?: readonly number[] | Readonly<Record<string, readonly number[]>> | null;
  /** Which biases of the base learn, too. They stay changed where the adapter is disabled. Default "none". */
  bias?: "none" | "all" | "lora_only";
  /** Whether B has a bias. Default false. */
  loraBias?: boolean;
  /** DoRA (Liu et al., 2024): the rows' lengths are learned apart from their directions. Default false. */
  useDora?: boolean;
  /** Default false. */
  useRslora?: boolean;
  /** Whether PEFT's layers hold their weights as [in, out] (Conv1D of GPT-2); nothing changes here. Default false. */
  fanInFanOut?: boolean;
  /** Ranks by patterns of paths: the first `^(.*\.)?pattern$` that matches wins. */
  rankPattern?: Readonly<Record<string, number>>;
  /** Likewise loraAlpha. */
  alphaPattern?: Readonly<Record<string, number>>;
  /** Numbers of the layers whose modules are targets; for a list of `targetModules`. */
  layersToTransform?: number | readonly number[] | null;
  /** What stands before the number of a layer; default: any name. */
  layersPattern?: string | readonly string[] | null;
  /**
   * true (the default): A uniform, B zero. "gaussian": A normal with deviation 1 / r. false: both random. "pissa" (the
   * largest singular values) and "olora" (QR) move a part of the base's float weights into the adapter. "loftq" makes float
   * bases 4-bit, and the adapter from what quantization lost.
   */
  initLoraWeights?: InitLoraWeights;
  /** Of "loftq": bits (4 alone) and iterations. */
  loftqConfig?: { readonly loftqBits?: 4; readonly loftqIter?: number };
  /** "CAUSAL_LM", "SEQ_CLS" (which trains and saves the head, too), "FEATURE_EXTRACTION", ... */
  taskType?: string | null;
  /** Where the base model is. */
  baseModelNameOrPath?: string | null;
  /** The version of the base. */
  revision?: string | null;
  /** Whether the head of tied embeddings follows modulesToSave and trainable rows; here it always does. Default false. */
  ensureWeightTying?: boolean;
  /** Whether the adapter is loaded frozen by default; files are saved with true. */
  inferenceMode?: boolean;
}

const strings = arrayOf(aString);
const rows = arrayOf(anInteger(0));
const numbersBy = (what: string, item: Check): Check => ({
  rule: what,
  holds: (v) => isPlainObject(v) && Object.values(v as object).every(item.holds),
});
const checks = {
  r: anInteger(1),
  loraAlpha: aFiniteNumber,
  loraDropout: aNumberIn(0, 1),
  targetModules: orNull(either(aString, strings)),
  excludeModules: orNull(either(aString, strings)),
  modulesToSave: orNull(strings),
  targetParameters: orNull(strings),
  trainableTokenIndices: orNull(either(rows, numbersBy("an object of lists of them", rows))),
  bias: oneOf(["none", "all", "lora_only"]),
  loraBias: aBoolean,
  useDora: aBoolean,
  useRslora: aBoolean,
  fanInFanOut: aBoolean,
  rankPattern: numbersBy("an object of integers of at least 1", anInteger(1)),
  alphaPattern: numbersBy("an object of finite numbers", aFiniteNumber),
  layersToTransform: orNull(either(anInteger(0), rows)),
  layersPattern: orNull(either(aString, strings)),
  initLoraWeights: oneOf([true, false, "gaussian", "pissa", "olora", "loftq"]),
  loftqConfig: aPlainObject,
  taskType: orNull(aString),
  baseModelNameOrPath: orNull(aString),
  revision: orNull(aString),
  ensureWeightTying: aBoolean,
  inferenceMode: aBoolean,
};
const configOptions = optionTable<LoraConfigOptions>(checks);
const loftqOptions = optionTable<NonNullable<LoraConfigOptions["loftqConfig"]>>({
  loftqBits: oneOf([4]),
  loftqIter: anInteger(1),
});

/** @internal Every setting with its default. */
export const loraDefaults = {
  r: 8,
  loraAlpha: 8,
  loraDropout: 0,
  targetModules: null,
  excludeModules: null,
  modulesToSave: null,
  targetParameters: null,
  trainableTokenIndices: null,
  bias: "none",
  loraBias: false,
  useDora: false,
  useRslora: false,
  fanInFanOut: false,
  rankPattern: {},
  alphaPattern: {},
  layersToTransform: null,
  layersPattern: null,
  initLoraWeights: true,
  loftqConfig: {},
  taskType: null,
  baseModelNameOrPath: null,
  revision: null,
  ensureWeightTying: false,
  inferenceMode: false,
} as const satisfies Required<LoraConfigOptions>;

/**
 * Settings of an adapter, checked. Throws ERR_BNB_OPTION for an unknown name or value, and for patterns that are no
 * regular expressions.
 *
 * @example
 * const config = new LoraConfig({ r: 16, loraAlpha: 32, targetModules: "all-linear", taskType: "CAUSAL_LM" });
 * const model = getPeftModel(base, config);
 */
export class LoraConfig {
  declare readonly r: number;
  declare readonly loraAlpha: number;
  declare readonly loraDropout: number;
  declare readonly targetModules: readonly string[] | string | null;
  declare readonly excludeModules: readonly string[] | string | null;
  declare readonly modulesToSave: readonly string[] | null;
  declare readonly targetParameters: readonly string[] | null;
  declare readonly trainableTokenIndices: readonly number[] | Readonly<Record<string, readonly number[]>> | null;
  declare readonly bias: "none" | "all" | "lora_only";
  declare readonly loraBias: boolean;
  declare readonly useDora: boolean;
  declare readonly useRslora: boolean;
  declare readonly fanInFanOut: boolean;
  declare readonly rankPattern: Readonly<Record<string, number>>;
  declare readonly alphaPattern: Readonly<Record<string, number>>;
  declare readonly layersToTransform: number | readonly number[] | null;
  declare readonly layersPattern: string | readonly string[] | null;
  declare readonly initLoraWeights: InitLoraWeights;
  declare readonly loftqConfig: { readonly loftqBits?: 4; readonly loftqIter?: number };
  declare readonly taskType: string | null;
  declare readonly baseModelNameOrPath: string | null;
  declare readonly revision: string | null;
  declare readonly ensureWeightTying: boolean;
  declare readonly inferenceMode: boolean;

  constructor(options: LoraConfigOptions = {}) {
    checkOptions("LoraConfig", options, configOptions);
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    Object.assign(this, loraDefaults, Object.fromEntries(given));
    checkOptions("LoraConfig", this.loftqConfig, loftqOptions);
    if (this.useDora && this.loraBias) refuse("useDora", "loraBias");
    if (this.useDora && this.targetParameters) refuse("useDora", "targetParameters");
    if (this.layersToTransform !== null && !Array.isArray(this.targetModules)) {
      const rule = "LoraConfig: layersToTransform needs a list of targetModules";
      throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${JSON.stringify(this.targetModules)}`);
    }
    for (const pattern of [this.targetModules, this.excludeModules])
      if (typeof pattern === "string") checkPathPattern(pattern, "path", "LoraConfig");
    const ends = [this.layersPattern ?? [], Object.keys(this.rankPattern), Object.keys(this.alphaPattern)].flat();
    for (const pattern of ends) checkPathPattern(pattern, "end", "LoraConfig");
  }

  /** The same settings with some of them changed. */
  with(changes: LoraConfigOptions): LoraConfig {
    return new LoraConfig({ ...this, ...changes });
  }

  /** Rank of the module at a path. */
  rankOf(path: string): number {
    return byPattern(this.rankPattern, path) ?? this.r;
  }

  /** What the update of the module at a path is multiplied by. */
  scalingOf(path: string): number {
    const r = this.rankOf(path);
    return (byPattern(this.alphaPattern, path) ?? this.loraAlpha) / (this.useRslora ? Math.sqrt(r) : r);
  }
}

function byPattern(patterns: Readonly<Record<string, number>>, path: string): number | undefined {
  const key = Object.keys(patterns).find((pattern) => matchesEnd(pattern, path));
  return key === undefined ? undefined : patterns[key];
}

function refuse(a: string, b: string): never {
  throw new BnbError("ERR_BNB_OPTION", `LoraConfig: ${a} and ${b} must not be given together, got both`);
}
