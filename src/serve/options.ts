// What a server is made of, and its limits.
import { someKvTokens } from "../generation/engine-options.js";
import { CausalLM } from "../models/index.js";
import { AdapterSet } from "../peft/index.js";
import type { Check } from "../tensor/checks.js";
import { aBoolean, aFunction, aNumberAbove, anInstance, anInteger, arrayOf, aString, oneOf } from "../tensor/checks.js";
import { optionTable } from "../tensor/options.js";
import type { RequestLine } from "./call.js";
import type { ToolFormat } from "./tools/choose.js";
import { toolFormats } from "./tools/choose.js";

/** Options of `createServer` and `createServeHandler`. */
export interface ServeOptions {
  /** A model with a tokenizer. It stays the caller's. */
  model: CausalLM;
  /** What clients call it. Default "model". */
  name?: string;
  /** Adapters over the model, each of which clients call by its name. They stay the caller's. */
  adapters?: AdapterSet;
  /** Who has none of these is refused. Default: everybody is served. */
  apiKeys?: readonly string[];
  /** Who has one of these may load and unload adapters, by folders of the server. Default: nobody. */
  adminKeys?: readonly string[];
  /** Requests that one key may have at once; others of it get 429. Default: no limit of its own. */
  keyConcurrency?: number;
  /** Tokens whose keys and values have room, of all requests together. Default: those of 8 of the longest texts, at most 65,536. */
  kvTokens?: number;
  /** Texts in one step. Default 64. */
  maxSequences?: number;
  /** Texts that may wait beyond those; more get 429. Default 256. */
  maxWaiting?: number;
  /** Whether a text is the same to the bit whatever else is computed: see `EngineOptions`. Default false. */
  deterministic?: boolean;
  /** Bytes of a request. Default 2 MiB. */
  maxBody?: number;
  /** Tokens that a text may be asked for. Default: as many as the model can. */
  maxTokens?: number;
  /** Seconds that a request may take, its answer read. Default 600. */
  maxSeconds?: number;
  /** Whether requests of different keys share what has been computed of a prompt, which tells by its time. Default false. */
  sharePrefixes?: boolean;
  /** How the model writes calls of functions. Default: as its chat template shows. */
  toolFormat?: ToolFormat;
  /** Is told each request when it is over; no text of it. */
  log?: (line: RequestLine) => void;
}

/** Who sends no key sends the empty one. */
const aKey: Check = { rule: "a key that is not empty", holds: (v) => typeof v === "string" && v.trim() !== "" };

/** @internal */
export const serveOptions = optionTable<ServeOptions>({
  model: { ...anInstance(() => CausalLM, "a language model"), required: true },
  name: aString,
  adapters: anInstance(() => AdapterSet, "an AdapterSet"),
  apiKeys: arrayOf(aKey),
  adminKeys: arrayOf(aKey),
  keyConcurrency: anInteger(1),
  kvTokens: someKvTokens,
  maxSequences: anInteger(1, 1024),
  maxWaiting: anInteger(0),
  deterministic: aBoolean,
  maxBody: anInteger(1),
  maxTokens: anInteger(1),
  maxSeconds: aNumberAbove(0),
  sharePrefixes: aBoolean,
  toolFormat: oneOf(toolFormats),
  log: aFunction,
});
