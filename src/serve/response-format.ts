// response_format: what a text must be, as OpenAI's API says it.
import type { GrammarSource } from "../hub/grammars.js";
import { BnbError } from "../tensor/errors.js";
import { ApiError, clients, wrongField } from "./api-error.js";
import type { Fields } from "./fields.js";
import type { Served } from "./served.js";

/** A grammar, and the field that asks for it. */
export interface Format {
  readonly source: GrammarSource;
  readonly field: string;
}

/** Undefined: any text. */
export function readFormat(fields: Fields): Format | undefined {
  const field = "response_format";
  const format = fields.nested(field);
  const type = format?.one("type", ["text", "json_object", "json_schema"]);
  if (!format) return undefined;
  if (type === undefined) throw wrongField(`${field}.type`, "one of text, json_object, json_schema", type);
  if (type !== "json_schema") {
    format.refuseOthers();
    return type === "text" ? undefined : { source: { type }, field };
  }
  const own = format.nested("json_schema");
  if (!own) throw wrongField(`${field}.json_schema`, "an object with name and schema", own);
  format.refuseOthers();
  if (own.text("name") === undefined) throw wrongField(`${field}.json_schema.name`, "a text", undefined);
  return { source: readSchema(own, `${field}.json_schema`), field };
}

/** The fields of a schema beside its name. Strict has to be asked for. */
export function readSchema(own: Fields, at: string): GrammarSource {
  own.ignore("name", "description", "type");
  const strict = own.flag("strict") ?? false;
  const schema = own.object("schema");
  own.refuseOthers();
  // OpenAI's API takes an absent one for any object.
  if (!schema && strict) throw wrongField(`${at}.schema`, "an object", schema);
  return { type: "json_schema", schema: schema ?? { type: "object" }, strict };
}

/** What `check` refuses is 400, and names the field. */
export function asFieldError<T>(field: string, check: () => T): T {
  try {
    return check();
  } catch (error) {
    throw fieldError(field, error);
  }
}

function fieldError(field: string, error: unknown): unknown {
  const isClients = error instanceof BnbError && clients.includes(error.code);
  return isClients ? new ApiError(400, "invalid_request_error", error.message, field) : error;
}

/** Throws 400, which names the field, for a grammar that cannot be compiled. */
export async function compileFormat({ tokenizer }: Served, format: Format | undefined): Promise<void> {
  if (!format) return;
  const { source, field } = format;
  try {
    await tokenizer.grammars.compile(field, source.type, source);
  } catch (error) {
    throw fieldError(field, error);
  }
}
