// The frequencies of rotary positions under every scaling rule of Hugging Face's configs: linear, dynamic NTK, YaRN (Peng
// et al. 2023), LongRoPE (Ding et al. 2024) and that of Llama 3.1. In float32, as models were trained with them.
import { BnbError } from "../tensor/errors.js";

/** What a config says of its rotary positions. */
export interface RopeParameters {
  readonly type: "default" | "linear" | "dynamic" | "llama3" | "yarn" | "longrope";
  readonly theta: number;
  readonly factor: number;
  /** Positions of the model before it was extended. */
  readonly originalMaxPositions: number;
  /** What cosine and sine are multiplied by; undefined where the rule says. */
  readonly attentionFactor: number | undefined;
  readonly lowFreqFactor: number;
  readonly highFreqFactor: number;
  readonly betaFast: number;
  readonly betaSlow: number;
  readonly mscale: number | undefined;
  readonly mscaleAllDim: number | undefined;
  readonly truncate: boolean;
  readonly shortFactor: readonly number[];
  readonly longFactor: readonly number[];
}

/** Angle of a position = position * frequencies[i]; cosine and sine are multiplied by `scale`. */
export interface RopeFrequencies {
  readonly frequencies: Float32Array; // [dim / 2]
  readonly scale: number;
}

const types = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"] as const;
const f = Math.fround;

/**
 * Reads rope_parameters, or what older files have: rope_scaling beside rope_theta. `keys` are those of the config.json.
 * Throws ERR_BNB_FORMAT for values that make no sense, ERR_BNB_UNSUPPORTED for an unknown rule.
 */
export function readRope(keys: Readonly<Record<string, unknown>>, maxPositions: number): RopeParameters {
  const rope = { ...objectOf(keys["rope_scaling"]), ...objectOf(keys["rope_parameters"]) };
  const named = rope["rope_type"] ?? rope["type"] ?? "default";
  const type = named === "su" ? "longrope" : types.find((known) => known === named);
  if (type === undefined) {
    const rule = `config.json: rope_type must be one of ${types.join(", ")}`;
    throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got ${JSON.stringify(named)}`);
  }
  const number = (name: string, otherwise?: number): number => {
    const value = rope[name] ?? keys[name] ?? otherwise;
    if (typeof value === "number" && Number.isFinite(value) && value > 0) return value;
    const rule = `config.json: ${name} of rope type ${type} must be a positive number`;
    throw new BnbError("ERR_BNB_FORMAT", `${rule}, got ${JSON.stringify(value)}`);
  };
  const optional = (name: string): number | undefined => (rope[name] == null ? undefined : number(name));
  const originalMaxPositions = number("original_max_position_embeddings", maxPositions);
  const scales = type === "linear" || type === "dynamic" || type === "llama3";
  return {
    type,
    theta: number("rope_theta", 10_000),
    factor: type === "default" ? 1 : number("factor", scales ? undefined : maxPositions / originalMaxPositions),
    originalMaxPositions: type === "dynamic" ? maxPositions : originalMaxPositions,
    attentionFactor: optional("attention_factor"),
    lowFreqFactor: type === "llama3" ? number("low_freq_factor") : 1,
    highFreqFactor: type === "llama3" ? number("high_freq_factor") : 4,
    betaFast: number("beta_fast", 32),
    betaSlow: number("beta_slow", 1),
    mscale: optional("mscale"),
    mscaleAllDim: optional("mscale_all_dim"),
    truncate: rope["truncate"] !== false,
    shortFactor: type === "longrope" ? numbers(rope["short_factor"], "short_factor") : [],
    longFactor: type === "longrope" ? numbers(rope["long_factor"], "long_factor") : [],
  };
}

const objectOf = (value: unknown): Record<string, unknown> =>
  typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};

function numbers(value: unknown, name: string): readonly number[] {
  if (Array.isArray(value) && value.every((item) => Number.isFinite(item) && item > 0)) return value as number[];
  throw new BnbError("ERR_BNB_FORMAT", `config.json: ${name} must be a list of positive numbers`);
}

/** The parameters of rotary positions that are not scaled. */
export function plainRope(theta: number, maxPositions: number): RopeParameters {
  return readRope({ rope_theta: theta }, maxPositions);
}

/**
 * Frequencies for heads of `dim` in a sequence of `length` positions. Only dynamic and longrope look at the length, and
 * only in so far as it exceeds `originalMaxPositions`.
 */
export function ropeFrequencies(rope: RopeParameters, dim: number, length: number): RopeFrequencies {
  const powers = Array.from({ length: dim / 2 }, (_, i) => f((2 * i) / dim));
  const waves = (theta: number): number[] => powers.map((power) => f(theta ** power));
  const plain = (): number[] => waves(rope.theta).map((wave) => f(1 / wave));
  switch (rope.type) {
    case "default":
      return { frequencies: Float32Array.from(plain()), scale: 1 };
    case "linear":
      return { frequencies: Float32Array.from(plain(), (w) => w / rope.factor), scale: 1 };
    case "dynamic": {
      const { factor, originalMaxPositions: original } = rope;
      const longest = Math.max(length, original);
      const theta = rope.theta * ((factor * longest) / original - (factor - 1)) ** (dim / (dim - 2));
      return { frequencies: Float32Array.from(waves(theta), (wave) => 1 / wave), scale: 1 };
    }
    case "llama3":
      return { frequencies: Float32Array.from(plain(), (w) => llama3Frequency(w, rope)), scale: 1 };
    case "yarn":
      return yarn(rope, dim, waves(rope.theta));
    case "longrope": {
      const { factor, originalMaxPositions: original } = rope;
      const stretch = length > original ? rope.longFactor : rope.shortFactor;
      if (stretch.length !== dim / 2) {
        const rule = `config.json: short_factor and long_factor must have ${dim / 2} numbers`;
        throw new BnbError("ERR_BNB_FORMAT", `${rule}, got ${stretch.length}`);
      }
      const scale = rope.attentionFactor ?? (factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original)));
      const frequencies = waves(rope.theta).map((wave, i) => 1 / f(f(stretch[i] as number) * wave));
      return { frequencies: Float32Array.from(frequencies), scale };
    }
  }
}

/** Long waves are stretched, short ones stay, those between are blended. */
function llama3Frequency(frequency: number, rope: RopeParameters): number {
  const { factor, lowFreqFactor: low, highFreqFactor: high, originalMaxPositions: original } = rope;
  const wave = f((2 * Math.PI) / frequency);
  if (wave > original / low) return f(frequency / factor);
  if (wave < original / high) return frequency;
  const smooth = f(f(f(original / wave) - low) / (high - low));
  return f(f(f((1 - smooth) * frequency) / factor) + f(smooth * frequency));
}

function yarn(rope: RopeParameters, dim: number, waves: readonly number[]): RopeFrequencies {
  const { theta, factor, originalMaxPositions, mscale, mscaleAllDim } = rope;
  /** Where a dimension turns so often within the original positions. */
  const dimensionOf = (turns: number): number =>
    (dim * Math.log(originalMaxPositions / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const [first, last] = [dimensionOf(rope.betaFast), dimensionOf(rope.betaSlow)];
  const low = Math.max(rope.truncate ? Math.floor(first) : first, 0);
  const end = Math.min(rope.truncate ? Math.ceil(last) : last, dim - 1);
  const high = end === low ? end + 0.001 : end;
  const frequencies = waves.map((wave, i) => {
    const ramp = Math.min(Math.max(f(f(i - low) / (high - low)), 0), 1);
    return f(f(1 / f(factor * wave)) * ramp) + f(f(1 / wave) * f(1 - ramp));
  });
  const amount = (by = 1): number => (factor <= 1 ? 1 : 0.1 * by * Math.log(factor) + 1);
  const scale = mscale && mscaleAllDim ? amount(mscale) / amount(mscaleAllDim) : amount();
  return { frequencies: Float32Array.from(frequencies), scale: rope.attentionFactor ?? scale };
}
