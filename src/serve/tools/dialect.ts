// How models of a family write calls of functions: what a grammar holds them to, and how they are read.
import { randomBytes } from "node:crypto";
import type { ArgumentsReader, CallShape } from "./call-parser.js";

/** A function that may be called. */
export interface ToolFunction {
  readonly name: string;
  /** A JSON schema of an object. */
  readonly parameters: object;
  readonly strict: boolean;
}

/** Part of a structural tag of XGrammar. */
export type TagFormat = Readonly<Record<string, unknown>>;

export interface ToolDialect {
  /** Special tokens in its calls. */
  readonly markers: readonly string[];
  readonly shape: CallShape;
  /** One call or more, of these functions, and nothing else. */
  calls(functions: readonly ToolFunction[], isParallel: boolean): TagFormat;
  /** Any text, with calls in it. */
  textWithCalls(functions: readonly ToolFunction[], isParallel: boolean): TagFormat;
  /** Reads the arguments of a function, undefined for one that is not known. Default: JSON. */
  reader?(one: ToolFunction | undefined): ArgumentsReader;
  newId(): string;
}

export const newCallId = (): string => `call_${randomBytes(12).toString("hex")}`;

/** A name as a part of a regular expression: a JSON string without its quotes. */
export const jsonText = '((?:[^"\\\\]|\\\\.)*)';

/** A call between two texts. */
export function tagOf({ parameters, strict }: ToolFunction, begin: string, end: string): TagFormat {
  return { type: "tag", begin, content: { type: "json_schema", json_schema: parameters, strict }, end };
}

export function oneOrMore(tags: readonly TagFormat[], separator: string, isParallel: boolean): TagFormat {
  return { type: "tags_with_separator", tags, separator, at_least_one: true, stop_after_first: !isParallel };
}

export function textWith(triggers: readonly string[], tags: readonly TagFormat[], isParallel: boolean): TagFormat {
  return { type: "triggered_tags", triggers, tags, at_least_one: false, stop_after_first: !isParallel };
}
