// What a text begins with: a text, the messages of a conversation, or token ids.
import { types } from "node:util";
import type { ChatMessage, Tokenizer } from "../hub/index.js";
import type { CausalLM, ModelConfig } from "../models/index.js";
import { describe, isPlainObject } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";

/** Token ids in JavaScript's memory; int64 ids are taken where they fit. */
export type Prompt = readonly number[] | Int32Array | Uint8Array | BigInt64Array;

/** A text, or the messages of a conversation, which the tokenizer's template makes one. */
export type TextPrompt = string | readonly ChatMessage[];

export function isText(prompt: unknown): prompt is TextPrompt {
  return typeof prompt === "string" || (Array.isArray(prompt) && isPlainObject(prompt[0]));
}

/** The same for a text or token ids, of which there may be `most`. A conversation has no one text: its answer is to come. */
export async function encodeText(
  op: string,
  model: CausalLM,
  text: string | Prompt,
  most: number = model.config.maxPositionEmbeddings,
): Promise<Int32Array> {
  const limits = { ...model.config, maxPositionEmbeddings: most };
  return promptIds(op, typeof text === "string" ? await model.tokenizerFor(op).encode(text) : text, limits);
}

/** Whether it is a list of prompts, and not a prompt that is a list. */
export function isPrompts<P extends Prompt | TextPrompt>(input: P | readonly P[]): input is readonly P[] {
  return isSeveral(input);
}

function isSeveral(input: unknown): boolean {
  if (!Array.isArray(input)) return false;
  const first: unknown = input[0]; // by its index: an array may have an iterator of its own
  return input.length === 0 || typeof first === "string" || Array.isArray(first) || types.isTypedArray(first);
}

/** The checked ids of any prompt. Throws ERR_BNB_ARGUMENT. */
export async function encodePrompt(op: string, model: CausalLM, prompt: Prompt | TextPrompt): Promise<Int32Array> {
  if (!isText(prompt)) return promptIds(op, prompt, model.config);
  const ids = await encode(model.tokenizerFor(op), prompt);
  return promptIds(op, ids, model.config);
}

async function encode(tokenizer: Tokenizer, prompt: TextPrompt): Promise<Int32Array> {
  if (typeof prompt === "string") return tokenizer.encode(prompt);
  const text = await tokenizer.applyChatTemplate(prompt, { addGenerationPrompt: true });
  // The template has the special tokens in it.
  return tokenizer.encode(text, { addSpecialTokens: false });
}

/** A checked copy of token ids. Throws ERR_BNB_ARGUMENT. */
export function promptIds(
  op: string,
  prompt: unknown,
  { maxPositionEmbeddings: most, vocabSize }: ModelConfig,
): Int32Array {
  if (isSeveral(prompt) && (prompt as unknown[]).length > 0) {
    const rule = `${op}: prompt must be one text, or the messages or token ids of one`;
    throw new BnbError("ERR_BNB_ARGUMENT", `${rule}, got ${describe(prompt)}; model.complete takes several`);
  }
  if (!Array.isArray(prompt) && !types.isTypedArray(prompt)) {
    const advice = "read a Tensor first: await ids.data()";
    const rule = `${op}: prompt must be a text, messages, or an array or TypedArray of token ids (${advice})`;
    throw new BnbError("ERR_BNB_ARGUMENT", `${rule}, got ${describe(prompt)}`);
  }
  if (prompt.length === 0 || prompt.length > most) {
    const range = `between 1 and ${most} tokens`;
    throw new BnbError("ERR_BNB_ARGUMENT", `${op}: the prompt must have ${range}, got ${prompt.length}`);
  }
  return Int32Array.from(prompt as ArrayLike<number | bigint>, (given) => {
    const id = typeof given === "bigint" ? Number(given) : given;
    if (Number.isInteger(id) && id >= 0 && id < vocabSize) return id;
    throw new BnbError(
      "ERR_BNB_ARGUMENT",
      `${op}: a token id must lie in 0..${vocabSize - 1}, got ${typeof given === "bigint" ? given : describe(given)}`,
    );
  });
}
