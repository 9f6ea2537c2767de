// The fields of requests, as data: what docs/server.md says of them, a value of each, and the option of the library that does
// the same. A test asks with each of them.
import type { TextOptions } from "../../src/generation/index.js";

export type RouteName = "chat" | "completions" | "responses" | "embeddings";

export interface Field {
  readonly name: string;
  readonly routes: readonly RouteName[];
  readonly about: string;
  /** What is asked for; undefined: each request has it. */
  readonly value?: unknown;
  /** What else is asked for, with and without it. */
  readonly beside?: object;
  /** The options that do the same, and as what is beside it. None: the text is the same without it. */
  readonly here?: TextOptions;
  readonly besideHere?: TextOptions;
}

const texts = ["chat", "completions", "responses"] as const;
const chats = ["chat", "responses"] as const;
const greedy = { beside: { temperature: 0 }, besideHere: { doSample: false } };
const letterA = { beside: { logit_bias: { 65: 100 } }, besideHere: { logitBias: { 65: 100 } } };
const tool = { type: "function", function: { name: "f" } };

export const accepted: readonly Field[] = [
  { name: "model", routes: [...texts, "embeddings"], about: "the name of the model, or of an adapter" },
  {
    name: "messages",
    routes: ["chat"],
    about: "system, developer, user, assistant (with `tool_calls`) and tool; a text, or parts of type `text`",
  },
  { name: "prompt", routes: ["completions"], about: "a text, texts, token ids, or lists of them" },
  {
    name: "input",
    routes: ["responses", "embeddings"],
    about: "responses: a text, or messages, `function_call` and `function_call_output`; embeddings: as `prompt`",
  },
  {
    name: "instructions",
    routes: ["responses"],
    about: "a first message of the system",
    value: "",
    beside: { instructions: "" },
  },
  { name: "max_completion_tokens", routes: ["chat"], about: "tokens at most", value: 5, here: { maxNewTokens: 5 } },
  {
    name: "max_tokens",
    routes: ["chat", "completions"],
    about: "the same; 16 in completions",
    value: 5,
    here: { maxNewTokens: 5 },
  },
  { name: "max_output_tokens", routes: ["responses"], about: "the same", value: 5, here: { maxNewTokens: 5 } },
  { name: "temperature", routes: texts, about: "0 to 2; 0 takes the likeliest", value: 0, here: { doSample: false } },
  { name: "top_p", routes: texts, about: "0 to 1", value: 0.01, here: { topP: 0.01 } },
  { name: "top_k", routes: texts, about: "of the likeliest; 0: all", value: 1, here: { topK: 1 } },
  { name: "min_p", routes: texts, about: "0 to 1, of the likeliest's probability", value: 0.9, here: { minP: 0.9 } },
  { name: "seed", routes: texts, about: "the same seed draws the same text", value: 11, here: { seed: 11 } },
  { name: "frequency_penalty", routes: texts, about: "-2 to 2", value: 2, here: { frequencyPenalty: 2 }, ...greedy },
  { name: "presence_penalty", routes: texts, about: "-2 to 2", value: 2, here: { presencePenalty: 2 }, ...greedy },
  {
    name: "repetition_penalty",
    routes: texts,
    about: "0.01 to 100",
    value: 9,
    here: { repetitionPenalty: 9 },
    ...greedy,
  },
  {
    name: "logit_bias",
    routes: texts,
    about: "-100 to 100, by token ids",
    value: { 65: 100 },
    here: { logitBias: { 65: 100 } },
  },
  {
    name: "stop",
    routes: texts,
    about: "a text, or up to 4",
    value: ["AAA"],
    here: { stopStrings: ["AAA"] },
    ...letterA,
  },
  {
    name: "stop_token_ids",
    routes: texts,
    about: "token ids that end a text, too",
    value: [65],
    here: { eosTokenId: [258, 65] },
    ...letterA,
  },
  {
    name: "ignore_eos",
    routes: texts,
    about: "whether the end of a text does not end it",
    value: true,
    here: { eosTokenId: [] },
    beside: { logit_bias: { 258: 5 } },
    besideHere: { logitBias: { 258: 5 } },
  },
  { name: "n", routes: ["chat", "completions"], about: "1 to 128 texts of a prompt", value: 1 },
  { name: "best_of", routes: ["completions"], about: "as `n`", value: 1 },
  {
    name: "echo",
    routes: ["completions"],
    about: "whether the prompt comes back, too; without `logprobs`",
    value: false,
  },
  { name: "stream", routes: texts, about: "whether the text comes as events", value: false },
  {
    name: "stream_options",
    routes: texts,
    about: "`include_usage`",
    value: { include_usage: true },
    beside: { stream: true },
  },
  { name: "logprobs", routes: ["chat"], about: "whether log-probabilities are told", value: true },
  { name: "logprobs", routes: ["completions"], about: "0 to 5 of the likeliest tokens", value: 2 },
  { name: "top_logprobs", routes: ["chat"], about: "0 to 20, with `logprobs`", value: 2, beside: { logprobs: true } },
  {
    name: "top_logprobs",
    routes: ["responses"],
    about: "0 to 20, with `include`",
    value: 2,
    beside: { include: ["message.output_text.logprobs"] },
  },
  {
    name: "include",
    routes: ["responses"],
    about: "`message.output_text.logprobs`",
    value: ["message.output_text.logprobs"],
  },
  {
    name: "response_format",
    routes: ["chat", "completions"],
    about: "`text`, `json_object`, `json_schema` (64 KiB, 32 levels, 10 s)",
    value: { type: "text" },
  },
  {
    name: "text",
    routes: ["responses"],
    about: "`format`: the same; `verbosity` changes nothing",
    value: { format: { type: "text" }, verbosity: "low" },
  },
  { name: "tools", routes: chats, about: "functions that may be called", value: [] },
  { name: "tool_choice", routes: chats, about: "`none`, `auto`, `required`, or a function", value: "none" },
  { name: "parallel_tool_calls", routes: chats, about: "whether several may be called at once; true", value: false },
  { name: "reasoning_effort", routes: ["chat"], about: "a variable of the chat template", value: "low" },
  { name: "reasoning", routes: ["responses"], about: "`effort`: the same", value: { effort: "low" } },
  { name: "chat_template_kwargs", routes: chats, about: "variables of the chat template", value: { own: 1 } },
  { name: "cache_salt", routes: texts, about: "only texts of one salt share what has been computed", value: "mine" },
  { name: "truncation", routes: ["responses"], about: "`disabled`", value: "disabled" },
  { name: "background", routes: ["responses"], about: "false", value: false },
  { name: "modalities", routes: ["chat"], about: '`["text"]`', value: ["text"] },
  { name: "encoding_format", routes: ["embeddings"], about: "`float` or `base64`", value: "float" },
  { name: "dimensions", routes: ["embeddings"], about: "the first so many numbers, of length 1 again", value: 4 },
  { name: "user", routes: [...texts, "embeddings"], about: "changes nothing", value: "u" },
  ...["safety_identifier", "prompt_cache_key", "service_tier"].map((name) => ({
    name,
    routes: chats,
    about: "changes nothing",
    value: "auto",
  })),
  { name: "metadata", routes: chats, about: "changes nothing", value: { a: "b" } },
  { name: "store", routes: chats, about: "changes nothing: nothing is stored", value: true },
  { name: "verbosity", routes: ["chat"], about: "changes nothing", value: "low" },
  { name: "prompt_cache_retention", routes: ["responses"], about: "changes nothing", value: "24h" },
];

/** What is refused with 400, and the name in its `param` where it is another. */
export interface Refused {
  readonly name: string;
  readonly routes: readonly RouteName[];
  readonly value: unknown;
  readonly param?: string;
  readonly why: string;
}

const stored = "nothing is stored";
export const refused: readonly Refused[] = [
  { name: "suffix", routes: ["completions"], value: "a", why: "texts go on, and are not filled in" },
  { name: "best_of", routes: ["completions"], value: 2, why: "other than `n`" },
  { name: "modalities", routes: ["chat"], value: ["audio"], why: "texts only" },
  {
    name: "stream_options",
    routes: ["chat", "completions", "responses"],
    value: { include_usge: true },
    param: "stream_options.include_usge",
    why: "any other name in it",
  },
  {
    name: "chat_template_kwargs",
    routes: ["chat", "responses"],
    value: { messages: [] },
    why: "with `messages`, `tools` or `add_generation_prompt`",
  },
  { name: "audio", routes: ["chat"], value: { voice: "a" }, why: "texts only" },
  { name: "web_search_options", routes: ["chat"], value: {}, why: "no search" },
  { name: "prediction", routes: ["chat"], value: { type: "content", content: "a" }, why: "no drafts of clients" },
  { name: "functions", routes: ["chat"], value: [], why: "`tools` took their place" },
  { name: "function_call", routes: ["chat"], value: "auto", why: "`tool_choice` took its place" },
  { name: "top_logprobs", routes: ["chat"], value: 2, param: "logprobs", why: "without `logprobs`" },
  { name: "tools", routes: ["chat"], value: [tool], why: "a chat template without calls" },
  { name: "previous_response_id", routes: ["responses"], value: "resp_1", why: stored },
  { name: "conversation", routes: ["responses"], value: "conv_1", why: stored },
  { name: "prompt", routes: ["responses"], value: { id: "a" }, why: stored },
  { name: "background", routes: ["responses"], value: true, why: stored },
  { name: "truncation", routes: ["responses"], value: "auto", why: "what is too long is refused" },
  { name: "max_tool_calls", routes: ["responses"], value: 1, why: "the server calls nothing itself" },
  { name: "response_format", routes: ["responses"], value: { type: "text" }, why: "`text` took its place" },
  { name: "temprature", routes: ["chat", "completions", "responses", "embeddings"], value: 1, why: "any other name" },
];

/** The part of docs/server.md that is made of them. */
export function fieldsText(): string {
  const where = (routes: readonly string[]): string => routes.join(", ");
  const rows = accepted.map(({ name, routes, about }) => `| \`${name}\` | ${where(routes)} | ${about} |`);
  const others = refused.map(({ name, routes, why }) => `| \`${name}\` | ${where(routes)} | ${why} |`);
  const head = (third: string): string => `| field | routes | ${third} |\n| --- | --- | --- |`;
  return [
    head("what it is"),
    ...rows,
    "",
    "Refused with 400, with the name of the field as `param`:",
    "",
    head("why"),
    ...others,
  ].join("\n");
}
