// POST /v1/chat/completions.
import type { Next } from "../generation/branch.js";
import type { ChatMessage } from "../hub/index.js";
import { isPlainObject } from "../tensor/describe.js";
import { unsupportedField, wrongField } from "./api-error.js";
import type { Call } from "./call.js";
import type { Fields } from "./fields.js";
import { EventStream, sendJson } from "./http.js";
import { newId, now } from "./ids.js";
import { compileFormat } from "./response-format.js";
import type { Served } from "./served.js";
import type { Piece, TextRequest } from "./text-request.js";
import { readTextRequest, runTexts, tokenText, usageOf } from "./text-request.js";

export async function chatCompletions(fields: Fields, served: Served, call: Call): Promise<void> {
  const messages = readMessages(fields);
  const variables = fields.object("chat_template_kwargs") ?? {};
  const request = readRequest(fields, served, call);
  fields.refuseOthers();
  await compileFormat(served, request.format);
  const { tokenizer } = served;
  const text = await tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true, variables });
  const prompt = await tokenizer.encode(text, { addSpecialTokens: false }); // the template has them in it
  const head = { id: newId("chatcmpl"), created: now(), model: served.name, system_fingerprint: null };
  const pieces = runTexts(served, [prompt], request, call);
  if (request.stream) return streamed(head, served, pieces, request, (made) => usageOf([prompt], made, call), call);
  const choices = Array.from({ length: request.n }, () => ({ content: "", tokens: [] as Next[], finish: "stop" }));
  for await (const { index, text: piece, next, finish } of pieces) {
    const choice = choices[index] as (typeof choices)[number];
    choice.content += piece;
    if (next) choice.tokens.push(next);
    if (finish) choice.finish = finish;
  }
  const made = choices.reduce((sum, { tokens }) => sum + tokens.length, 0);
  sendJson(call.response, 200, {
    ...head,
    object: "chat.completion",
    choices: await Promise.all(
      choices.map(async ({ content, tokens, finish }, index) => ({
        index,
        message: { role: "assistant", content, refusal: null },
        logprobs: await logprobsOf(served, tokens, request),
        finish_reason: finish,
      })),
    ),
    usage: usageOf([prompt], made, call),
  });
}

async function streamed(
  head: object,
  served: Served,
  pieces: AsyncIterable<Piece>,
  request: TextRequest,
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
  for await (const { index, text, next, finish } of pieces) {
    if (next) made++;
    const logprobs = next && (await logprobsOf(served, [next], request));
    if (text !== "" || logprobs) await events.send(chunk(index, { content: text }, null, logprobs));
    if (finish) await events.send(chunk(index, {}, finish));
  }
  if (request.includeUsage) {
    await events.send({ ...head, object: "chat.completion.chunk", choices: [], usage: usageFor(made) });
  }
  await events.send("[DONE]");
  events.end();
}

async function logprobsOf({ tokenizer }: Served, tokens: readonly Next[], { logprobs }: TextRequest) {
  if (logprobs === null) return null;
  const entry = async (id: number, logprob: number) => ({ ...(await tokenText(tokenizer, id)), logprob });
  const content = await Promise.all(
    tokens.map(async ({ id, logprob, bestIds, bestLogprobs }) => ({
      ...(await entry(id, logprob)),
      top_logprobs: await Promise.all(
        [...bestIds.subarray(0, logprobs)].map((other, i) => entry(other, bestLogprobs[i] as number)),
      ),
    })),
  );
  return { content, refusal: null };
}

function readRequest(fields: Fields, served: Served, call: Call): TextRequest {
  const wantsLogprobs = fields.flag("logprobs") ?? false;
  const top = fields.whole("top_logprobs", 0, 20);
  if (top !== undefined && !wantsLogprobs)
    throw wrongField("logprobs", "true where top_logprobs is given", wantsLogprobs);
  const [most, older] = [fields.whole("max_completion_tokens", 1), fields.whole("max_tokens", 1)];
  fields.ignore("user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key", "verbosity");
  fields.refuse("tools", (v) => Array.isArray(v) && v.length === 0);
  fields.refuse("tool_choice", (v) => v === "none" || v === "auto");
  fields.ignore("parallel_tool_calls");
  fields.refuse("modalities", (v) => Array.isArray(v) && v.every((one) => one === "text"));
  const asked = { param: most === undefined ? "max_tokens" : "max_completion_tokens", most: most ?? older };
  return readTextRequest(fields, served, asked, wantsLogprobs ? (top ?? 0) : null, call);
}

const roles = ["system", "developer", "user", "assistant"];

/** Messages as templates know them: contents in parts become one text, and "developer" is "system". */
function readMessages(fields: Fields): ChatMessage[] {
  const list = fields.list("messages", "a list of objects with role and content", isMessage);
  if (!list || list.length === 0)
    throw wrongField("messages", "a list of at least one message", fields.raw("messages"));
  return list.map(({ role, content, ...rest }, i) => {
    const at = `messages[${i}]`;
    if (typeof role !== "string" || !roles.includes(role))
      throw wrongField(`${at}.role`, `one of ${roles.join(", ")}`, role);
    for (const key of ["tool_calls", "function_call", "audio"]) {
      if ((rest[key] ?? null) !== null) throw unsupportedField(`${at}.${key}`);
    }
    const name = typeof rest["name"] === "string" ? { name: rest["name"] } : {};
    return { role: role === "developer" ? "system" : role, content: readContent(content, `${at}.content`), ...name };
  });
}

const isMessage = (value: unknown): value is Record<string, unknown> => isPlainObject(value);

function readContent(content: unknown, param: string): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) throw wrongField(param, "a text, or a list of text parts", content);
  return content
    .map((part: unknown, i) => {
      const { type, text } = (part ?? {}) as { type?: unknown; text?: unknown };
      if (type === "text" && typeof text === "string") return text;
      if (typeof type === "string" && type !== "text") throw unsupportedField(`${param}[${i}].type ${type}`);
      throw wrongField(`${param}[${i}]`, '{ type: "text", text }', part);
    })
    .join("");
}
