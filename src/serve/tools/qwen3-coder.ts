// Qwen3-Coder and others: <tool_call>\n<function=f>\n<parameter=x>\nvalue\n</parameter>\n</function>\n</tool_call>. A value
// that is a text stands as it is, others as JSON: which it is, the schema of the parameter says.
import type { ArgumentsReader, PiecesOfJson } from "./call-parser.js";
import { heldBack } from "./call-parser.js";
import type { TagFormat, ToolDialect, ToolFunction } from "./dialect.js";
import { newCallId, oneOrMore, textWith } from "./dialect.js";

type Schema = Readonly<Record<string, unknown>>;

const valueEnd = "\n</parameter>\n";
const callEnd = "</function>";
const empty: TagFormat = { type: "grammar", grammar: 'root ::= ""' };

/** Parameters by their names. */
const parametersOf = ({ parameters }: ToolFunction): [name: string, schema: Schema][] =>
  Object.entries(((parameters as Schema)["properties"] ?? {}) as Record<string, Schema>);

function tag(one: ToolFunction): TagFormat {
  const required = ((one.parameters as Schema)["required"] ?? []) as readonly string[];
  const elements = parametersOf(one).map(([name, schema]) => {
    const own = { type: "tag", begin: `<parameter=${name}>\n`, content: formatOf(schema, one), end: valueEnd };
    return required.includes(name) ? own : { type: "or", elements: [own, empty] };
  });
  const content = elements.length > 0 ? { type: "sequence", elements } : empty;
  return { type: "tag", begin: `<tool_call>\n<function=${one.name}>\n`, content, end: `${callEnd}\n</tool_call>` };
}

/** What a value may be. */
function formatOf(given: Schema, { parameters, strict }: ToolFunction): TagFormat {
  const schema = resolved(given, parameters as Schema);
  const choices = choicesOf(schema);
  if (choices) {
    const texts = choices.map((value) => JSON.stringify(typeof value === "string" ? value : JSON.stringify(value)));
    return { type: "grammar", grammar: `root ::= ${texts.join(" | ")}` };
  }
  const types = typesOf(schema, parameters as Schema);
  if (!types.has("string")) {
    const { $defs, definitions } = parameters as Schema;
    const shared = { ...($defs !== undefined && { $defs }), ...(definitions !== undefined && { definitions }) };
    return { type: "json_schema", json_schema: { ...given, ...shared }, strict };
  }
  if (types.size > 1) return { type: "any_text" };
  const { pattern, minLength = 0, maxLength } = schema as { pattern?: string; minLength?: number; maxLength?: number };
  if (pattern !== undefined) return { type: "regex", pattern };
  if (minLength === 0 && maxLength === undefined) return { type: "any_text" };
  // What ends a value begins with "<".
  return { type: "grammar", grammar: `root ::= [^<]{${minLength},${maxLength ?? ""}}` };
}

/** The values of an enumeration; null for what is none. */
function choicesOf(schema: Schema): readonly unknown[] | null {
  if ("const" in schema) return [schema["const"]];
  return Array.isArray(schema["enum"]) ? (schema["enum"] as unknown[]) : null;
}

/** What a reference within the parameters refers to. */
function resolved(schema: Schema, root: Schema): Schema {
  let found = schema;
  for (let depth = 0; depth < 32 && typeof found["$ref"] === "string"; depth++) {
    const path = found["$ref"].split("/").slice(1);
    const next = path.reduce<unknown>((at, key) => (at as Schema | undefined)?.[key], root);
    if (typeof next !== "object" || next === null) break;
    found = next as Schema;
  }
  return found;
}

const all = ["string", "number", "boolean", "null", "array", "object"];

/** The types of JSON that a schema allows; integers are numbers. */
function typesOf(given: Schema, root: Schema, depth = 0): ReadonlySet<string> {
  const schema = resolved(given, root);
  const choices = choicesOf(schema);
  if (choices) return new Set(choices.map(typeOf));
  const { type, anyOf, oneOf } = schema;
  const alternatives = anyOf ?? oneOf;
  if (type === undefined && Array.isArray(alternatives) && depth < 32) {
    return new Set(alternatives.flatMap((one) => [...typesOf(one as Schema, root, depth + 1)]));
  }
  const types = type === undefined ? all : Array.isArray(type) ? (type as string[]) : [String(type)];
  return new Set(types.map((one) => (one === "integer" ? "number" : one)));
}

function typeOf(value: unknown): string {
  if (value === null) return "null";
  return Array.isArray(value) ? "array" : typeof value;
}

/** A value as JSON. */
function jsonOf(text: string, types: ReadonlySet<string>): string {
  try {
    const value: unknown = JSON.parse(text);
    if (types.has(typeOf(value))) return text;
  } catch {
    // It is a text.
  }
  return JSON.stringify(text);
}

/** Parameters as they come; texts piece by piece. */
class XmlReader implements ArgumentsReader {
  readonly #types: ReadonlyMap<string, ReadonlySet<string>>;
  /** The types of the value that comes; null between values. */
  #current: ReadonlySet<string> | null = null;
  #hasBegun = false;
  #isFirst = true;

  constructor(one: ToolFunction | undefined) {
    const own = one ? parametersOf(one) : [];
    this.#types = new Map(
      own.map(([name, schema]) => [name, typesOf(schema, (one as ToolFunction).parameters as Schema)]),
    );
  }

  read(text: string): PiecesOfJson {
    let rest = text;
    let json = this.#hasBegun ? "" : "{";
    this.#hasBegun = true;
    for (;;) {
      const value = this.#current;
      if (!value) {
        const head = /^\s*<parameter=([^>]*)>\n/.exec(rest);
        const end = /^\s*<\/function>/.exec(rest);
        if (!head)
          return end
            ? { json: `${json}}`, rest: rest.slice(end[0].length), isOver: true }
            : { json, rest, isOver: false };
        const name = head[1] as string;
        this.#current = this.#types.get(name) ?? new Set(all);
        json += `${this.#isFirst ? "" : ", "}${JSON.stringify(name)}: ${isText(this.#current) ? '"' : ""}`;
        this.#isFirst = false;
        rest = rest.slice(head[0].length);
        continue;
      }
      const at = rest.indexOf(valueEnd);
      if (at < 0) {
        const kept = isText(value) ? rest.length - heldBack(rest, valueEnd) : 0;
        return { json: json + escaped(rest.slice(0, kept)), rest: rest.slice(kept), isOver: false };
      }
      const found = rest.slice(0, at);
      json += isText(value) ? `${escaped(found)}"` : jsonOf(found, value);
      rest = rest.slice(at + valueEnd.length);
      this.#current = null;
    }
  }
}

const isText = (types: ReadonlySet<string>): boolean => types.size === 1 && types.has("string");
const escaped = (text: string): string => JSON.stringify(text).slice(1, -1);

export const qwen3Coder: ToolDialect = {
  markers: ["<tool_call>", "</tool_call>"],
  shape: {
    triggers: ["<tool_call>"],
    head: /^<tool_call>\s*<function=([^>]*)>\n?/,
    more: null,
    done: /^\s*<\/tool_call>/,
  },
  calls: (functions, isParallel) => oneOrMore(functions.map(tag), "\n", isParallel),
  textWithCalls: (functions, isParallel) => textWith(["<tool_call>"], functions.map(tag), isParallel),
  reader: (one) => new XmlReader(one),
  newId: newCallId,
};
