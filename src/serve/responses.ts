// POST /v1/responses, without state: nothing is stored, and all that a request refers to is in it.
import type { Next } from "../generation/branch.js";
import type { ChatMessage } from "../hub/index.js";
import { isPlainObject } from "../tensor/describe.js";
import { unsupportedField, wrongField } from "./api-error.js";
import type { Call } from "./call.js";
import { logprobsOf, startChat } from "./chat-run.js";
import type { Fields } from "./fields.js";
import { EventStream, sendJson } from "./http.js";
import { newId, now } from "./ids.js";
import { callOf, readContent, readVariables } from "./messages.js";
import type { Format } from "./response-format.js";
import { readSchema } from "./response-format.js";
import { ResponseOutput } from "./response-output.js";
import type { Served } from "./served.js";
import type { TextRequest } from "./text-request.js";
import { readTextRequest, usageOf } from "./text-request.js";
import { chooseDialect } from "./tools/choose.js";
import { checkType, readFunction, toolUse } from "./tools/read-tools.js";

const logprobsField = "message.output_text.logprobs";

export async function responses(fields: Fields, served: Served, call: Call): Promise<void> {
  const instructions = fields.text("instructions");
  const input = readInput(fields.raw("input"));
  const messages = [...(instructions === undefined ? [] : [{ role: "system", content: instructions }]), ...input];
  const effort = fields.nested("reasoning")?.text("effort");
  const request = readRequest(fields, served, call);
  const dialect = chooseDialect(served.tokenizer, served.toolFormat);
  const tools = toolUse(dialect, fields, readTool, (choice) => choice.text("name"), request.format, "text.format");
  const said = Object.fromEntries(echoed.map((name) => [name, fields.raw(name) ?? null]));
  const variables = readVariables(fields, effort);
  fields.refuseOthers();
  const { prompt, pieces } = await startChat(served, { messages, variables, tools, request }, call);

  const head = {
    id: newId("resp"),
    object: "response",
    created_at: now(),
    model: served.name,
    ...said,
    instructions: instructions ?? null,
    metadata: fields.object("metadata") ?? {},
    parallel_tool_calls: fields.flag("parallel_tool_calls") ?? true,
    previous_response_id: null,
    store: false,
    text: fields.object("text") ?? { format: { type: "text" } },
    tool_choice: fields.raw("tool_choice") ?? "auto",
    tools: fields.raw("tools") ?? [],
    truncation: "disabled",
  };
  const events = request.stream ? new EventStream(call.response) : null;
  let sequence = 0;
  const send = async (event: object): Promise<void> => {
    await events?.send({ ...event, sequence_number: sequence++ });
  };
  const begun = { ...head, status: "in_progress", error: null, incomplete_details: null, output: [], usage: null };
  await send({ type: "response.created", response: begun });
  await send({ type: "response.in_progress", response: begun });
  const output = new ResponseOutput(tools?.dialect.newId);
  let made = 0;
  let finish: string | null = null;
  /** Of tokens whose text is yet to come. */
  let logprobs: object[] = [];
  for await (const piece of pieces) {
    const { next, deltas } = piece;
    if (next) made++;
    logprobs.push(...(await told(served, next, request)));
    for (const delta of deltas) {
      for (const event of output.add(delta, logprobs)) await send(event);
      logprobs = [];
    }
    finish = piece.finish ?? finish;
  }
  const isWhole = finish !== "length";
  for (const event of output.end(isWhole, logprobs)) await send(event);
  const usage = usageOf([prompt], made, call);
  const response = {
    ...head,
    status: isWhole ? "completed" : "incomplete",
    error: null,
    incomplete_details: isWhole ? null : { reason: "max_output_tokens" },
    output: output.items,
    usage: {
      input_tokens: usage.prompt_tokens,
      input_tokens_details: usage.prompt_tokens_details,
      output_tokens: made,
      output_tokens_details: { reasoning_tokens: 0 },
      total_tokens: usage.total_tokens,
    },
  };
  if (!events) {
    sendJson(call.response, 200, response);
    return;
  }
  await send({ type: isWhole ? "response.completed" : "response.incomplete", response });
  events.end();
}

/** Fields that come back as they were. */
const echoed = ["temperature", "top_p", "max_output_tokens", "reasoning", "user", "top_logprobs"];

async function told(served: Served, next: Next | null, request: TextRequest): Promise<object[]> {
  return (next && (await logprobsOf(served, [next], request))?.content) ?? [];
}

function readRequest(fields: Fields, served: Served, call: Call): TextRequest {
  const most = fields.whole("max_output_tokens", 1);
  fields.ignore("user", "safety_identifier", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention");
  fields.ignore("store", "stream_options");
  fields.refuse("truncation", (v) => v === "disabled");
  fields.refuse("background", (v) => v === false);
  const advice = ": nothing is stored; send the whole conversation as input";
  for (const name of ["previous_response_id", "conversation", "prompt"]) fields.refuse(name, () => false, advice);
  // Those of chat completions.
  for (const name of ["response_format", "n"]) fields.refuse(name);
  const include = fields.list("include", `a list of ${logprobsField}`, isText) ?? [];
  const other = include.find((name) => name !== logprobsField);
  if (other !== undefined) throw unsupportedField("include", `: ${other}`);
  const top = fields.whole("top_logprobs", 0, 20);
  const wants = include.length > 0;
  if (top !== undefined && top > 0 && !wants) {
    throw wrongField("include", `to have ${logprobsField} where top_logprobs is given`, include);
  }
  const request = readTextRequest(
    fields,
    served,
    { param: "max_output_tokens", most },
    wants ? (top ?? 0) : null,
    call,
  );
  return { ...request, format: readTextFormat(fields) };
}

const isText = (value: unknown): value is string => typeof value === "string";

function readTextFormat(fields: Fields): Format | undefined {
  const text = fields.nested("text");
  text?.ignore("verbosity");
  const format = text?.nested("format");
  text?.refuseOthers();
  if (!format) return undefined;
  const field = "text.format";
  const type = format.one("type", ["text", "json_object", "json_schema"]);
  if (type === undefined) throw wrongField(`${field}.type`, "one of text, json_object, json_schema", type);
  if (type === "json_schema") return { source: readSchema(format, field), field };
  format.refuseOthers();
  return type === "text" ? undefined : { source: { type }, field };
}

/** A text, or messages, calls and what they gave. */
function readInput(input: unknown): ChatMessage[] {
  if (typeof input === "string") return [{ role: "user", content: input }];
  if (!Array.isArray(input) || input.length === 0) throw wrongField("input", "a text, or a list of items", input);
  const messages: ChatMessage[] = [];
  for (const [i, item] of input.entries()) {
    const at = `input[${i}]`;
    if (!isPlainObject(item)) throw wrongField(at, "an item", item);
    const message = readItem(item as Readonly<Record<string, unknown>>, at);
    const last = messages.at(-1);
    // Calls that follow each other are one message.
    if (last && message["tool_calls"] && last["tool_calls"]) {
      const calls = [...(last["tool_calls"] as object[]), ...(message["tool_calls"] as object[])];
      messages[messages.length - 1] = { ...last, tool_calls: calls };
    } else messages.push(message);
  }
  return messages;
}

const roles = ["system", "developer", "user", "assistant"];

function readItem(item: Readonly<Record<string, unknown>>, at: string): ChatMessage {
  const { type = "message", role, content, call_id: id, name, arguments: given, output } = item;
  switch (type) {
    case "message": {
      if (!roles.includes(role as string)) throw wrongField(`${at}.role`, `one of ${roles.join(", ")}`, role);
      const text = readContent(content, `${at}.content`, ["input_text", "output_text"]);
      return { role: role === "developer" ? "system" : (role as string), content: text };
    }
    case "function_call": {
      if (!isText(id) || !isText(name)) throw wrongField(at, "a call with call_id and name", item);
      return { role: "assistant", content: "", tool_calls: [callOf(id, name, given, `${at}.arguments`)] };
    }
    case "function_call_output":
      if (!isText(id)) throw wrongField(`${at}.call_id`, "the id of a call", id);
      return { role: "tool", tool_call_id: id, content: readContent(output, `${at}.output`, ["input_text"]) };
    default:
      throw unsupportedField(`${at}.type ${String(type)}`);
  }
}

/** A tool of responses: the fields of a function, beside its type. */
function readTool(tool: Fields, at: string): ReturnType<typeof readFunction> {
  checkType(tool, at);
  return readFunction(tool, at, { strict: true });
}
