// Text generation as an async iterator: one step and one awaited read per token, so that the event loop turns between
// tokens however long the text becomes.
import type { CausalLM } from "../models/index.js";
import { aBoolean, checkArgument } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { aModel, Engine } from "./engine.js";
import type { EngineOptions } from "./engine-options.js";
import { kvDtypeCheck } from "./kv-pages.js";
import type { Prompt, TextPrompt } from "./prompt.js";
import { encodePrompt, isText } from "./prompt.js";
import type { TextOptions } from "./settings.js";
import { newTokens, refuseMany, settingsOf, textChecks, throwIfAborted } from "./settings.js";

/** Options of `generate` and `complete`. */
export interface GenerateOptions extends TextOptions, Pick<EngineOptions, "graph" | "kvDtype" | "deterministic"> {}

/** @internal */
export const generateChecks = { ...textChecks, graph: aBoolean, kvDtype: kvDtypeCheck, deterministic: aBoolean };
const generateTable = optionTable<GenerateOptions>(generateChecks);

/**
 * Yields what follows `prompt`: pieces of text for a text or for the messages of a conversation, tokens for token ids.
 * Several texts at once are faster in `complete`, or in one `Engine`.
 *
 * A piece never ends within a character. The text ends before the tokens and strings that end it (`eosTokenId`,
 * `stopStrings`); among tokens the one that ends them is the last. Put the model in `eval()` first (`fromPretrained` has):
 * dropout stays as it is. All memory of a generation is freed when it ends, is aborted or is left early (`break`).
 *
 * @example
 * for await (const piece of generate(model, "Once upon a time", { doSample: true, seed: 1 })) process.stdout.write(piece);
 * for await (const token of generate(model, [72, 105], { maxNewTokens: 20 })) console.log(token);
 */
export function generate(
  model: CausalLM,
  prompt: TextPrompt,
  options?: GenerateOptions,
): AsyncGenerator<string, void, undefined>;
export function generate(
  model: CausalLM,
  prompt: Prompt,
  options?: GenerateOptions,
): AsyncGenerator<number, void, undefined>;
export async function* generate(
  model: CausalLM,
  prompt: Prompt | TextPrompt,
  options: GenerateOptions = {},
): AsyncGenerator<string | number, void, undefined> {
  const op = "generate";
  checkArgument(op, "model", model, aModel);
  checkOptions(op, options, generateTable);
  const { graph, kvDtype, deterministic, ...text } = options;
  const settings = settingsOf(op, model, text);
  refuseMany(op, settings);
  const wantsText = isText(prompt);
  const ids = await encodePrompt(op, model, prompt);
  throwIfAborted(op, settings.config.signal);
  const count = newTokens(op, ids.length, settings, model.config.maxPositionEmbeddings);
  if (count === 0) return;
  // Alone, it has nothing to share, and nobody waits while its prompt is computed.
  const alone = { maxSequences: 1, stepTokens: 4096, stepMs: Infinity, sharePrefixes: false };
  using engine = new Engine(model, {
    ...alone,
    maxLength: ids.length + count - 1,
    ...(graph !== undefined && { graph }),
    ...(kvDtype !== undefined && { kvDtype }),
    ...(deterministic !== undefined && { deterministic }),
  });
  for await (const { next, text } of engine.run(op, ids, settings, { wantsText })) {
    if (!wantsText && next) yield next.id;
    else if (wantsText && text) yield text;
  }
}
