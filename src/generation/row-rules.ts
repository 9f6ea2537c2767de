// What may not follow the tokens known so far, and what is added to the logits of those that may: n-grams, bad words, ends
// that come too early. Found from the tokens alone; logits are not read.
import type { GenerationConfig } from "../hub/index.js";
import { BnbError } from "../tensor/errors.js";

/** What changes the logits of the next token. */
export interface RowRules {
  /** Is added to the logits of tokens by their ids; -Infinity forbids one. */
  readonly bias?: ReadonlyMap<number, number>;
  /** Bit i % 32 of word i / 32 says whether token i may come; [ceil(vocabulary / 32)]. */
  readonly allowed?: Int32Array;
}

/** The rules of the token that follows `ids`, the prompt included. */
export type RulesOf = (ids: readonly number[]) => RowRules | null;

/** Adds what it forbids after `ids`. */
type Forbid = (ids: readonly number[], bias: Map<number, number>) => void;

/** What of a GenerationConfig becomes rules, and what they must know of a text. */
export interface RulesInit {
  readonly config: GenerationConfig;
  readonly allows?: ((ids: readonly number[]) => Iterable<number> | null) | undefined;
  /** Knows the tokens so far. */
  readonly grammar?: { readonly allowed: Int32Array | null } | null;
  /** Tokens of the prompt. */
  readonly prompt: number;
  readonly ends: readonly number[];
  readonly vocabSize: number;
}

/** The rules of a text, null where it has none. */
export function rulesOf(op: string, { config, allows, grammar, prompt, ends, vocabSize }: RulesInit): RulesOf | null {
  const { noRepeatNgramSize: n = 0, minNewTokens = 0, minLength = 0, logitBias = {} } = config;
  const { badWordsIds = [], suppressTokens = [], beginSuppressTokens = [] } = config;
  const check = (name: string, ids: Iterable<number>) => checkIds(op, name, ids, vocabSize);
  check("logitBias", Object.keys(logitBias).map(Number));
  check("badWordsIds", badWordsIds.flat());
  check("suppressTokens", suppressTokens);
  check("beginSuppressTokens", beginSuppressTokens);

  const always = new Map(Object.entries(logitBias).map(([id, value]) => [Number(id), value as number]));
  for (const id of suppressTokens) always.set(id, -Infinity);
  // The end of a text is no bad word.
  const words = badWordsIds.filter(([first, ...rest]) => rest.length > 0 || !ends.includes(first as number));
  for (const word of words) if (word.length === 1) always.set(word[0] as number, -Infinity);

  const forbids: Forbid[] = words.filter((word) => word.length > 1).map(wordRule);
  if (n > 0) forbids.push(ngramRule(n));
  const shortest = Math.max(minLength, minNewTokens > 0 ? prompt + minNewTokens : 0);
  const known = ends.filter((id) => id < vocabSize);
  if (shortest > prompt && known.length > 0) forbids.push(whileShorter(shortest, known));
  if (beginSuppressTokens.length > 0) forbids.push(whileShorter(prompt + 1, beginSuppressTokens));
  if (always.size === 0 && forbids.length === 0 && !allows && !grammar) return null;
  return (ids) => {
    const bias = new Map(always);
    for (const forbid of forbids) forbid(ids, bias);
    const some = allows?.(ids) ?? null;
    const allowed = both(some && maskOf(op, some, vocabSize), grammar?.allowed ?? null, vocabSize);
    if (bias.size === 0 && !allowed) return null;
    return { bias, ...(allowed && { allowed }) };
  };
}

/** The last token of a sequence does not follow the others. */
function wordRule(word: readonly number[]): Forbid {
  const before = word.slice(0, -1);
  return (ids, bias) => {
    const start = ids.length - before.length;
    if (start > 0 && before.every((id, i) => ids[start + i] === id)) bias.set(word.at(-1) as number, -Infinity);
  };
}

/** What followed the last n - 1 tokens before does not follow them again. */
function ngramRule(n: number): Forbid {
  return (ids, bias) => {
    const last = ids.length - n + 1;
    for (let at = 0; at < last; at++) {
      let same = 0;
      while (same < n - 1 && ids[at + same] === ids[last + same]) same++;
      if (same === n - 1) bias.set(ids[at + n - 1] as number, -Infinity);
    }
  };
}

function whileShorter(length: number, forbidden: readonly number[]): Forbid {
  return (ids, bias) => {
    if (ids.length >= length) return;
    for (const id of forbidden) bias.set(id, -Infinity);
  };
}

function maskOf(op: string, allowed: Iterable<number>, vocabSize: number): Int32Array {
  if (typeof (allowed as Partial<Iterable<number>>)[Symbol.iterator] !== "function") {
    throw new BnbError("ERR_BNB_OPTION", `${op}: prefixAllowedTokens must return token ids or null`);
  }
  const mask = new Int32Array(Math.ceil(vocabSize / 32));
  const ids = [...allowed];
  checkIds(op, "prefixAllowedTokens", ids, vocabSize);
  for (const id of ids) mask[id >> 5] = (mask[id >> 5] as number) | (1 << (id & 31));
  return mask;
}

/** What a mask and a grammar allow, whose tokenizer may know more or fewer tokens than the model. */
function both(mask: Int32Array | null, grammar: Int32Array | null, vocabSize: number): Int32Array | null {
  const words = Math.ceil(vocabSize / 32);
  if (!grammar) return mask;
  if (!mask && grammar.length === words) return grammar;
  const allowed = new Int32Array(words);
  for (let i = 0; i < words; i++) allowed[i] = (grammar[i] ?? 0) & (mask?.[i] ?? -1);
  return allowed;
}

function checkIds(op: string, name: string, ids: Iterable<number>, vocabSize: number): void {
  for (const id of ids) {
    if (Number.isInteger(id) && id >= 0 && id < vocabSize) continue;
    throw new BnbError("ERR_BNB_OPTION", `${op}: a token id in ${name} must lie in 0..${vocabSize - 1}, got ${id}`);
  }
}
