// tools, tool_choice and parallel_tool_calls: which functions a model may call, and whether it must.
import { checkSchema } from "../../hub/json-schema.js";
import { isPlainObject } from "../../tensor/describe.js";
import { ApiError, unsupportedField, wrongField } from "../api-error.js";
import { Fields } from "../fields.js";
import type { Format } from "../response-format.js";
import { asFieldError } from "../response-format.js";
import type { ToolDialect, ToolFunction } from "./dialect.js";

/** What a request says of tools. */
export interface ToolUse {
  readonly dialect: ToolDialect;
  /** For the chat template. */
  readonly described: readonly object[];
  readonly functions: readonly ToolFunction[];
  /** What each text must be. */
  readonly format: Format;
}

/** A tool as the chat template and the grammar take it. */
interface Tool {
  readonly described: object;
  readonly own: ToolFunction;
}

/** Null where nothing may be called. `readOne` reads one tool; a choice is a name, or a word. */
export function toolUse(
  dialect: ToolDialect | null,
  fields: Fields,
  readOne: (tool: Fields, at: string) => Tool,
  nameOf: (choice: Fields) => string | undefined,
  format: Format | undefined,
  formatField = "response_format",
): ToolUse | null {
  const list = fields.list("tools", "a list of functions", isPlainObject) ?? [];
  const isParallel = fields.flag("parallel_tool_calls") ?? true;
  const tools = list.map((tool, i) => readOne(new Fields(tool, `tools[${i}].`), `tools[${i}]`));
  const choice = readChoice(fields, nameOf);
  const names = tools.map(({ own }) => own.name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw wrongField("tools", "functions of different names", twice);
  if (tools.length === 0) {
    if (choice === "auto" || choice === "none") return null;
    throw wrongField("tool_choice", "none or auto where there are no tools", fields.raw("tool_choice"));
  }
  if (choice === "none") return null;
  if (!dialect) {
    throw unsupportedField(
      "tools",
      ": the chat template of this model shows no calls that are known (toolFormat says which)",
    );
  }
  const functions = tools.map(({ own }) => own);
  const described = tools.map((tool) => tool.described);
  const sourceOf = (tag: object): Format => ({ source: { type: "structural_tag", format: tag }, field: "tools" });
  if (format)
    throw wrongField(formatField, "text where tools may be called (tool_choice is not none)", format.source.type);
  if (choice === "auto") {
    return { dialect, described, functions, format: sourceOf(dialect.textWithCalls(functions, isParallel)) };
  }
  if (choice === "required")
    return { dialect, described, functions, format: sourceOf(dialect.calls(functions, isParallel)) };
  const named = functions.filter(({ name }) => name === choice.name);
  if (named.length === 0) throw wrongField("tool_choice", `one of the tools: ${names.join(", ")}`, choice.name);
  return { dialect, described, functions, format: sourceOf(dialect.calls(named, false)) };
}

function readChoice(
  fields: Fields,
  nameOf: (choice: Fields) => string | undefined,
): "none" | "auto" | "required" | { name: string } {
  const given = fields.raw("tool_choice") ?? "auto";
  if (given === "none" || given === "auto" || given === "required") return given;
  if (!isPlainObject(given)) throw wrongField("tool_choice", "none, auto, required or a function", given);
  const choice = new Fields(given, "tool_choice.");
  const name = choice.one("type", ["function"]) && nameOf(choice);
  choice.refuseOthers();
  if (name === undefined) throw wrongField("tool_choice", "none, auto, required or a function with a name", given);
  return { name };
}

/** The name, parameters and strictness that both APIs have. */
export function readFunction(own: Fields, at: string, usual: { strict: boolean }): Tool {
  const name = own.text("name");
  if (name === undefined || !/^[a-zA-Z0-9_-]{1,64}$/.test(name)) {
    throw wrongField(`${at}.name`, "1 to 64 letters, digits, _ and -", name);
  }
  const description = own.text("description");
  const parameters = own.object("parameters") ?? { type: "object", properties: {} };
  const strict = own.flag("strict") ?? usual.strict;
  own.refuseOthers();
  const { type = "object" } = parameters as { type?: unknown };
  if (type !== "object") throw wrongField(`${at}.parameters.type`, "object", type);
  asFieldError(`${at}.parameters`, () => checkSchema(at, "parameters", parameters, strict));
  const shown = { name, ...(description !== undefined && { description }), parameters };
  return {
    described: { type: "function", function: shown },
    own: { name, parameters: { ...parameters, type: "object" }, strict },
  };
}

/** A tool of chat completions: { type: "function", function: {...} }. */
export function readChatTool(tool: Fields, at: string): Tool {
  checkType(tool, at);
  const own = tool.nested("function");
  tool.refuseOthers();
  if (!own) throw wrongField(`${at}.function`, "an object with name and parameters", own);
  return readFunction(own, `${at}.function`, { strict: false });
}

export const chatChoice = (choice: Fields): string | undefined => choice.nested("function")?.text("name");

/** Only functions are called here. */
export function checkType(tool: Fields, at: string): void {
  const type = tool.raw("type");
  if (type === "function") return;
  if (typeof type !== "string") throw wrongField(`${at}.type`, "function", type);
  throw new ApiError(
    400,
    "invalid_request_error",
    `${at}.type ${type} is not supported`,
    `${at}.type`,
    "unsupported_parameter",
  );
}
