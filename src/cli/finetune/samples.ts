// What the model writes without the adapter and with it, for the same prompts.
import { generate } from "../../generation/index.js";
import type { Tokenizer } from "../../hub/index.js";
import type { CausalLM } from "../../models/index.js";
import type { PeftModel } from "../../peft/index.js";
import type { Sample } from "../../train/index.js";
import { printable } from "../terminal.js";

/** One prompt. */
export interface BeforeAndAfter {
  readonly prompt: string;
  readonly before: string;
  readonly after: string;
  /** What the data has behind the prompt, where it is from the data. */
  readonly wanted: string | null;
}

interface Prompt {
  readonly ids: Int32Array;
  readonly wanted: Int32Array | null;
}

/** Tokens of an answer. */
const TOKENS = 64;
/** Samples of the data that are shown. */
export const SHOWN = 3;

/** Texts of the given prompts, or of samples from the data. A model with a chat template gets them as messages. */
export async function beforeAndAfter(
  peft: PeftModel<CausalLM>,
  prompts: readonly string[],
  samples: readonly Sample[],
  settings: { chatTemplate: string | undefined; signal: AbortSignal },
): Promise<BeforeAndAfter[]> {
  const { model } = peft;
  const tokenizer = model.tokenizer as Tokenizer;
  const wasTraining = model.training;
  model.eval();
  try {
    const asked =
      prompts.length > 0
        ? await Promise.all(prompts.map((text) => asPrompt(tokenizer, text, settings.chatTemplate)))
        : samples.map(promptOf);
    const results: BeforeAndAfter[] = [];
    for (const { ids, wanted } of asked) {
      const write = (): Promise<string> => textOf(model, tokenizer, ids, settings.signal);
      const before = await peft.withoutAdapters(write);
      const after = await write();
      const shown = async (tokens: Int32Array): Promise<string> => printable(await tokenizer.decode(tokens));
      results.push({ prompt: await shown(ids), before, after, wanted: wanted && (await shown(wanted)) });
    }
    return results;
  } finally {
    model.train(wasTraining);
  }
}

async function asPrompt(tokenizer: Tokenizer, text: string, chatTemplate: string | undefined): Promise<Prompt> {
  const isChat = chatTemplate !== undefined || tokenizer.chatTemplates.size > 0;
  if (!isChat) return { ids: await tokenizer.encode(text), wanted: null };
  const template = chatTemplate === undefined ? {} : { chatTemplate };
  const messages = [{ role: "user", content: text }];
  const whole = await tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true, ...template });
  return { ids: await tokenizer.encode(whole, { addSpecialTokens: false }), wanted: null };
}

/** What stands before the first word that is learned; of a text of which all is learned, its beginning. */
function promptOf({ ids, labels }: Sample): Prompt {
  const first = labels.findIndex((label) => label >= 0);
  const at = first > 1 ? first : Math.min(16, Math.ceil(ids.length / 2));
  return { ids: ids.slice(0, at), wanted: ids.slice(at, at + TOKENS) };
}

async function textOf(model: CausalLM, tokenizer: Tokenizer, ids: Int32Array, signal: AbortSignal): Promise<string> {
  const maxNewTokens = Math.min(TOKENS, model.config.maxPositionEmbeddings - ids.length);
  if (maxNewTokens < 1) return "";
  const written: number[] = [];
  for await (const token of generate(model, ids, { maxNewTokens, doSample: false, signal })) written.push(token);
  return printable(await tokenizer.decode(written, { skipSpecialTokens: true }));
}
