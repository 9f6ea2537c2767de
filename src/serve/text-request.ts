// What chat and completions have in common: how tokens are chosen, and texts that run in the engine of the server.
import type { Branch, Next } from "../generation/branch.js";
import { promptIds } from "../generation/prompt.js";
import type { Settings } from "../generation/settings.js";
import { settingsOf } from "../generation/settings.js";
import type { FinishReason } from "../generation/text.js";
import type { GenerationConfig, Tokenizer } from "../hub/index.js";
import { ApiError, wrongField } from "./api-error.js";
import type { Call } from "./call.js";
import type { Fields } from "./fields.js";
import type { Format } from "./response-format.js";
import { asFieldError, readFormat } from "./response-format.js";
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
  /** How many tokens were asked for; null: as many as have room. */
  readonly most: number | null;
  /** Only texts of one salt share what has been computed. */
  readonly salt: string;
  /** What each text must be; undefined: any text. */
  readonly format: Format | undefined;
  /** Special tokens that are told, though others are not. */
  readonly markers?: ReadonlyMap<number, string>;
}

const isText = (value: unknown): value is string => typeof value === "string";

/** Reads the fields; `asked` says which one bounds the tokens, and `usual` how many are made where it is absent. */
export function readTextRequest(
  fields: Fields,
  { model, maxTokens, sharePrefixes }: Served,
  asked: { param: string; most: number | undefined; usual?: number },
  logprobs: number | null,
  call: Call,
): TextRequest {
  const { param, most, usual = model.config.maxPositionEmbeddings } = asked;
  if (most !== undefined && most > maxTokens) {
    throw wrongField(param, `at most ${maxTokens}, which is this server's limit`, most);
  }
  const own = model.generationConfig;
  const config: GenerationConfig = {
    maxNewTokens: Math.min(most ?? usual, maxTokens),
    numBeams: 1,
    numReturnSequences: 1,
    ...readDraw(fields, own),
    ...defined({
      presencePenalty: fields.number("presence_penalty", -2, 2),
      frequencyPenalty: fields.number("frequency_penalty", -2, 2),
      repetitionPenalty: fields.number("repetition_penalty", 0.01, 100),
    }),
    stopStrings: readStops(fields),
    logitBias: readBias(fields, model.config.vocabSize),
    ...endsOf(fields, own.eosTokenId),
    signal: call.signal,
  } as GenerationConfig;
  const stream = fields.flag("stream") ?? false;
  call.isStream = stream;
  const streaming = fields.nested("stream_options");
  const includeUsage = streaming?.flag("include_usage") ?? false;
  streaming?.ignore("include_obfuscation");
  streaming?.refuse("continuous_usage_stats", (value) => value === false);
  streaming?.refuseOthers();
  const salt = JSON.stringify([sharePrefixes ? "" : call.key, fields.text("cache_salt") ?? ""]);
  return {
    settings: settingsOf("generate", model, config),
    n: fields.whole("n", 1, 128) ?? 1,
    logprobs,
    stream,
    includeUsage,
    most: most ?? null,
    salt,
    format: readFormat(fields),
  };
}

/** How tokens are drawn. A temperature or a top_p of 0 leaves the likeliest; beside it, the other fields have nothing to cut. */
function readDraw(fields: Fields, own: GenerationConfig): GenerationConfig {
  const temperature = fields.number("temperature", 0, 2);
  const topP = fields.number("top_p", 0, 1);
  const topK = fields.whole("top_k", 0) ?? own.topK ?? 0;
  const minP = fields.number("min_p", 0, 1);
  const seed = fields.whole("seed", 0);
  const doSample = (temperature ?? own.temperature ?? 1) > 0 && topP !== 0;
  return { doSample, ...(doSample && { topK, ...defined({ temperature, topP, minP, seed }) }) };
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

/** The token ids of a text, or those of a list. Throws 400, which names the field. */
export async function readIds(param: string, text: unknown, { tokenizer, model }: Served): Promise<Int32Array> {
  const ids = typeof text === "string" ? await tokenizer.encode(text) : (text as number[]);
  const most = model.config.maxPositionEmbeddings;
  if (ids.length > most) throw tooLong(param, `${param} must have at most ${most} tokens, got ${ids.length}`);
  return asFieldError(param, () => promptIds(param, ids, model.config));
}

const tooLong = (param: string, message: string): ApiError =>
  new ApiError(400, "invalid_request_error", message, param, "context_length_exceeded");

/** A piece of text i, and the token that it came with. */
export interface Piece {
  readonly index: number;
  readonly text: string;
  readonly next: Next | null;
  /** The last piece of a text says why it ended. */
  readonly finish: FinishReason | null;
}

/**
 * The pieces of all texts of a request, as they come. Throws at once where they have no room: 400 where they never will have,
 * 429 where others have it now.
 */
export function runTexts(
  served: Served,
  prompts: readonly Int32Array[],
  request: TextRequest,
  call: Call,
): AsyncGenerator<Piece, void, undefined> {
  for (const prompt of prompts) checkRoom(served, prompt.length, request);
  call.place?.grow(prompts.length * request.n);
  return pieces(served, prompts, request, call);
}

/** Throws 400 for a text that no pool of this size can hold. */
function checkRoom({ engine }: Served, prompt: number, { most }: TextRequest): void {
  // The last token is never fed back.
  const room = engine.maxLength + 1;
  if (prompt > 0 && prompt + (most ?? 1) <= room) return;
  const asked = most === null ? `${prompt}` : `${prompt} and ${most}`;
  throw tooLong("prompt", `prompt and answer must have between 1 and ${room} tokens together, got ${asked}`);
}

async function* pieces(
  served: Served,
  prompts: readonly Int32Array[],
  { settings, n, logprobs, salt, format, markers }: TextRequest,
  call: Call,
): AsyncGenerator<Piece, void, undefined> {
  const telling = { logprobs: logprobs !== null, best: logprobs ?? 0 };
  const { seed } = settings.draw;
  const texts = prompts.flatMap((prompt, p) =>
    Array.from({ length: n }, (_, i) => {
      const draw =
        seed === undefined ? settings.draw : { ...settings.draw, seed: (seed + i) % Number.MAX_SAFE_INTEGER };
      const text = { index: p * n + i, prompt, branch: null as Branch | null };
      const watch = (branch: Branch): void => {
        text.branch = branch;
      };
      const own = { telling, salt, grammar: format?.source, markers, adapter: served.adapter };
      const options = { wantsText: true, ...own, watch };
      return { ...text, text, pieces: served.engine.run("generate", prompt, { ...settings, draw }, options) };
    }),
  );
  type Text = (typeof texts)[number];
  type Step = { text: Text; result: IteratorResult<Partial<{ next: Next; text: string }>, FinishReason> };
  const ask = async (text: Text): Promise<Step> => ({ text, result: await text.pieces.next() });
  const running = new Map(texts.map((text) => [text.index, ask(text)]));
  try {
    while (running.size > 0) {
      const { text, result } = await Promise.race(running.values());
      const { index } = text;
      if (result.done) {
        running.delete(index);
        // A prompt counts once, however many texts it has.
        const found = text.text.branch?.sequence.found ?? 0;
        if (index % n === 0) call.countPrompt(text.prompt.length, found);
        call.countEnd(result.value);
        yield { index, text: "", next: null, finish: result.value };
      } else {
        const { text: piece = "", next = null } = result.value;
        if (next) call.countToken(index);
        yield { index, text: piece, next, finish: null };
        running.set(index, ask(text));
      }
    }
  } finally {
    for (const _ of running) call.countEnd(call.signal.aborted ? "abort" : "error");
    // One that failed leaves the others unfinished.
    await Promise.allSettled(running.values());
    await Promise.allSettled(texts.map(({ pieces: rest }) => rest.return("stop")));
  }
}

/** A token, and what it stands for; a part of a character has no text of its own. */
export interface ToldToken {
  readonly id: number;
  readonly token: string;
  readonly bytes: readonly number[];
  readonly logprob: number;
}

/** Tokens with their log-probabilities, and at most `best` of the likeliest that may stand in their places. */
export async function toldTokens(
  tokenizer: Tokenizer,
  tokens: readonly Next[],
  best: number,
): Promise<(ToldToken & { readonly likeliest: readonly ToldToken[] })[]> {
  // Those that a grammar or a rule forbids have no probability, and fill what is left.
  const others = tokens.map(({ bestIds, bestLogprobs }) =>
    Array.from(bestIds, (id, i) => ({ id, logprob: bestLogprobs[i] as number }))
      .filter(({ id, logprob }) => id >= 0 && Number.isFinite(logprob))
      .slice(0, best),
  );
  const all = [...new Set([...tokens, ...others.flat()].map(({ id }) => id))];
  const known = all.filter((id) => id < tokenizer.vocabSize);
  const bytes = new Map((await tokenizer.bytesOf(known)).map((own, i) => [known[i], own]));
  const told = ({ id, logprob }: { id: number; logprob: number }): ToldToken => {
    const own = bytes.get(id) ?? [];
    return { id, token: Buffer.from(own).toString("utf8"), bytes: own, logprob };
  };
  return tokens.map((next, i) => ({ ...told(next), likeliest: (others[i] as (typeof others)[number]).map(told) }));
}

/** What a request took. */
export function usageOf(prompts: readonly Int32Array[], made: number, { cachedTokens }: Call) {
  const prompt = prompts.reduce((sum, { length }) => sum + length, 0);
  return {
    prompt_tokens: prompt,
    completion_tokens: made,
    total_tokens: prompt + made,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  };
}
