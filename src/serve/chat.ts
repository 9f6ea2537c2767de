// POST /v1/chat/completions.
import type { Next } from "../generation/branch.js";
import { wrongField } from "./api-error.js";
import type { Call } from "./call.js";
import type { ChatPiece } from "./chat-run.js";
import { logprobsOf, startChat } from "./chat-run.js";
import type { Fields } from "./fields.js";
import { EventStream, sendJson } from "./http.js";
import { newId, now } from "./ids.js";
import { readMessages, readVariables } from "./messages.js";
import type { Served } from "./served.js";
import type { TextRequest } from "./text-request.js";
import { readTextRequest, usageOf } from "./text-request.js";
import type { Delta } from "./tools/call-parser.js";
import { chooseDialect } from "./tools/choose.js";
import type { ToolUse } from "./tools/read-tools.js";
import { chatChoice, readChatTool, toolUse } from "./tools/read-tools.js";

export async function chatCompletions(fields: Fields, served: Served, call: Call): Promise<void> {
  const messages = readMessages(fields);
  const effort = fields.text("reasoning_effort");
  const variables = readVariables(fields, effort);
  const request = readRequest(fields, served, call);
  const dialect = chooseDialect(served.tokenizer, served.toolFormat);
  const tools = toolUse(dialect, fields, readChatTool, chatChoice, request.format);
  fields.refuseOthers();
  const { prompt, pieces } = await startChat(served, { messages, variables, tools, request }, call);
  const head = { id: newId("chatcmpl"), created: now(), model: served.name, system_fingerprint: null };
  if (request.stream) {
    return streamed(head, served, pieces, { request, tools }, (made) => usageOf([prompt], made, call), call);
  }
  const choices = Array.from({ length: request.n }, () => new Choice(tools));
  for await (const { index, deltas, next, finish } of pieces) {
    const choice = choices[index] as Choice;
    for (const delta of deltas) choice.add(delta);
    if (next) choice.tokens.push(next);
    if (finish) choice.finish = finish;
  }
  const made = choices.reduce((sum, { tokens }) => sum + tokens.length, 0);
  sendJson(call.response, 200, {
    ...head,
    object: "chat.completion",
    choices: await Promise.all(
      choices.map(async (choice, index) => ({
        index,
        message: choice.message,
        logprobs: await logprobsOf(served, choice.tokens, request),
        finish_reason: choice.finish,
      })),
    ),
    usage: usageOf([prompt], made, call),
  });
}

/** A message that grows. */
class Choice {
  readonly tokens: Next[] = [];
  finish = "stop";
  readonly #tools: ToolUse | null;
  #content = "";
  readonly #calls: { id: string; type: "function"; function: { name: string; arguments: string } }[] = [];

  constructor(tools: ToolUse | null) {
    this.#tools = tools;
  }

  add(delta: Delta): void {
    if (delta.type === "text") this.#content += delta.text;
    else if (delta.type === "arguments")
      (this.#calls[delta.call] as { function: { arguments: string } }).function.arguments += delta.text;
    else this.#calls.push(beginning(this.#tools as ToolUse, delta.name));
  }

  get message(): object {
    const isCall = this.#calls.length > 0;
    const content = isCall && this.#content === "" ? null : this.#content;
    return { role: "assistant", content, refusal: null, ...(isCall && { tool_calls: this.#calls }) };
  }
}

const beginning = ({ dialect }: ToolUse, name: string) => ({
  id: dialect.newId(),
  type: "function" as const,
  function: { name, arguments: "" },
});

/** What the delta of a chunk says. */
function deltaOf(delta: Delta, tools: ToolUse | null): object {
  switch (delta.type) {
    case "text":
      return { content: delta.text };
    case "call":
      return { tool_calls: [{ index: delta.call, ...beginning(tools as ToolUse, delta.name) }] };
    case "arguments":
      return { tool_calls: [{ index: delta.call, function: { arguments: delta.text } }] };
  }
}

async function streamed(
  head: object,
  served: Served,
  pieces: AsyncIterable<ChatPiece>,
  { request, tools }: { request: TextRequest; tools: ToolUse | null },
  usageFor: (made: number) => object,
  call: Call,
): Promise<void> {
  const events = new EventStream(call.response);
  const usage = request.includeUsage ? { usage: null } : {};
  const chunk = (
    index: number,
    delta: object,
    finish: string | null = null,
    logprobs: object | null = null,
  ): object => ({
    ...head,
    object: "chat.completion.chunk",
    choices: [{ index, delta, logprobs, finish_reason: finish }],
    ...usage,
  });
  let made = 0;
  for (let i = 0; i < request.n; i++) await events.send(chunk(i, { role: "assistant", content: "" }));
  for await (const { index, deltas, next, finish } of pieces) {
    if (next) made++;
    let logprobs = next && (await logprobsOf(served, [next], request));
    for (const delta of deltas) {
      await events.send(chunk(index, deltaOf(delta, tools), null, logprobs));
      logprobs = null;
    }
    // A token need not be a text.
    if (logprobs) await events.send(chunk(index, tools ? {} : { content: "" }, null, logprobs));
    if (finish) await events.send(chunk(index, {}, finish));
  }
  if (request.includeUsage) {
    await events.send({ ...head, object: "chat.completion.chunk", choices: [], usage: usageFor(made) });
  }
  await events.send("[DONE]");
  events.end();
}

function readRequest(fields: Fields, served: Served, call: Call): TextRequest {
  const wantsLogprobs = fields.flag("logprobs") ?? false;
  const top = fields.whole("top_logprobs", 0, 20);
  if (top !== undefined && !wantsLogprobs)
    throw wrongField("logprobs", "true where top_logprobs is given", wantsLogprobs);
  const [most, older] = [fields.whole("max_completion_tokens", 1), fields.whole("max_tokens", 1)];
  fields.ignore("user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key", "verbosity");
  fields.refuse("modalities", (v) => Array.isArray(v) && v.every((one) => one === "text"));
  const asked = { param: most === undefined ? "max_tokens" : "max_completion_tokens", most: most ?? older };
  return readTextRequest(fields, served, asked, wantsLogprobs ? (top ?? 0) : null, call);
}
