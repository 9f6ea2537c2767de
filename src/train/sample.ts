// One sample of training data: token ids, and which of them the model is to learn. A row becomes one by its form: a text, a
// prompt with its completion, or the messages of a conversation.
import type { ChatMessage, Tokenizer } from "../hub/index.js";
import { isPlainObject } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { withNearest } from "../tensor/nearest.js";

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
    const text = await this.#render(messages);
    const last = messages.map(({ role }) => role).lastIndexOf("assistant");
    if (last < from) throw refused("must have a message of the assistant, got none to learn from");
    const isMarked = await this.#hasMark(messages.slice(0, last + 1));
    const spans: Span[] = [];
    for (let i = from; i <= last; i++) {
      if (messages[i]?.role === "assistant") spans.push(await this.#turn(messages, i, text, isMarked));
    }
    return { text, spans, isEnded: isMarked || last < messages.length - 1 };
  }

  /** Turn number `index` in the text `whole` of all messages. Behind a mark of the end, generation stops: the rest is layout. */
  async #turn(messages: readonly ChatMessage[], index: number, whole: string, isMarked: boolean): Promise<Span> {
    const before = await this.#render(messages.slice(0, index), true);
    const through = await this.#render(messages.slice(0, index + 1));
    if (!whole.startsWith(before)) {
      throw refused(`the chat template must keep what stands before message ${index + 1}, got one that changes it`);
    }
    const start = before.length;
    const words = wordsOf(messages[index]?.content);
    const isKept = (text: string): boolean => text !== "" && words.every((part) => text.includes(part));
    const turn = through.startsWith(before) ? through.slice(start) : through;
    if (!isKept(turn)) failDropped(index);
    if (through.startsWith(before) && whole.startsWith(turn, start)) {
      return { start, end: start + (isMarked ? turn.trimEnd() : turn).length };
    }
    // Some templates show earlier turns otherwise than the last one: their end is what follows other words in both places.
    const probed = messages.map((message, i) => (i === index ? withProbe(message) : message));
    const rest = behindProbe(await this.#render(probed));
    const tail = behindProbe(await this.#render(probed.slice(0, index + 1)));
    if (rest === null || tail === null) failChanged(index);
    const mark = isMarked ? tail.trimEnd() : tail;
    const end = whole.length - rest.length + mark.length;
    const isSame = rest.startsWith(mark) && whole.endsWith(rest.slice(mark.length));
    if (!isSame || !whole.slice(start, end).trimEnd().endsWith(mark.trim())) failChanged(index);
    if (!isKept(whole.slice(start, end))) failDropped(index);
    return { start, end };
  }

  // The words of a turn may occur in its mark, and calls of tools follow them: other words tell whether there is one.
  async #hasMark(messages: readonly ChatMessage[]): Promise<boolean> {
    const { role, content } = messages.at(-1) as ChatMessage;
    const text = await this.#render([...messages.slice(0, -1), withProbe({ role, content })]);
    return Boolean(behindProbe(text)?.trim());
  }

  #render(messages: readonly ChatMessage[], addGenerationPrompt = false): Promise<string> {
    return this.#tokenizer.applyChatTemplate(messages, { addGenerationPrompt, ...this.#template });
  }
}

/** Words that no message has. */
const PROBE = "\uE000words\uE001";

/** A message with other words in the same form. */
function withProbe(message: ChatMessage): ChatMessage {
  return { ...message, content: Array.isArray(message.content) ? [{ type: "text", text: PROBE }] : PROBE };
}

function behindProbe(text: string): string | null {
  const at = text.lastIndexOf(PROBE);
  return at < 0 ? null : text.slice(at + PROBE.length);
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

function failDropped(index: number): never {
  throw refused(`the chat template must keep what the assistant says, got one that drops message ${index + 1}`);
}

function failChanged(index: number): never {
  throw refused(`the chat template must end each turn alike, got one that changes message ${index + 1}`);
}

// Of the templates that there are. What the assistant says is learned: under another name it would be lost.
const roles = ["system", "developer", "user", "assistant", "tool", "function", "ipython", "observation", "context"];

function messagesOf(name: string, value: unknown): readonly ChatMessage[] {
  const isMessage = (m: unknown): boolean => isPlainObject(m) && typeof (m as ChatMessage).role === "string";
  if (Array.isArray(value) && value.every(isMessage)) {
    const unknown = (value as ChatMessage[]).find(({ role }) => !roles.includes(role));
    if (!unknown) return value as ChatMessage[];
    throw refused(`the role of a message must be one of ${roles.join(", ")}, got ${withNearest(unknown.role, roles)}`);
  }
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
