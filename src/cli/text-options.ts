// How commands are told to write: the options of generate and chat, as a GenerationConfig.
import type { GenerationConfig } from "../hub/index.js";
import type { OptionSpec } from "./command.js";
import { number, usageError, wholeNumber } from "./command.js";

/** Options of commands that generate. */
export const textOptions = {
  "max-new-tokens": { type: "string", value: "N", help: "tokens to make at most" },
  temperature: { type: "string", value: "X", help: "draw, with logits divided by X; 0 takes the likeliest" },
  "top-k": { type: "string", value: "N", help: "draw among the N likeliest tokens" },
  "top-p": { type: "string", value: "X", help: "draw among the likeliest tokens that together reach X" },
  "min-p": { type: "string", value: "X", help: "draw among tokens at least X times as likely as the likeliest" },
  seed: { type: "string", value: "N", help: "draw; the same seed gives the same text" },
  "repetition-penalty": { type: "string", value: "X", help: "above 1: tokens that came are less likely" },
  stop: { type: "string", value: "TEXT", multiple: true, help: "end before this text; may be repeated" },
} as const satisfies Record<string, OptionSpec>;

type TextValues = {
  readonly [K in keyof typeof textOptions]: K extends "stop" ? readonly string[] : string | undefined;
};

/** What the options say; a seed or a bound of what is drawn means that tokens are drawn. */
export function textSettings(values: TextValues): GenerationConfig {
  const settings: GenerationConfig = {};
  const { temperature, seed, stop } = values;
  const tokens = values["max-new-tokens"];
  if (tokens !== undefined) settings.maxNewTokens = wholeNumber("--max-new-tokens", tokens);
  const penalty = values["repetition-penalty"];
  if (penalty !== undefined) settings.repetitionPenalty = number("--repetition-penalty", penalty, 0.01);
  if (stop.length > 0) settings.stopStrings = stop;
  const draws: GenerationConfig = {};
  const [topK, topP, minP] = [values["top-k"], values["top-p"], values["min-p"]];
  if (topK !== undefined) draws.topK = wholeNumber("--top-k", topK);
  if (topP !== undefined) draws.topP = number("--top-p", topP, 0, 1);
  if (minP !== undefined) draws.minP = number("--min-p", minP, 0, 1);
  if (seed !== undefined) draws.seed = wholeNumber("--seed", seed, 0);
  if (temperature !== undefined) {
    const value = number("--temperature", temperature, 0);
    if (value > 0) draws.temperature = value;
    else if (Object.keys(draws).length > 0) {
      throw usageError("--temperature 0 takes the likeliest token: leave out --seed, --top-k, --top-p and --min-p");
    } else settings.doSample = false;
  }
  return Object.keys(draws).length > 0 ? { ...settings, ...draws, doSample: true } : settings;
}
