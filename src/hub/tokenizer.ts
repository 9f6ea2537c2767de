// Tokenizer: text to token ids and back, and chat templates, as a model's tokenizer.json and tokenizer_config.json say. All
// of it runs in a thread of its own, and long texts cross in pieces: the event loop never waits for one.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { types } from "node:util";
import { Worker } from "node:worker_threads";
import {
  aBoolean,
  anAbortSignal,
  anInteger,
  aPlainObject,
  arrayOf,
  aString,
  checkArgument,
  orNull,
} from "../tensor/checks.js";
import { describe } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { JsonObject } from "./config-text.js";
import { parseConfig } from "./config-text.js";
import { Grammars } from "./grammars.js";
import { resolveModel } from "./resolve.js";
import { formatError } from "./safetensors-header.js";

/** One message of a conversation, and whatever else its template reads, such as tool_calls. */
export interface ChatMessage {
  readonly role: string;
  readonly content?: unknown;
  readonly [key: string]: unknown;
}

/** Options of `AutoTokenizer.fromPretrained`. */
export interface TokenizerOptions {
  /** Branch, tag or commit of a model on the hub. Default "main". */
  revision?: string;
  /** For private and gated models. Default HF_TOKEN, or what `hf auth login` left. */
  token?: string;
  signal?: AbortSignal;
}
const tokenizerOptions = optionTable<TokenizerOptions>({ revision: aString, token: aString, signal: anAbortSignal });

/** Options of `tokenizer.encode`. */
export interface EncodeOptions {
  /** Whether the tokens that the model expects around a text are added; default true. */
  addSpecialTokens?: boolean;
  /** A second text, for models of pairs. */
  textPair?: string | null;
}
const encodeOptions = optionTable<EncodeOptions>({ addSpecialTokens: aBoolean, textPair: orNull(aString) });

/** Options of `tokenizer.decode`. */
export interface DecodeOptions {
  /** Whether tokens such as that of the end are left out; default false. */
  skipSpecialTokens?: boolean;
}
const decodeOptions = optionTable<DecodeOptions>({ skipSpecialTokens: aBoolean });

/** Options of `tokenizer.applyChatTemplate`. */
export interface ChatTemplateOptions {
  /** Whether the text ends where the assistant's answer begins; default false. */
  addGenerationPrompt?: boolean;
  /** JSON schemas of functions that the model may call. */
  tools?: readonly object[] | null;
  documents?: readonly object[] | null;
  /** A template, or the name of one of the tokenizer's. Default its own: "tool_use" with tools where it has one. */
  chatTemplate?: string;
  /** Further variables of the template, such as `{ enable_thinking: false }`. */
  variables?: Readonly<Record<string, unknown>>;
}
const templateOptions = optionTable<ChatTemplateOptions>({
  addGenerationPrompt: aBoolean,
  tools: orNull(arrayOf(aPlainObject)),
  documents: orNull(arrayOf(aPlainObject)),
  chatTemplate: aString,
  variables: aPlainObject,
});

/** Characters that cross to the thread at once: about a millisecond. */
const PIECE = 1 << 20;
const MAX_FILE = 512 << 20;
const specials = ["bos", "eos", "pad", "unk"] as const;

interface Call {
  readonly pieces: string[];
  resolve(answer: { text: string; ids?: Int32Array; value?: unknown }): void;
  reject(error: Error): void;
}
interface Answer {
  call: number;
  piece?: string;
  error?: string;
  ids?: Int32Array;
  value?: unknown;
}

/** A short list of tokens whose text is asked for. */
interface Decode {
  readonly ids: Int32Array;
  readonly skipSpecialTokens: boolean;
  readonly resolve: (text: string) => void;
  readonly reject: (error: unknown) => void;
}
/** Tokens of a short list. */
const SHORT = 256;

/**
 * A model's tokenizer. `dispose` ends its thread; it does not keep the process alive.
 *
 * @example
 * const tokenizer = await AutoTokenizer.fromPretrained("Qwen/Qwen3-0.6B");
 * const text = await tokenizer.applyChatTemplate([{ role: "user", content: "Hi" }], { addGenerationPrompt: true });
 * const ids = await tokenizer.encode(text, { addSpecialTokens: false });
 */
export class Tokenizer implements Disposable {
  /** Size of the vocabulary, added tokens included. */
  readonly vocabSize: number;
  readonly bosToken: string | null = null;
  readonly eosToken: string | null = null;
  readonly padToken: string | null = null;
  readonly unkToken: string | null = null;
  /** Names and texts of the chat templates; "default" is the usual one. */
  readonly chatTemplates: ReadonlyMap<string, string>;
  readonly #worker: Worker;
  readonly #calls: Map<number, Call>;
  /** What is decoded at the end of this turn. */
  readonly #soon: Decode[] = [];
  /** @internal What texts of its tokens may be held to. */
  readonly grammars: Grammars;
  #last = 0;
  #disposed = false;

  private constructor(worker: Worker, calls: Map<number, Call>, vocabSize: number, files: TokenizerFiles) {
    this.#worker = worker;
    this.#calls = calls;
    this.vocabSize = vocabSize;
    this.chatTemplates = files.templates;
    this.grammars = new Grammars((port) => worker.postMessage({ port }, [port]));
    for (const name of specials) Object.assign(this, { [`${name}Token`]: contentOf(files.config[`${name}_token`]) });
  }

  /**
   * The tokenizer of a folder, or of an id on the hub (as `AutoModelForCausalLM.fromPretrained`). Rejects with ERR_BNB_FILE
   * where there is no tokenizer.json, ERR_BNB_FORMAT where it cannot be read.
   */
  static async fromPretrained(path: string, options: TokenizerOptions = {}): Promise<Tokenizer> {
    checkArgument("AutoTokenizer.fromPretrained", "path", path, aString);
    checkOptions("AutoTokenizer.fromPretrained", options, tokenizerOptions);
    const files = await readFiles(await resolveModel(path, "tokenizer", options));
    const workerData = { tokenizer: files.tokenizer, config: files.configText, piece: PIECE };
    const worker = new Worker(join(__dirname, "tokenizer-worker.cjs"), { workerData });
    const calls = new Map<number, Call>();
    const ready = new Promise<{ value?: unknown }>((resolve, reject) => calls.set(0, { pieces: [], resolve, reject }));
    worker.on("message", (answer: Answer) => settle(answer, calls, worker));
    const failAll = (error: Error): void => {
      for (const call of calls.values()) call.reject(error);
      calls.clear();
    };
    worker.on("error", (cause) => failAll(formatError("tokenizer.json", `cannot be used: ${cause.message}`, cause)));
    worker.on("exit", () => failAll(new BnbError("ERR_BNB_DISPOSED", "Tokenizer: it was disposed")));
    const { value } = await ready;
    return new Tokenizer(worker, calls, value as number, files);
  }

  /** Token ids of a text, int32. */
  async encode(text: string, options: EncodeOptions = {}): Promise<Int32Array> {
    checkArgument("encode", "text", text, aString);
    checkOptions("encode", options, encodeOptions);
    const { addSpecialTokens = true, textPair = null } = options;
    const split = textPair === null ? null : text.length;
    const { ids } = await this.#call("encode", text + (textPair ?? ""), { addSpecialTokens, split });
    return ids as Int32Array;
  }

  /** The text of token ids: an array, or a TypedArray such as `encode` gives. */
  async decode(ids: ArrayLike<number>, options: DecodeOptions = {}): Promise<string> {
    if (!Array.isArray(ids) && !types.isTypedArray(ids)) {
      throw new BnbError("ERR_BNB_ARGUMENT", `decode: ids must be an array or TypedArray, got ${describe(ids)}`);
    }
    checkOptions("decode", options, decodeOptions);
    const { skipSpecialTokens = false } = options;
    const codes = Int32Array.from(ids as ArrayLike<number>);
    const bad = codes.findIndex((id, i) => id !== ids[i] || id < 0 || id >= this.vocabSize);
    if (bad >= 0) {
      const rule = `decode: a token id must lie in 0..${this.vocabSize - 1}`;
      throw new BnbError("ERR_BNB_ARGUMENT", `${rule}, got ${describe(ids[bad])} at ${bad}`);
    }
    if (codes.length === 0) return "";
    if (codes.length <= SHORT) return this.#decodeSoon(codes, skipSpecialTokens);
    return (await this.#call("decode", "", { skipSpecialTokens }, codes)).text;
  }

  /** With all others of this turn in one message: a step of an engine has one for each of its texts. */
  #decodeSoon(ids: Int32Array, skipSpecialTokens: boolean): Promise<string> {
    if (this.#soon.length === 0) queueMicrotask(() => void this.#decodeAll(this.#soon.splice(0)));
    return new Promise((resolve, reject) => {
      this.#soon.push({ ids, skipSpecialTokens, resolve, reject });
    });
  }

  async #decodeAll(list: readonly Decode[]): Promise<void> {
    try {
      const ids = Int32Array.from(list.flatMap((one) => [...one.ids]));
      const lengths = list.map((one) => one.ids.length);
      const skips = list.map(({ skipSpecialTokens }) => skipSpecialTokens);
      const { value } = await this.#call("decodeEach", "", { lengths, skips }, ids);
      for (const [i, { resolve }] of list.entries()) resolve((value as string[])[i] as string);
    } catch (error) {
      for (const { reject } of list) reject(error);
    }
  }

  /** @internal The bytes of each token, which may be a part of a character. */
  async bytesOf(ids: readonly number[]): Promise<number[][]> {
    return (await this.#call("bytesEach", "", {}, Int32Array.from(ids))).value as number[][];
  }

  /** The id of a token as it stands in the vocabulary, or null. */
  async tokenToId(token: string): Promise<number | null> {
    checkArgument("tokenToId", "token", token, aString);
    return (await this.#call("tokenToId", token, {})).value as number | null;
  }

  /** The token of an id as it stands in the vocabulary, or null. */
  async idToToken(id: number): Promise<string | null> {
    checkArgument("idToToken", "id", id, anInteger(0));
    return (await this.#call("idToToken", "", { id })).value as string | null;
  }

  /**
   * The text of a conversation as the model was trained on it. Rejects with ERR_BNB_ARGUMENT where there is no template or
   * it refuses the messages. The special tokens are in the text: encode it with `addSpecialTokens: false`.
   */
  async applyChatTemplate(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): Promise<string> {
    checkArgument("applyChatTemplate", "messages", messages, arrayOf(aPlainObject));
    checkOptions("applyChatTemplate", options, templateOptions);
    const { addGenerationPrompt = false, tools = null, documents = null, variables = {} } = options;
    const given = Object.fromEntries(specials.map((name) => [`${name}_token`, this[`${name}Token`] ?? ""]));
    return (
      await this.#call("render", this.#template(options), {
        variables: { ...given, messages, add_generation_prompt: addGenerationPrompt, tools, documents, ...variables },
      })
    ).text;
  }

  /** Ends the thread; what is still being computed is rejected with ERR_BNB_DISPOSED. */
  dispose(): void {
    this.#disposed = true;
    this.grammars.dispose();
    void this.#worker.terminate();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #template({ chatTemplate, tools }: ChatTemplateOptions): string {
    const { chatTemplates } = this;
    if (chatTemplate !== undefined) return chatTemplates.get(chatTemplate) ?? chatTemplate;
    const found = (tools ? chatTemplates.get("tool_use") : undefined) ?? chatTemplates.get("default");
    if (found !== undefined) return found;
    const names = [...chatTemplates.keys()].join(", ");
    const rule = "applyChatTemplate: chatTemplate must be given, as the tokenizer has none of its own";
    throw new BnbError("ERR_BNB_ARGUMENT", names === "" ? rule : `${rule} that is the default, but ${names}`);
  }

  async #call(
    operation: string,
    text: string,
    options: object,
    ids?: Int32Array,
  ): Promise<Parameters<Call["resolve"]>[0]> {
    if (this.#disposed) throw new BnbError("ERR_BNB_DISPOSED", "Tokenizer: it was disposed");
    const call = ++this.#last;
    this.#worker.ref();
    const answer = new Promise<Parameters<Call["resolve"]>[0]>((resolve, reject) => {
      this.#calls.set(call, { pieces: [], resolve, reject });
    });
    answer.catch(() => undefined); // also while the text is still on its way
    for (let at = 0; at < text.length; at += PIECE) {
      if (at > 0) await new Promise(setImmediate);
      this.#worker.postMessage({ call, piece: text.slice(at, at + PIECE) });
    }
    try {
      this.#worker.postMessage({ call, operation, ids, options }, ids ? [ids.buffer as ArrayBuffer] : []);
    } catch (cause) {
      this.#calls.delete(call);
      const rule = `${operation}: what a template reads must be data`;
      throw new BnbError("ERR_BNB_ARGUMENT", `${rule}, got: ${(cause as Error).message}`, { cause });
    }
    try {
      return await answer;
    } catch (error) {
      if (error instanceof BnbError) throw error;
      const code = operation === "render" ? "ERR_BNB_ARGUMENT" : "ERR_BNB_FORMAT";
      const subject =
        operation === "render"
          ? "applyChatTemplate: the template must render"
          : `${operation.replace("Each", "")}: failed`;
      throw new BnbError(code, `${subject}, got: ${(error as Error).message}`, { cause: error });
    }
  }
}

/** Tokenizers of models, by the name that people know. */
export const AutoTokenizer = {
  /** See `Tokenizer.fromPretrained`. */
  fromPretrained: (path: string, options: TokenizerOptions = {}): Promise<Tokenizer> =>
    Tokenizer.fromPretrained(path, options),
};

function settle({ call, piece, error, ids, value }: Answer, calls: Map<number, Call>, worker: Worker): void {
  const waiting = calls.get(call);
  if (!waiting) return;
  if (piece !== undefined) {
    waiting.pieces.push(piece);
    return;
  }
  calls.delete(call);
  if (calls.size === 0) worker.unref();
  if (error !== undefined) waiting.reject(new Error(error));
  else waiting.resolve({ text: waiting.pieces.join(""), ...(ids && { ids }), value });
}

interface TokenizerFiles {
  readonly tokenizer: string;
  readonly config: JsonObject;
  readonly configText: string;
  readonly templates: ReadonlyMap<string, string>;
}

async function readFiles(folder: string): Promise<TokenizerFiles> {
  const read = (name: string): Promise<string | undefined> =>
    readFile(join(folder, name), "utf8").catch(() => undefined);
  const tokenizer = await read("tokenizer.json");
  if (tokenizer === undefined) {
    const rule = `${folder}: must hold tokenizer.json`;
    const advice =
      "files of slow tokenizers (vocab.json, tokenizer.model) are converted by transformers' save_pretrained";
    throw new BnbError("ERR_BNB_FILE", `${rule}, which is not there; ${advice}`);
  }
  if (tokenizer.length > MAX_FILE) throw formatError("tokenizer.json", `has more than ${MAX_FILE} characters`);
  const configText = (await read("tokenizer_config.json")) ?? "{}";
  const config = parseConfig(configText, "tokenizer_config.json");
  return { tokenizer, config, configText, templates: templatesOf(config, await read("chat_template.jinja")) };
}

/** A token's text, which files give as it is or in an object. */
function contentOf(token: unknown): string | null {
  const content: unknown =
    typeof token === "object" && token !== null ? (token as { content?: unknown }).content : token;
  return typeof content === "string" ? content : null;
}

/** One template, or a list of named ones; a file of its own wins. */
function templatesOf({ chat_template: given }: JsonObject, own: string | undefined): Map<string, string> {
  const templates = new Map<string, string>();
  const add = (name: unknown, template: unknown): void => {
    if (typeof name === "string" && typeof template === "string") templates.set(name, template);
  };
  if (Array.isArray(given)) {
    for (const item of given as { name?: unknown; template?: unknown }[]) add(item?.name, item?.template);
  } else add("default", given);
  add("default", own);
  return templates;
}
