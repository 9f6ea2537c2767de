// One sample of training data: token ids, and which of them the model is to learn. A row becomes one by its form: a text, a
// prompt with its completion, or the messages of a conversation.
import type { ChatMessage, Tokenizer } from "../hub/index.js";
import { isPlainObject } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";

/** The label of a token that does not count. */
export const IGNORED = -100;

/** A sample: `labels[i]` is `ids[i]` where the model learns to write it, else -100. The first token is never predicted. */
export interface Sample {
  readonly ids: Int32Array;
  readonly labels: Int32Array;
}

/** A prompt with a better and a worse answer. */
export interface PreferencePair {
  readonly chosen: Sample;
  readonly rejected: Sample;
}

/** Tokens that count: those that are predicted and have a label. */
export function countedTokens({ labels }: Sample): number {
  let count = 0;
  for (let i = 1; i < labels.length; i++) if (labels[i] !== IGNORED) count++;
  return count;
}

/** Characters of a text that are learned: from the first to the one behind the last. */
interface Span {
  readonly start: number;
  readonly end: number;
}

type Fields = Readonly<Record<string, unknown>>;

/** Makes samples of rows with a tokenizer. Errors are about the row: whoever has it says where it stands. */
export class SampleMaker {
  readonly #tokenizer: Tokenizer;
  readonly #eos: number | null;
  readonly #template: { chatTemplate?: string };

  private constructor(tokenizer: Tokenizer, eos: number | null, template: string | undefined) {
    this.#tokenizer = tokenizer;
    this.#eos = eos;
    this.#template = template === undefined ? {} : { chatTemplate: template };
  }

  static async for(tokenizer: Tokenizer, chatTemplate?: string): Promise<SampleMaker> {
    const { eosToken } = tokenizer;
    return new SampleMaker(tokenizer, eosToken === null ? null : await tokenizer.tokenToId(eosToken), chatTemplate);
  }

  /** The sample of a row with `text`, `prompt` and `completion`, or `messages`. */
  async sample(row: Fields): Promise<Sample> {
    if (Array.isArray(row.messages)) return this.#conversation(messagesOf("messages", row.messages), 0);
    if (row.prompt !== undefined || row.completion !== undefined) return this.#answer(row.prompt, row.completion);
    if (typeof row.text === "string") return this.#text(row.text);
    const keys = Object.keys(row).join(", ");
    throw refused(`must have text, prompt and completion, or messages, got ${keys === "" ? "nothing" : keys}`);
  }

  /** The pair of a row with `prompt`, `chosen` and `rejected`: texts, or messages. */
  async pair(row: Fields): Promise<PreferencePair> {
    const { prompt, chosen, rejected } = row;
    if (prompt === undefined || chosen === undefined || rejected === undefined) {
      throw refused(`must have prompt, chosen and rejected, got ${Object.keys(row).join(", ") || "nothing"}`);
    }
    return { chosen: await this.#answer(prompt, chosen), rejected: await this.#answer(prompt, rejected) };
  }

  async #text(text: string): Promise<Sample> {
    if (text.trim() === "") throw refused("must have a text that is not empty");
    return this.#withEnd(await this.#encodeStart(text), null);
  }

  async #answer(prompt: unknown, completion: unknown): Promise<Sample> {
    if (typeof prompt === "string" && typeof completion === "string") {
      const text = prompt + completion;
      const encode = (part: string): Promise<Int32Array> => this.#encodeStart(part);
      const { ids, labels } = await labelled(text, [{ start: prompt.length, end: text.length }], encode);
      return this.#withEnd(ids, labels);
    }
    const before = typeof prompt === "string" ? [{ role: "user", content: prompt }] : prompt;
    const after = typeof completion === "string" ? [{ role: "assistant", content: completion }] : completion;
    const first = messagesOf("prompt", before);
    return this.#conversation([...first, ...messagesOf("completion", after)], first.length);
  }

  // The prompt as generation would tokenize it: with the tokens that begin a text, without those that end one.
  async #encodeStart(text: string): Promise<Int32Array> {
    const ids = await this.#tokenizer.encode(text);
    const end = ids.length > 0 && ids.at(-1) === this.#eos && !endsWith(text, this.#tokenizer.eosToken) ? 1 : 0;
    return ids.slice(0, ids.length - end);
  }

  // The end of the text is learned, too, whatever ids occur before it.
  #withEnd(ids: Int32Array, labels: Int32Array | null): Sample {
    const learned = labels ?? ids.slice();
    if (this.#eos === null || ids.at(-1) === this.#eos) return { ids, labels: learned };
    const end = Int32Array.of(this.#eos);
    return { ids: joined([ids, end]), labels: joined([learned, end]) };
  }

  /** Learns what the assistant says in the messages from number `from` on. */
  async #conversation(messages: readonly ChatMessage[], from: number): Promise<Sample> {
    const { text, spans, isEnded } = await this.#turns(messages, from);
    const encode = (part: string): Promise<Int32Array> => this.#tokenizer.encode(part, { addSpecialTokens: false });
    const sample = await labelled(text, spans, encode);
    return isEnded ? sample : this.#withEnd(sample.ids, sample.labels);
  }

  // The text of the conversation, and where the assistant's words begin and end in it, as generation would have it.
  async #turns(messages: readonly ChatMessage[], from: number) {
    const render = (upTo: number, addGenerationPrompt: boolean): Promise<string> =>
      this.#tokenizer.applyChatTemplate(messages.slice(0, upTo), { addGenerationPrompt, ...this.#template });
    const text = await render(messages.length, false);
    const spans: Span[] = [];
    let isEnded = true;
    for (let i = from; i < messages.length; i++) {
      const { role, content } = messages[i] as ChatMessage;
      if (role !== "assistant") continue;
      const turn = turnIn(text, await render(i, true), await render(i + 1, false), wordsOf(content), i);
      spans.push(turn);
      isEnded = turn.isMarked || i < messages.length - 1;
    }
    if (spans.length === 0) throw refused("must have a message of the assistant, got none to learn from");
    return { text, spans, isEnded };
  }
}

/**
 * The tokens of a text as it is tokenized in one piece, with labels for those of the spans: cut into pieces it would get what
 * some tokenizers put before each text. A token astride the edge of a span belongs to what stands behind the edge.
 */
async function labelled(
  text: string,
  spans: readonly Span[],
  encode: (part: string) => Promise<Int32Array>,
): Promise<Sample> {
  const ids = await encode(text);
  const labels = new Int32Array(ids.length).fill(IGNORED);
  const tokensBefore = async (at: number): Promise<number> => {
    if (at === text.length) return ids.length;
    const own = await encode(text.slice(0, at));
    const other = own.findIndex((id, i) => id !== ids[i]);
    return other < 0 ? own.length : other;
  };
  for (const { start, end } of spans) {
    const [first, behind] = [await tokensBefore(start), await tokensBefore(end)];
    if (first < behind) labels.set(ids.subarray(first, behind), first);
  }
  return { ids, labels };
}

/** The texts of a message, which its template must keep. */
function wordsOf(content: unknown): string[] {
  const parts = Array.isArray(content)
    ? content.map((part) => Reflect.get(Object(part), "text") as unknown)
    : [content];
  return parts.flatMap((part) => (typeof part === "string" ? part.trim() : [])).filter((part) => part !== "");
}

/** A turn of the assistant in the text of the whole conversation, and whether a mark of its end follows its words. */
interface Turn extends Span {
  readonly isMarked: boolean;
}

// `before` is the text up to the turn, `through` that which ends with it.
function turnIn(whole: string, before: string, through: string, words: readonly string[], index: number): Turn {
  if (!whole.startsWith(before)) {
    throw refused(`the chat template must keep what stands before message ${index + 1}, got one that changes it`);
  }
  const start = before.length;
  const turn = through.startsWith(before) ? through.slice(start) : through;
  if (turn === "" || words.some((part) => !turn.includes(part))) failDropped(index);
  if (through.startsWith(before) && whole.startsWith(turn, start)) {
    const last = words.at(-1) ?? "";
    const isMarked = turn.indexOf(last) + last.length < turn.trimEnd().length;
    // Behind a mark of the end, generation stops: what follows it is layout.
    return { start, end: start + (isMarked ? turn.trimEnd() : turn).length, isMarked };
  }
  const [said, ...others] = words;
  if (said === undefined || others.length > 0) failChanged(index);
  return shownOtherwise(whole, start, turn, said, index);
}

// Some templates show earlier turns otherwise than the last one: the turn is where the words are that have the same end.
function shownOtherwise(whole: string, start: number, turn: string, said: string, index: number): Turn {
  const tails = placesOf(said, turn, 0).map((place) => turn.slice(place + said.length));
  const places = placesOf(said, whole, start);
  if (places.length === 0) failDropped(index);
  for (const place of places) {
    const end = place + said.length;
    const tail = tails.find((text) => whole.startsWith(text, end));
    if (tail === undefined) continue;
    const isMarked = tail.trim() !== "";
    return { start, end: end + (isMarked ? tail.trimEnd() : tail).length, isMarked };
  }
  failChanged(index);
}

function placesOf(part: string, text: string, from: number): number[] {
  const found: number[] = [];
  for (let at = text.indexOf(part, from); at >= 0; at = text.indexOf(part, at + 1)) found.push(at);
  return found;
}

function failDropped(index: number): never {
  throw refused(`the chat template must keep what the assistant says, got one that drops message ${index + 1}`);
}

function failChanged(index: number): never {
  throw refused(`the chat template must end each turn alike, got one that changes message ${index + 1}`);
}

function messagesOf(name: string, value: unknown): readonly ChatMessage[] {
  const isMessage = (m: unknown): boolean => isPlainObject(m) && typeof (m as ChatMessage).role === "string";
  if (Array.isArray(value) && value.every(isMessage)) return value as ChatMessage[];
  throw refused(`${name} must be a text or a list of messages with a role`);
}

/** What is wrong with a row; its place is put before it. */
export function refused(problem: string): BnbError {
  return new BnbError("ERR_BNB_FORMAT", problem);
}

const endsWith = (text: string, end: string | null): boolean => end !== null && text.endsWith(end);

function joined(parts: readonly Int32Array[]): Int32Array {
  const all = new Int32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
