// What a subcommand of `bnb` is: its words and options as data, from which come its help, the checks of what was given,
// and the options that all commands share.
import { parseArgs } from "node:util";
import { BnbError } from "../tensor/errors.js";
import { withNearest } from "../tensor/nearest.js";
import type { Interrupts } from "./interrupts.js";
import type { Output } from "./terminal.js";
import { Terminal } from "./terminal.js";

/** One option. */
export interface OptionSpec {
  type: "boolean" | "string";
  /** What stands for its value in the help, such as "FILE". */
  value?: string;
  short?: string;
  default?: string;
  multiple?: boolean;
  help: string;
}

type Options = Readonly<Record<string, OptionSpec>>;
type ValueOf<S extends OptionSpec> = S["type"] extends "boolean"
  ? boolean
  : S extends { multiple: true }
    ? string[]
    : S extends { default: string }
      ? string
      : string | undefined;

/** Where a command runs. */
export interface CommandContext {
  stdout: Output;
  stderr: Output;
  /** The version of the package. */
  version: string;
  /** Ctrl-C; absent, there is none. */
  interrupts?: Interrupts;
  /** What is typed; default that of the process. */
  stdin?: NodeJS.ReadableStream;
}

/** What a command works with. */
export interface Call<O extends Options> extends CommandContext {
  values: { readonly [K in keyof O]: ValueOf<O[K]> };
  /** The words without dashes, as many as the command has names for. */
  words: readonly string[];
  /** For people; says nothing with --json. */
  terminal: Terminal;
  isJson: boolean;
  signal: AbortSignal;
}

/** What a command leaves. */
export interface Outcome {
  /** Printed by --json. */
  json?: unknown;
  /** Exit code, default 0. */
  code?: number;
}

export interface CommandSpec<O extends Options> {
  /** The words it takes, all required, such as ["model", "out"]. */
  words?: readonly string[];
  /** What it does, in lines of at most 120 characters. */
  about: string;
  options: O;
  /** Lines below the options. */
  notes?: string;
  run(call: Call<O>): Promise<Outcome>;
}

/** A subcommand. */
export interface Command {
  help(name: string): string;
  /** Resolves with the exit code; rejects with ERR_BNB_OPTION for wrong usage. */
  run(args: readonly string[], context: CommandContext): Promise<number>;
}

const shared = {
  json: { type: "boolean", help: "print the result as JSON, and nothing else" },
  quiet: { type: "boolean", short: "q", help: "no progress" },
  debug: { type: "boolean", help: "the stack of an error" },
  help: { type: "boolean", short: "h", help: "show this help" },
} as const satisfies Options;

/** The device that commands compute on. */
export const deviceOption = {
  type: "string",
  value: "NAME",
  default: "auto",
  help: "cpu, cuda, cuda:N or auto: the first GPU, else the CPU",
} as const satisfies OptionSpec;

/** The options of commands that may fetch from the hub. */
export const revisionOption = {
  type: "string",
  value: "NAME",
  help: "branch, tag or commit of a model on the hub (default main)",
} as const satisfies OptionSpec;

/** A command from its description. */
export function command<const O extends Options>(spec: CommandSpec<O>): Command {
  const options: Options = { ...spec.options, ...shared };
  return {
    help: (name) => helpText(name, spec, options),
    async run(args, context) {
      const { values, words } = readArguments(args, options, spec.words ?? []);
      const { json: isJson, quiet } = values as { json: boolean; quiet: boolean };
      const terminal = new Terminal(isJson ? { write: () => true } : context.stdout, quiet ? null : context.stderr);
      const signal = context.interrupts?.signal ?? new AbortController().signal;
      try {
        const call = { ...context, values, words, terminal, isJson, signal } as unknown as Call<O>;
        const { json, code = 0 } = await spec.run(call);
        if (isJson && json !== undefined) context.stdout.write(`${JSON.stringify(json, null, 2)}\n`);
        return code;
      } finally {
        terminal.end();
      }
    },
  };
}

/** ERR_BNB_OPTION: the command line is wrong. */
export function usageError(message: string): BnbError {
  return new BnbError("ERR_BNB_OPTION", message);
}

/** A whole number of at least `min` that was given to an option. */
export function wholeNumber(option: string, text: string, min = 1): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && Number.isSafeInteger(value) && value >= min) return value;
  throw usageError(`${option} must be a whole number of at least ${min}, got ${JSON.stringify(text)}`);
}

/** A number from `min` on that was given to an option. */
export function number(option: string, text: string, min: number, max = Infinity): number {
  const value = Number(text);
  if (text.trim() !== "" && Number.isFinite(value) && value >= min && value <= max) return value;
  const range = max === Infinity ? `of at least ${min}` : `from ${min} to ${max}`;
  throw usageError(`${option} must be a number ${range}, got ${JSON.stringify(text)}`);
}

/** One of the texts. */
export function choice<const T extends string>(option: string, text: string, choices: readonly T[]): T {
  if ((choices as readonly string[]).includes(text)) return text as T;
  throw usageError(`${option} must be one of ${choices.join(", ")}, got ${withNearest(text, choices)}`);
}

function readArguments(
  args: readonly string[],
  options: Options,
  names: readonly string[],
): { values: Record<string, unknown>; words: readonly string[] } {
  const { tokens } = parseArgs({ args: [...args], options, strict: false, tokens: true, allowPositionals: true });
  const values: Record<string, unknown> = {};
  for (const [name, spec] of Object.entries(options)) {
    values[name] = spec.type === "boolean" ? false : spec.multiple ? [] : spec.default;
  }
  const words: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") words.push(token.value);
    if (token.kind !== "option") continue;
    const { name, rawName, value } = token;
    const spec = Object.hasOwn(options, name) ? options[name] : undefined;
    if (!spec) {
      const near = withNearest(name, Object.keys(options)).slice(name.length).replace("mean ", "mean --");
      throw usageError(`unknown option ${rawName}${near}`);
    }
    if (spec.type === "boolean") {
      if (value !== undefined) throw usageError(`${rawName} takes no value, got ${JSON.stringify(value)}`);
      values[name] = true;
    } else {
      if (value === undefined) throw usageError(`${rawName} needs a value: ${rawName} ${spec.value ?? "VALUE"}`);
      if (spec.multiple) (values[name] as string[]).push(value);
      else values[name] = value;
    }
  }
  const empty = words.indexOf("");
  if (empty >= 0 && empty < names.length) throw usageError(`<${names[empty]}> must not be empty`);
  const missing = names[words.length];
  if (missing !== undefined) throw usageError(`<${missing}> is missing`);
  if (words.length > names.length) throw usageError(`${JSON.stringify(words[names.length])} is one word too many`);
  return { values, words };
}

function helpText<O extends Options>(name: string, spec: CommandSpec<O>, options: Options): string {
  const left = Object.entries(options).map(([option, { short, value }]) => {
    const long = value === undefined ? `--${option}` : `--${option} ${value}`;
    return short ? `-${short}, ${long}` : `    ${long}`;
  });
  const width = Math.max(...left.map(({ length }) => length));
  const lines = Object.values(options).map(({ help, default: otherwise }, i) => {
    const hint = otherwise === undefined ? "" : ` (default ${otherwise})`;
    return `  ${(left[i] as string).padEnd(width)}  ${help}${hint}`;
  });
  const words = (spec.words ?? []).map((word) => ` <${word}>`).join("");
  const notes = spec.notes === undefined ? "" : `\n${spec.notes}\n`;
  return `Usage: bnb ${name}${words} [options]\n\n${spec.about}\n\nOptions:\n${lines.join("\n")}\n${notes}`;
}
