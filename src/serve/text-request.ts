// What chat and completions have in common: how tokens are chosen, and texts that run in the engine of the server.
import { randomBytes } from "node:crypto";
import type { Next } from "../generation/branch.js";
import type { Settings } from "../generation/settings.js";
import { settingsOf } from "../generation/settings.js";
import type { FinishReason } from "../generation/text.js";
import type { GenerationConfig, Tokenizer } from "../hub/index.js";
import { wrongField } from "./api-error.js";
import type { Fields } from "./fields.js";
import type { Served } from "./served.js";

/** How texts of a request are made. */
export interface TextRequest {
  readonly settings: Settings;
  /** Texts of each prompt. */
  readonly n: number;
  /** How many of the likeliest tokens to tell; null: no log-probabilities. */
  readonly logprobs: number | null;
  readonly stream: boolean;
  readonly includeUsage: boolean;
}

const isText = (value: unknown): value is string => typeof value === "string";

/** Reads the fields; `most` is how many tokens may be made where the request does not say. */
export function readTextRequest(
  fields: Fields,
  { model }: Served,
  most: number | undefined,
  logprobs: number | null,
  signal: AbortSignal,
): TextRequest {
  const temperature = fields.number("temperature", 0, 2);
  const own = model.generationConfig;
  const seed = fields.whole("seed", 0);
  const topK = fields.whole("top_k", 0) ?? own.topK ?? 0;
  const config: GenerationConfig = {
    maxNewTokens: most ?? model.config.maxPositionEmbeddings,
    doSample: temperature === undefined ? (own.temperature ?? 1) > 0 : temperature > 0,
    ...(temperature !== undefined && temperature > 0 && { temperature }),
    topK,
    ...defined({
      topP: fields.number("top_p", 0, 1),
      minP: fields.number("min_p", 0, 1),
      seed,
      presencePenalty: fields.number("presence_penalty", -2, 2),
      frequencyPenalty: fields.number("frequency_penalty", -2, 2),
      repetitionPenalty: fields.number("repetition_penalty", 0.01, 100),
    }),
    stopStrings: readStops(fields),
    logitBias: readBias(fields, model.config.vocabSize),
    ...endsOf(fields, own.eosTokenId),
    signal,
  } as GenerationConfig;
  const stream = fields.flag("stream") ?? false;
  const includeUsage = fields.nested("stream_options")?.flag("include_usage") ?? false;
  return {
    settings: settingsOf("generate", model, config),
    n: fields.whole("n", 1, 128) ?? 1,
    logprobs,
    stream,
    includeUsage,
  };
}

function defined<T extends object>(options: T): Partial<T> {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Partial<T>;
}

function readStops(fields: Fields): string[] {
  const stop = fields.raw("stop");
  if (stop === undefined) return [];
  const list: unknown[] = Array.isArray(stop) ? stop : [stop];
  if (list.length <= 4 && list.every((text) => isText(text) && text !== "")) return list as string[];
  throw wrongField("stop", "a text, or up to 4 texts", stop);
}

function readBias(fields: Fields, vocabSize: number): Record<number, number> {
  const bias = fields.object("logit_bias") ?? {};
  for (const [id, value] of Object.entries(bias)) {
    const isToken = /^\d+$/.test(id) && Number(id) < vocabSize;
    if (isToken && typeof value === "number" && Math.abs(value) <= 100) continue;
    throw wrongField("logit_bias", `numbers from -100 to 100 by token ids below ${vocabSize}`, bias);
  }
  return bias as Record<number, number>;
}

/** The tokens that end a text, with those that the request adds; ignore_eos: none. */
function endsOf(fields: Fields, own: GenerationConfig["eosTokenId"]): GenerationConfig {
  const isToken = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
  const more = fields.list("stop_token_ids", "a list of token ids", isToken) ?? [];
  if (fields.flag("ignore_eos")) return { eosTokenId: more };
  if (more.length === 0) return {};
  return { eosTokenId: [...(typeof own === "number" ? [own] : (own ?? [])), ...more] };
}

/** A piece of text i, and the token that it came with. */
export interface Piece {
  readonly index: number;
  readonly text: string;
  readonly next: Next | null;
  /** The last piece of a text says why it ended. */
  readonly finish: FinishReason | null;
}

/** The pieces of all texts of a request, as they come. */
export async function* runTexts(
  served: Served,
  prompts: readonly Int32Array[],
  { settings, n, logprobs }: TextRequest,
): AsyncGenerator<Piece, void, undefined> {
  const telling = { logprobs: logprobs !== null, best: logprobs ?? 0 };
  const { seed } = settings.draw;
  const texts = prompts.flatMap((prompt, p) =>
    Array.from({ length: n }, (_, i) => {
      const draw =
        seed === undefined ? settings.draw : { ...settings.draw, seed: (seed + i) % Number.MAX_SAFE_INTEGER };
      return {
        index: p * n + i,
        pieces: served.engine.run("generate", prompt, { ...settings, draw }, { wantsText: true, telling }),
      };
    }),
  );
  type Step = {
    text: (typeof texts)[number];
    result: IteratorResult<Partial<{ next: Next; text: string }>, FinishReason>;
  };
  const ask = async (text: (typeof texts)[number]): Promise<Step> => ({ text, result: await text.pieces.next() });
  const running = new Map(texts.map((text) => [text.index, ask(text)]));
  try {
    while (running.size > 0) {
      const { text, result } = await Promise.race(running.values());
      const { index } = text;
      if (result.done) {
        running.delete(index);
        yield { index, text: "", next: null, finish: result.value };
      } else {
        yield { index, text: result.value.text ?? "", next: result.value.next ?? null, finish: null };
        running.set(index, ask(text));
      }
    }
  } finally {
    // One that failed leaves the others unfinished.
    await Promise.allSettled(running.values());
    await Promise.allSettled(texts.map(({ pieces }) => pieces.return("stop")));
  }
}

/** The text of a token, and its bytes. */
export async function tokenText(tokenizer: Tokenizer, id: number): Promise<{ token: string; bytes: number[] }> {
  const token = id < tokenizer.vocabSize ? await tokenizer.decode([id]) : "";
  return { token, bytes: [...Buffer.from(token, "utf8")] };
}

/** What a request took. */
export function usageOf(prompts: readonly Int32Array[], made: number): object {
  const prompt = prompts.reduce((sum, { length }) => sum + length, 0);
  return { prompt_tokens: prompt, completion_tokens: made, total_tokens: prompt + made };
}

export const newId = (prefix: string): string => `${prefix}-${randomBytes(12).toString("hex")}`;
export const now = (): number => Math.floor(Date.now() / 1000);
