// JSON schemas as others send them: how large they may be, and what of them a grammar cannot keep.
import { describe, isPlainObject } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";

const mostCharacters = 65_536;
const mostDepth = 32;

/** What a grammar does not count, compare or negate. */
const notKept = new Set([
  "contains",
  "dependentRequired",
  "dependentSchemas",
  "else",
  "if",
  "maxContains",
  "minContains",
  "multipleOf",
  "not",
  "propertyNames",
  "then",
  "uniqueItems",
]);
const listsOfSchemas = ["allOf", "anyOf", "oneOf", "prefixItems"];
const mapsOfSchemas = ["properties", "patternProperties", "$defs", "definitions"];
const schemas = ["items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems"];

/**
 * Throws ERR_BNB_OPTION for a schema that is too large; a strict one that asks for what a grammar cannot keep is refused,
 * others are kept as far as it goes.
 */
export function checkSchema(op: string, name: string, schema: unknown, strict: boolean): void {
  const refuse = (at: string, rule: string, got: string): never => {
    throw new BnbError("ERR_BNB_OPTION", `${op}: ${at} must ${rule}, got ${got}`);
  };
  if (!isPlainObject(schema)) refuse(name, "be an object", describe(schema));
  checkDepth(schema, 1, () => refuse(name, `have at most ${mostDepth} levels`, "more"));
  const { length } = JSON.stringify(schema);
  if (length > mostCharacters) refuse(name, `have at most ${mostCharacters} characters as JSON`, String(length));
  checkKept(schema, name, strict, refuse);
}

function checkDepth(value: unknown, depth: number, refuse: () => never): void {
  if (typeof value !== "object" || value === null) return;
  if (depth > mostDepth) refuse();
  for (const inner of Object.values(value)) checkDepth(inner, depth + 1, refuse);
}

type Refuse = (at: string, rule: string, got: string) => never;

function checkKept(schema: unknown, at: string, strict: boolean, refuse: Refuse): void {
  if (!isPlainObject(schema)) return;
  const json = schema as Readonly<Record<string, unknown>>;
  // A grammar would take them for the end of the string.
  if (typeof json["pattern"] === "string" && /"|\\\\/.test(json["pattern"])) {
    refuse(`${at}.pattern`, "match no quotes and backslashes", describe(json["pattern"]));
  }
  if (strict) checkStrict(json, at, refuse);
  for (const key of schemas) checkKept(json[key], `${at}.${key}`, strict, refuse);
  for (const key of listsOfSchemas) {
    const list = json[key];
    const items: unknown[] = Array.isArray(list) ? list : [];
    for (const [i, one] of items.entries()) checkKept(one, `${at}.${key}[${i}]`, strict, refuse);
  }
  for (const key of mapsOfSchemas) {
    const map = json[key];
    if (!isPlainObject(map)) continue;
    for (const [name, one] of Object.entries(map)) checkKept(one, `${at}.${key}.${name}`, strict, refuse);
  }
}

function checkStrict(json: Readonly<Record<string, unknown>>, at: string, refuse: Refuse): void {
  const bad = Object.keys(json).find((key) => notKept.has(key));
  if (bad !== undefined) refuse(at, "have no keyword that a grammar cannot keep where it is strict", bad);
  if (Array.isArray(json["allOf"]) && json["allOf"].length > 1) {
    refuse(`${at}.allOf`, "have one schema where it is strict", `${json["allOf"].length}`);
  }
  const { properties, required } = json;
  const known = isPlainObject(properties) ? properties : {};
  const missing = Array.isArray(required) ? required.find((name) => !Object.hasOwn(known, String(name))) : undefined;
  if (missing !== undefined) refuse(`${at}.required`, "name properties where it is strict", describe(missing));
}
