// The text of a config.json: read as JSON, and changed key by key, so that what is not changed keeps its bytes. (Numbers
// such as 1e-06 and 10000.0 are Python's; JavaScript would write them differently.)
import type { PythonObject } from "../ops/python-json.js";
import { PythonFloat, pythonJson } from "../ops/python-json.js";
import { BnbError } from "../tensor/errors.js";
import type { BitsAndBytesConfig } from "./bits-and-bytes-config.js";
import { formatError } from "./safetensors-header.js";

export type JsonObject = Record<string, unknown>;

/** The object of a JSON file. Throws ERR_BNB_FORMAT naming `file`. */
export function parseConfig(text: string, file = "config.json"): JsonObject {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw formatError(file, `is not JSON: ${(cause as Error).message}`, cause);
  }
  if (typeof json !== "object" || json === null || Array.isArray(json)) throw formatError(file, "must hold an object");
  return json as JsonObject;
}

/** The quantization_config of a saved model, as text inside its config.json. */
export function quantizationText(config: BitsAndBytesConfig): string {
  const json = config.toJSON() as Record<string, PythonObject[string]>;
  const threshold = new PythonFloat(config.llmInt8Threshold);
  return pythonJson({ ...json, llm_int8_threshold: threshold }, 2, 1);
}

/**
 * The text with top-level keys set to values, which are JSON themselves, or removed by null. New keys are put where they
 * belong in the order of the alphabet, in which transformers writes them.
 */
export function withKeys(text: string, changes: Readonly<Record<string, string | null>>): string {
  const members = membersOf(text);
  for (const [key, value] of Object.entries(changes)) {
    const at = members.findIndex(([name]) => name === key);
    if (value === null) {
      if (at >= 0) members.splice(at, 1);
    } else if (at >= 0) members[at] = [key, value];
    else {
      const next = members.findIndex(([name]) => name > key);
      members.splice(next < 0 ? members.length : next, 0, [key, value]);
    }
  }
  const lines = members.map(([key, value]) => `  ${JSON.stringify(key)}: ${value}`);
  return `{\n${lines.join(",\n")}\n}\n`;
}

/** Keys and the text of their values, of a document that is known to be an object. */
function membersOf(text: string): [key: string, value: string][] {
  const members: [string, string][] = [];
  const token = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+/gs;
  let depth = 0;
  let key: string | undefined;
  let begin = -1;
  for (let match = token.exec(text); match; match = token.exec(text)) {
    const [part] = match;
    const closes = part === "}" || part === "]";
    if (depth === 1 && (part === "," || part === "}")) {
      if (key !== undefined) members.push([key, text.slice(begin, match.index).trimEnd()]);
      key = undefined;
      begin = -1;
    } else if (depth === 1 && key === undefined) key = JSON.parse(part) as string;
    else if (depth === 1 && part !== ":" && begin < 0) begin = match.index;
    if (part === "{" || part === "[") depth++;
    if (closes) depth--;
  }
  if (depth !== 0) throw new BnbError("ERR_BNB_FORMAT", "config.json: its brackets must close");
  return members;
}
