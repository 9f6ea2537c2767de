// POST /v1/completions: texts that go on from prompts, without a template.
import type { Next } from "../generation/branch.js";
import { wrongField } from "./api-error.js";
import type { Call } from "./call.js";
import type { Fields } from "./fields.js";
import { EventStream, sendJson } from "./http.js";
import { newId, now } from "./ids.js";
import { compileFormat } from "./response-format.js";
import type { Served } from "./served.js";
import type { Piece, TextRequest } from "./text-request.js";
import { readIds, readTextRequest, runTexts, toldTokens, usageOf } from "./text-request.js";

export async function completions(fields: Fields, served: Served, call: Call): Promise<void> {
  const prompts = await readPrompts(fields, served, call);
  const echo = fields.flag("echo") ?? false;
  const logprobs = fields.whole("logprobs", 0, 5) ?? null;
  const request = readTextRequest(
    fields,
    served,
    { param: "max_tokens", most: fields.whole("max_tokens", 1), usual: 16 },
    logprobs,
    call,
  );
  fields.refuse("suffix");
  fields.refuse("best_of", (v) => v === request.n);
  fields.ignore("user");
  fields.refuseOthers();
  await compileFormat(served, request.format);
  if (echo && logprobs !== null) throw wrongField("logprobs", "absent with echo", logprobs);
  const before = echo ? await Promise.all(prompts.map((ids) => served.tokenizer.decode(ids))) : [];
  const textBefore = (index: number): string => before[Math.floor(index / request.n)] ?? "";
  const head = { id: newId("cmpl"), object: "text_completion", created: now(), model: served.name };
  const pieces = runTexts(served, prompts, request, call);
  if (request.stream) return streamed(head, served, prompts, pieces, request, textBefore, call);
  const choices = Array.from({ length: prompts.length * request.n }, (_, i) => ({
    text: textBefore(i),
    tokens: [] as Next[],
    offsets: [] as number[],
    finish: "stop",
  }));
  for await (const { index, text, next, finish } of pieces) {
    const choice = choices[index] as (typeof choices)[number];
    if (next) {
      choice.tokens.push(next);
      choice.offsets.push(choice.text.length);
    }
    choice.text += text;
    if (finish) choice.finish = finish;
  }
  const made = choices.reduce((sum, { tokens }) => sum + tokens.length, 0);
  sendJson(call.response, 200, {
    ...head,
    choices: await Promise.all(
      choices.map(async ({ text, tokens, offsets, finish }, index) => ({
        index,
        text,
        logprobs: await logprobsOf(served, tokens, offsets, request),
        finish_reason: finish,
      })),
    ),
    usage: usageOf(prompts, made, call),
  });
}

async function streamed(
  head: object,
  served: Served,
  prompts: readonly Int32Array[],
  pieces: AsyncIterable<Piece>,
  request: TextRequest,
  textBefore: (index: number) => string,
  call: Call,
): Promise<void> {
  const events = new EventStream(call.response);
  const usage = request.includeUsage ? { usage: null } : {};
  const chunk = (index: number, text: string, finish: string | null, logprobs: object | null = null): object => ({
    ...head,
    choices: [{ index, text, logprobs, finish_reason: finish }],
    ...usage,
  });
  const lengths = Array.from({ length: prompts.length * request.n }, () => 0);
  let made = 0;
  for (const index of lengths.keys()) {
    const text = textBefore(index);
    if (text !== "") await events.send(chunk(index, text, null));
    lengths[index] = text.length;
  }
  for await (const { index, text, next, finish } of pieces) {
    if (next) made++;
    const logprobs = next && (await logprobsOf(served, [next], [lengths[index] as number], request));
    lengths[index] = (lengths[index] as number) + text.length;
    if (text !== "" || logprobs || finish) await events.send(chunk(index, text, finish, logprobs));
  }
  if (request.includeUsage) await events.send({ ...head, choices: [], usage: usageOf(prompts, made, call) });
  await events.send("[DONE]");
  events.end();
}

async function logprobsOf(
  { tokenizer }: Served,
  tokens: readonly Next[],
  offsets: number[],
  { logprobs }: TextRequest,
) {
  if (logprobs === null) return null;
  const told = await toldTokens(tokenizer, tokens, logprobs);
  return {
    tokens: told.map(({ token }) => token),
    token_logprobs: told.map(({ logprob }) => logprob),
    // By their texts, of which the likelier counts; the token that came is always there.
    top_logprobs: told.map((one) => {
      const byText = new Map<string, number>();
      for (const { token, logprob } of [...one.likeliest, one]) {
        if (!byText.has(token)) byText.set(token, logprob);
      }
      return Object.fromEntries(byText);
    }),
    text_offset: offsets,
  };
}

/** A text, texts, token ids, or lists of them. */
async function readPrompts(fields: Fields, served: Served, call: Call): Promise<Int32Array[]> {
  const prompt = fields.raw("prompt");
  const isIds = (value: unknown): value is number[] => Array.isArray(value) && value.every(Number.isInteger);
  const isOne = typeof prompt === "string" || (isIds(prompt) && prompt.length > 0);
  const list: unknown[] = isOne ? [prompt] : Array.isArray(prompt) ? prompt : [];
  const isGood = list.length > 0 && list.every((one) => typeof one === "string" || isIds(one));
  if (!isGood) throw wrongField("prompt", "a text, texts, token ids, or lists of token ids", prompt);
  // More than have room are not worth encoding.
  call.place?.grow(list.length);
  return Promise.all(list.map((one) => readIds("prompt", one, served)));
}
