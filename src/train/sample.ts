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

/** A piece of a sample. */
interface Part {
  readonly text: string;
  readonly isLearned: boolean;
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
      const start = await this.#encodeStart(prompt);
      const rest = await this.#encode(completion);
      const labels = new Int32Array(start.length + rest.length).fill(IGNORED);
      labels.set(rest, start.length);
      return this.#withEnd(joined([start, rest]), labels);
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

  #encode(text: string): Promise<Int32Array> {
    return this.#tokenizer.encode(text, { addSpecialTokens: false });
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
    const { parts, isEnded } = await this.#parts(messages, from);
    const pieces = await Promise.all(parts.map(({ text }) => this.#encode(text)));
    const labels = pieces.map((ids, i) => (parts[i]?.isLearned ? ids : new Int32Array(ids.length).fill(IGNORED)));
    const sample = { ids: joined(pieces), labels: joined(labels) };
    return isEnded ? sample : this.#withEnd(sample.ids, sample.labels);
  }

  // The text of the conversation, cut where the assistant's words begin and end, as generation would cut it.
  async #parts(messages: readonly ChatMessage[], from: number): Promise<{ parts: Part[]; isEnded: boolean }> {
    const render = (upTo: number, addGenerationPrompt: boolean): Promise<string> =>
      this.#tokenizer.applyChatTemplate(messages.slice(0, upTo), { addGenerationPrompt, ...this.#template });
    const whole = await render(messages.length, false);
    const parts: Part[] = [];
    let at = 0;
    let isEnded = true;
    for (let i = from; i < messages.length; i++) {
      const { role, content } = messages[i] as ChatMessage;
      if (role !== "assistant") continue;
      const before = await render(i, true);
      const through = await render(i + 1, false);
      const said = typeof content === "string" ? content.trim() : "";
      const { start, end, isMarked } = turnIn(whole, before, through, said, i);
      parts.push(
        { text: whole.slice(at, start), isLearned: false },
        { text: whole.slice(start, end), isLearned: true },
      );
      at = end;
      isEnded = isMarked || i < messages.length - 1;
    }
    if (parts.length === 0) throw refused("must have a message of the assistant, got none to learn from");
    parts.push({ text: whole.slice(at), isLearned: false });
    return { parts: parts.filter(({ text }) => text !== ""), isEnded };
  }
}

// Where a turn of the assistant stands in the text of the whole conversation. Some templates show earlier turns otherwise
// than the last one, so its end is looked for behind the words.
function turnIn(whole: string, before: string, through: string, said: string, index: number) {
  if (!whole.startsWith(before)) {
    throw refused(`the chat template must keep what stands before message ${index + 1}, got one that changes it`);
  }
  const place = whole.indexOf(said, before.length);
  const placeAlone = through.lastIndexOf(said);
  if (place < 0 || placeAlone < 0) {
    throw refused(`the chat template must keep what the assistant says, got one that drops message ${index + 1}`);
  }
  const tail = through.slice(placeAlone + said.length);
  const end = place + said.length;
  if (!whole.startsWith(tail, end)) {
    throw refused(`the chat template must end each turn alike, got one that changes message ${index + 1}`);
  }
  // Behind a mark of the end, generation stops: what follows it is layout.
  const isMarked = tail.trim() !== "";
  return { start: before.length, end: end + (isMarked ? tail.trimEnd() : tail).length, isMarked };
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
