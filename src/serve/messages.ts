// Messages of a conversation, as chat templates know them: contents in parts become one text, "developer" is "system", and
// arguments of calls are objects.
import type { ChatMessage } from "../hub/index.js";
import { isPlainObject } from "../tensor/describe.js";
import { unsupportedField, wrongField } from "./api-error.js";
import type { Fields } from "./fields.js";

const roles = ["system", "developer", "user", "assistant", "tool"];

export function readMessages(fields: Fields): ChatMessage[] {
  const list = fields.list("messages", "a list of objects with role and content", isMessage);
  if (!list || list.length === 0)
    throw wrongField("messages", "a list of at least one message", fields.raw("messages"));
  return list.map((message, i) => readMessage(message, `messages[${i}]`));
}

/** What is said by fields of their own, or by the server. */
const ownVariables = ["messages", "tools", "add_generation_prompt"];

/** What the chat template reads beside messages and tools. */
export function readVariables(fields: Fields, effort: string | undefined): Readonly<Record<string, unknown>> {
  const given = fields.object("chat_template_kwargs") ?? {};
  const other = ownVariables.find((name) => Object.hasOwn(given, name));
  if (other !== undefined) throw wrongField("chat_template_kwargs", `without ${other}`, given);
  return { ...(effort !== undefined && { reasoning_effort: effort }), ...given };
}

const isMessage = (value: unknown): value is Record<string, unknown> => isPlainObject(value);

function readMessage({ role, content, ...rest }: Record<string, unknown>, at: string): ChatMessage {
  if (typeof role !== "string" || !roles.includes(role))
    throw wrongField(`${at}.role`, `one of ${roles.join(", ")}`, role);
  const isAssistant = role === "assistant";
  for (const key of ["function_call", "audio", ...(isAssistant ? [] : ["tool_calls"])]) {
    if ((rest[key] ?? null) !== null) throw unsupportedField(`${at}.${key}`);
  }
  const name = typeof rest["name"] === "string" ? { name: rest["name"] } : {};
  const calls = (rest["tool_calls"] ?? null) === null ? null : readCalls(rest["tool_calls"], `${at}.tool_calls`);
  const isEmpty = (content ?? null) === null && isAssistant;
  const text = isEmpty && (calls || typeof rest["refusal"] === "string") ? "" : readContent(content, `${at}.content`);
  const own = { role: role === "developer" ? "system" : role, content: text, ...name };
  if (calls) return { ...own, tool_calls: calls };
  if (role !== "tool") return own;
  if (typeof rest["tool_call_id"] !== "string") {
    throw wrongField(`${at}.tool_call_id`, "the id of a call", rest["tool_call_id"]);
  }
  return { ...own, tool_call_id: rest["tool_call_id"] };
}

function readCalls(calls: unknown, at: string): object[] {
  if (!Array.isArray(calls) || calls.length === 0) throw wrongField(at, "a list of calls", calls);
  return calls.map((call: unknown, i) => {
    const { id, type, function: own } = (call ?? {}) as Record<string, unknown>;
    const { name, arguments: given } = (own ?? {}) as Record<string, unknown>;
    if (typeof id !== "string" || type !== "function" || typeof name !== "string") {
      throw wrongField(`${at}[${i}]`, '{ id, type: "function", function: { name, arguments } }', call);
    }
    return callOf(id, name, given, `${at}[${i}].function.arguments`);
  });
}

/** A call as templates take it. */
export function callOf(id: string, name: string, given: unknown, at: string): object {
  const values = typeof given === "string" ? parsed(given) : undefined;
  if (!isPlainObject(values)) throw wrongField(at, "a text that is a JSON object", given);
  return { id, type: "function", function: { name, arguments: values } };
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text === "" ? "{}" : text);
  } catch {
    return undefined;
  }
}

/** A text, or parts of the types that are texts. */
export function readContent(content: unknown, param: string, types: readonly string[] = ["text"]): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) throw wrongField(param, "a text, or a list of text parts", content);
  return content
    .map((part: unknown, i) => {
      const { type, text } = (part ?? {}) as { type?: unknown; text?: unknown };
      const isText = types.includes(type as string);
      if (isText && typeof text === "string") return text;
      if (typeof type === "string" && !isText) throw unsupportedField(`${param}[${i}].type ${type}`);
      throw wrongField(`${param}[${i}]`, `{ type: "${types[0]}", text }`, part);
    })
    .join("");
}
