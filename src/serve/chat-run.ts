// The texts of a conversation, and the calls of functions in them: what chat completions and responses have in common.
import type { Next } from "../generation/branch.js";
import type { FinishReason } from "../generation/text.js";
import type { ChatMessage, Tokenizer } from "../hub/index.js";
import type { Call } from "./call.js";
import { compileFormat } from "./response-format.js";
import type { Served } from "./served.js";
import type { TextRequest, ToldToken } from "./text-request.js";
import { runTexts, toldTokens } from "./text-request.js";
import type { Delta } from "./tools/call-parser.js";
import { CallParser } from "./tools/call-parser.js";
import type { ToolDialect } from "./tools/dialect.js";
import type { ToolUse } from "./tools/read-tools.js";

/** What is asked for. */
export interface ChatJob {
  readonly messages: readonly ChatMessage[];
  /** Of the chat template. */
  readonly variables: Readonly<Record<string, unknown>>;
  readonly tools: ToolUse | null;
  readonly request: TextRequest;
}

/** What a token adds to text `index`. */
export interface ChatPiece {
  readonly index: number;
  readonly deltas: readonly Delta[];
  readonly next: Next | null;
  /** The last piece of a text says why it ended. */
  readonly finish: FinishReason | "tool_calls" | null;
}

export interface RunningChat {
  readonly prompt: Int32Array;
  readonly pieces: AsyncGenerator<ChatPiece, void, undefined>;
}

/** Throws for what cannot be begun. */
export async function startChat(served: Served, job: ChatJob, call: Call): Promise<RunningChat> {
  const { messages, variables, tools } = job;
  const { tokenizer } = served;
  const request = tools
    ? { ...job.request, format: tools.format, markers: await markersOf(tokenizer, tools.dialect) }
    : job.request;
  await compileFormat(served, request.format);
  const text = await tokenizer.applyChatTemplate(messages, {
    addGenerationPrompt: true,
    variables,
    ...(tools && { tools: tools.described }),
  });
  const prompt = await tokenizer.encode(text, { addSpecialTokens: false }); // the template has them in it
  return { prompt, pieces: parsed(runTexts(served, [prompt], request, call), tools, request.n) };
}

async function* parsed(
  pieces: ReturnType<typeof runTexts>,
  tools: ToolUse | null,
  n: number,
): AsyncGenerator<ChatPiece, void, undefined> {
  const parsers = Array.from({ length: tools ? n : 0 }, () => parserOf(tools as ToolUse));
  for await (const { index, text, next, finish } of pieces) {
    const parser = parsers[index];
    if (!parser) {
      yield { index, deltas: text === "" ? [] : [{ type: "text", text }], next, finish };
      continue;
    }
    const deltas = [...parser.push(text), ...(finish ? parser.end() : [])];
    yield { index, deltas, next, finish: finish === "stop" && parser.calls > 0 ? "tool_calls" : finish };
  }
}

function parserOf({ dialect: { shape, reader }, functions }: ToolUse): CallParser {
  return new CallParser(shape, reader && ((name) => reader(functions.find((one) => one.name === name))));
}

/** Special tokens that stand in calls: others are left out of texts. */
async function markersOf(tokenizer: Tokenizer, { markers }: ToolDialect): Promise<ReadonlyMap<number, string>> {
  const found = new Map<number, string>();
  for (const name of markers) {
    const id = await tokenizer.tokenToId(name);
    if (id === null) continue;
    if ((await tokenizer.decode([id], { skipSpecialTokens: true })) === "") found.set(id, name);
  }
  return found;
}

/** Log-probabilities of tokens, as the API tells them; null where they were not asked for. */
export async function logprobsOf({ tokenizer }: Served, tokens: readonly Next[], { logprobs }: TextRequest) {
  if (logprobs === null) return null;
  const entry = ({ token, bytes, logprob }: ToldToken) => ({ token, bytes, logprob });
  const told = await toldTokens(tokenizer, tokens, logprobs);
  const content = told.map((one) => ({ ...entry(one), top_logprobs: one.likeliest.map(entry) }));
  return { content, refusal: null };
}
