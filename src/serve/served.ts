// What a server serves: a model under a name, and the engine that computes all of its requests together.
import type { Engine } from "../generation/index.js";
import type { Tokenizer } from "../hub/index.js";
import type { CausalLM } from "../models/index.js";
import type { AdapterSet } from "../peft/index.js";
import type { ToolFormat } from "./tools/choose.js";

export interface Served {
  /** What the request called the model. */
  readonly name: string;
  /** What the base is called. */
  readonly base: string;
  readonly adapters: AdapterSet;
  /** The adapter that the request named; undefined: the base. */
  readonly adapter: string | undefined;
  readonly model: CausalLM;
  readonly engine: Engine;
  readonly tokenizer: Tokenizer;
  /** Tokens that a text may be asked for. */
  readonly maxTokens: number;
  /** Whether requests of different keys may share what has been computed. */
  readonly sharePrefixes: boolean;
  /** How it writes calls of functions; undefined: as its chat template shows. */
  readonly toolFormat: ToolFormat | undefined;
  /** When it was loaded, in seconds since 1970. */
  readonly created: number;
}
