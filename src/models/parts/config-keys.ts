// Reading a config.json: keys with their defaults, and errors that name the key, what must hold and what came.
import { BnbError } from "../../tensor/errors.js";
import type { RopeParameters } from "../rope-scaling.js";
import { readRope } from "../rope-scaling.js";

/** The object of a config.json. A key that is null counts as absent. */
export class ConfigKeys {
  readonly json: Readonly<Record<string, unknown>>;

  constructor(json: Readonly<Record<string, unknown>>) {
    this.json = json;
  }

  has(key: string): boolean {
    return this.json[key] !== undefined && this.json[key] !== null;
  }

  /** A positive whole number. */
  size(key: string, otherwise?: number): number {
    return this.#read(key, otherwise, "a positive integer", (v) => Number.isSafeInteger(v) && (v as number) > 0);
  }

  /** A finite number. */
  number(key: string, otherwise?: number): number {
    return this.#read(key, otherwise, "a number", (v) => Number.isFinite(v));
  }

  flag(key: string, otherwise: boolean): boolean {
    return this.#read(key, otherwise, "true or false", (v) => typeof v === "boolean");
  }

  text(key: string, otherwise: string): string {
    return this.#read(key, otherwise, "a text", (v) => typeof v === "string");
  }

  /** A list with an item for each layer; undefined where the key is absent. */
  perLayer(key: string, layers: number): readonly unknown[] | undefined {
    if (!this.has(key)) return undefined;
    return this.#read<readonly unknown[]>(key, [], `a list of ${layers} items`, (v) => {
      return Array.isArray(v) && v.length === layers;
    });
  }

  /** Throws ERR_BNB_UNSUPPORTED unless the key is absent or has this value. */
  mustBe(key: string, value: unknown): void {
    if (!this.has(key) || this.json[key] === value) return;
    const rule = `config.json: ${key} must be ${JSON.stringify(value)}`;
    throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got ${JSON.stringify(this.json[key])}`);
  }

  #read<T>(key: string, otherwise: T | undefined, rule: string, holds: (value: unknown) => boolean): T {
    const value = this.has(key) ? this.json[key] : otherwise;
    if (holds(value)) return value as T;
    throw new BnbError("ERR_BNB_FORMAT", `config.json: ${key} must be ${rule}, got ${JSON.stringify(value)}`);
  }
}

/** What decoders of every family say of themselves. */
export interface DecoderConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numHiddenLayers: number;
  readonly numAttentionHeads: number;
  /** Heads of keys and values, each shared by a group of query heads. */
  readonly numKeyValueHeads: number;
  readonly headDim: number;
  /** Added to the mean square or the variance in norms. */
  readonly normEps: number;
  readonly maxPositionEmbeddings: number;
  /** The head shares the weight of the embedding. */
  readonly tieWordEmbeddings: boolean;
  readonly rope: RopeParameters;
  /** Of each layer: how many tokens, itself among them, a token sees; undefined: all before it. */
  readonly windows: readonly (number | undefined)[];
}

/** What families differ in where a key is absent. */
export interface DecoderDefaults {
  readonly normEps?: number;
  readonly maxPositionEmbeddings?: number;
  readonly tieWordEmbeddings?: boolean;
  readonly headDim?: number;
  readonly ropeTheta?: number;
  /** Whether layer i has the window of the config where layer_types is absent; absent: no layer has one. */
  readonly window?: (layer: number) => boolean;
}

/** Reads the keys that Llama and its heirs share. Throws ERR_BNB_FORMAT and ERR_BNB_UNSUPPORTED. */
export function readDecoderConfig(keys: ConfigKeys, defaults: DecoderDefaults = {}): DecoderConfig {
  const hiddenSize = keys.size("hidden_size");
  const numAttentionHeads = keys.size("num_attention_heads");
  const numHiddenLayers = keys.size("num_hidden_layers");
  const numKeyValueHeads = keys.size("num_key_value_heads", numAttentionHeads);
  const maxPositionEmbeddings = keys.size("max_position_embeddings", defaults.maxPositionEmbeddings ?? 2048);
  const headDim = keys.size("head_dim", defaults.headDim ?? hiddenSize / numAttentionHeads);
  checkHeads(numAttentionHeads, numKeyValueHeads);
  const theta = { rope_theta: defaults.ropeTheta ?? 10_000 };
  const rope = readRope({ ...theta, ...withoutNulls(keys.json) }, maxPositionEmbeddings);
  return {
    vocabSize: keys.size("vocab_size"),
    hiddenSize,
    intermediateSize: keys.size("intermediate_size"),
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads,
    headDim,
    normEps: keys.number("rms_norm_eps", defaults.normEps ?? 1e-6),
    maxPositionEmbeddings: reachOf(rope, maxPositionEmbeddings),
    tieWordEmbeddings: keys.flag("tie_word_embeddings", defaults.tieWordEmbeddings ?? false),
    rope,
    windows: readWindows(keys, numHiddenLayers, defaults.window),
  };
}

/** How many positions a text may have: dynamic ones stretch with it. */
export function reachOf(rope: RopeParameters, maxPositions: number): number {
  return rope.type === "dynamic" ? 1 << 20 : maxPositions;
}

/** Throws ERR_BNB_FORMAT unless each head of keys serves a whole number of query heads. */
export function checkHeads(heads: number, kvHeads: number): void {
  if (heads % kvHeads === 0) return;
  const rule = `config.json: num_key_value_heads must divide num_attention_heads (${heads})`;
  throw new BnbError("ERR_BNB_FORMAT", `${rule}, got ${kvHeads}`);
}

/** layer_types decides where it is given, else the family's own rule. */
function readWindows(
  keys: ConfigKeys,
  layers: number,
  hasWindow: DecoderDefaults["window"],
): readonly (number | undefined)[] {
  const none = new Array<undefined>(layers).fill(undefined);
  if (!hasWindow || !keys.has("sliding_window")) return none;
  const window = keys.size("sliding_window");
  const types = keys.perLayer("layer_types", layers);
  return none.map((_, layer) => {
    const isLocal = types ? types[layer] === "sliding_attention" : hasWindow(layer);
    return isLocal ? window : undefined;
  });
}

function withoutNulls(json: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(json).filter(([, value]) => value !== null));
}
