// Fields of a request's JSON: read with their checks; an error names the field, what it must be and what came.
import { isPlainObject } from "../tensor/describe.js";
import { unsupportedField, wrongField } from "./api-error.js";

type Json = Readonly<Record<string, unknown>>;

/** The object that a request is. A field that is null counts as absent. */
export class Fields {
  readonly #json: Json;
  readonly #known = new Set<string>();
  /** What stands before the names in errors. */
  readonly #prefix: string;

  constructor(body: unknown, prefix = "") {
    if (!isPlainObject(body)) throw wrongField("the body", "a JSON object", body);
    this.#json = body as Json;
    this.#prefix = prefix;
  }

  has(name: string): boolean {
    this.#known.add(name);
    return this.#json[name] !== undefined && this.#json[name] !== null;
  }

  /** The value as it came, of a field whose reader checks it. */
  raw(name: string): unknown {
    return this.has(name) ? this.#json[name] : undefined;
  }

  text(name: string): string | undefined {
    return this.#read(name, "a text", (v) => typeof v === "string");
  }

  flag(name: string): boolean | undefined {
    return this.#read(name, "true or false", (v) => typeof v === "boolean");
  }

  /** A finite number. */
  number(name: string, least: number, most: number): number | undefined {
    const holds = (v: unknown): boolean => typeof v === "number" && v >= least && v <= most;
    const range = Number.isFinite(most) ? `from ${least} to ${most}` : `of at least ${least}`;
    return this.#read(name, `a number ${range}`, holds);
  }

  whole(name: string, least: number, most: number = Number.MAX_SAFE_INTEGER): number | undefined {
    const holds = (v: unknown): boolean => Number.isSafeInteger(v) && (v as number) >= least && (v as number) <= most;
    const range = most < Number.MAX_SAFE_INTEGER ? `from ${least} to ${most}` : `of at least ${least}`;
    return this.#read(name, `a whole number ${range}`, holds);
  }

  one<const T extends string>(name: string, choices: readonly T[]): T | undefined {
    return this.#read(name, `one of ${choices.join(", ")}`, (v) => (choices as readonly unknown[]).includes(v));
  }

  object(name: string): Json | undefined {
    return this.#read(name, "an object", isPlainObject);
  }

  /** An object of fields of its own. */
  nested(name: string): Fields | undefined {
    const json = this.object(name);
    return json && new Fields(json, `${this.#prefix}${name}.`);
  }

  list<T>(name: string, rule: string, holds: (item: unknown) => item is T): T[] | undefined {
    return this.#read(name, rule, (v) => Array.isArray(v) && v.every(holds));
  }

  /** Fields that are accepted and change nothing. */
  ignore(...names: string[]): void {
    for (const name of names) this.#known.add(name);
  }

  /** Fields that would change what comes back: refused unless they say what happens anyway. */
  refuse(name: string, unless: (value: unknown) => boolean = () => false, advice = ""): void {
    if (this.has(name) && !unless(this.#json[name])) throw unsupportedField(this.#prefix + name, advice);
  }

  /** Throws for the fields that nobody has read: a mistake in a name would go unnoticed. */
  refuseOthers(): void {
    for (const [name, value] of Object.entries(this.#json)) {
      if (!this.#known.has(name) && value !== null) throw unsupportedField(this.#prefix + name);
    }
  }

  #read<T>(name: string, rule: string, holds: (value: unknown) => boolean): T | undefined {
    const value = this.raw(name);
    if (value === undefined) return undefined;
    if (!holds(value)) throw wrongField(this.#prefix + name, rule, value);
    return value as T;
  }
}
