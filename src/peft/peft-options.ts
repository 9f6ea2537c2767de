// Options of PeftModel's methods.
import type { Generator } from "../ops/index.js";
import { aGenerator } from "../ops/random.js";
import { aBoolean, aFunction, anAbortSignal, anInteger, arrayOf, aString, either, oneOf } from "../tensor/checks.js";
import { optionTable } from "../tensor/options.js";
import type { MergeLoss } from "./adapter-layer.js";
import type { CombinationType } from "./combine.js";
import type { SaveEmbeddings } from "./persist.js";

/** Options of `peftModel.addAdapter`. */
export interface AddAdapterOptions {
  /** Source of the initial values; default the global one. */
  generator?: Generator;
}
/** Options of `PeftModel.fromPretrained` and `loadAdapter`. */
export interface LoadAdapterOptions {
  /** Whether it learns; default false. */
  isTrainable?: boolean;
  /** Branch, tag or commit of an adapter on the hub. Default "main". */
  revision?: string;
  /** For private and gated ones. Default HF_TOKEN, or what `hf auth login` left. */
  token?: string;
  signal?: AbortSignal;
}
/** Options of `PeftModel.fromPretrained`. */
export interface PeftFromPretrainedOptions extends LoadAdapterOptions {
  /** Default "default". */
  adapterName?: string;
}
/** Options of `peftModel.savePretrained`. */
export interface SavePeftOptions {
  /** Default all adapters: "default" into the folder itself, others into folders of their names within it. */
  selectedAdapters?: readonly string[];
  /** Whether tables of embeddings and the head go along; "auto" (the default): those that have LoRA. */
  saveEmbeddingLayers?: SaveEmbeddings;
  /**
   * Whether adapters that began as a part of the base's weight ("pissa", "olora") are saved as plain LoRA of twice the rank,
   * for the base as it was. Default false: whoever loads one takes that part from a base of floats again.
   */
  convertStart?: boolean;
}
/** Options of `addWeightedAdapter`. */
export interface WeightedOptions {
  /** Default "svd". */
  combinationType?: CombinationType;
  /** Of "svd"; default the largest of the ranks. */
  svdRank?: number;
}
/** Options of `mergeAdapter` and `mergeAndUnload`. */
export interface MergeOptions {
  /** Which adapters, in this order; default the active ones. */
  adapterNames?: readonly string[];
  /**
   * Of mergeAndUnload: whether what is replaced is kept until all is merged, so that a failure changes nothing, as
   * mergeAdapter always has it. Default false.
   */
  safeMerge?: boolean;
  /** Called with what each quantized layer lost as it was quantized again. */
  onMerged?: (loss: MergeLoss) => void;
}
/** Parameters that learn, and all of them; packed weights count as what they stand for. */
export interface ParameterCount {
  readonly trainable: number;
  readonly all: number;
  /** trainable / all * 100. */
  readonly percent: number;
}

/** @internal */
export const addOptions = optionTable<AddAdapterOptions>({ generator: aGenerator });
/** @internal */
export const loadOptions = optionTable<LoadAdapterOptions>({
  isTrainable: aBoolean,
  revision: aString,
  token: aString,
  signal: anAbortSignal,
});
/** @internal */
export const fromOptions = optionTable<PeftFromPretrainedOptions>({ ...loadOptions.checks, adapterName: aString });
/** @internal */
export const saveOptions = optionTable<SavePeftOptions>({
  selectedAdapters: arrayOf(aString),
  saveEmbeddingLayers: either(aBoolean, oneOf(["auto"])),
  convertStart: aBoolean,
});
/** @internal */
export const weightedOptions = optionTable<WeightedOptions>({
  combinationType: oneOf(["linear", "cat", "svd"]),
  svdRank: anInteger(1),
});
/** @internal */
export const mergeOptions = optionTable<MergeOptions>({
  adapterNames: arrayOf(aString),
  onMerged: aFunction,
  safeMerge: aBoolean,
});
/** @internal */
export const setOptions = optionTable<{ inferenceMode?: boolean }>({ inferenceMode: aBoolean });
