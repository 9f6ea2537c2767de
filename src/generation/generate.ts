// Text generation as an async iterator: one step and one awaited read per token, so that the event loop turns between
// tokens however long the text becomes.
import type { CausalLM } from "../models/index.js";
import { aBoolean, checkArgument } from "../tensor/checks.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { EngineOptions } from "./engine.js";
import { aModel, Engine } from "./engine.js";
import { kvDtypeCheck } from "./kv-pages.js";
import type { Prompt, TextOptions } from "./text-options.js";
import { newTokens, promptIds, textChecks, throwIfAborted } from "./text-options.js";

/** Options of `generate`. */
export interface GenerateOptions extends TextOptions, Pick<EngineOptions, "graph" | "kvDtype"> {}

const generateOptions = optionTable<GenerateOptions>({ ...textChecks, graph: aBoolean, kvDtype: kvDtypeCheck });

/**
 * Yields the tokens that follow `prompt`, one by one. Several texts at once are faster in one `Engine`.
 *
 * Put the model in `eval()` first: dropout stays as it is. All memory of a generation is freed when it ends,
 * is aborted or is left early (`break`).
 *
 * @example
 * for await (const token of generate(model, [72, 105], { temperature: 0.8, topP: 0.9, seed: 1 })) print(token);
 */
export async function* generate(
  model: CausalLM,
  prompt: Prompt,
  options: GenerateOptions = {},
): AsyncGenerator<number, void, undefined> {
  checkArgument("generate", "model", model, aModel);
  checkOptions("generate", options, generateOptions);
  const { graph, kvDtype, ...text } = options;
  const ids = promptIds(prompt, model.config);
  throwIfAborted(text.signal);
  const count = newTokens(ids.length, text.maxNewTokens ?? 128, model.config.maxPositionEmbeddings);
  if (count === 0) return;
  const maxLength = ids.length + count - 1;
  // Alone, it has nothing to share, and nobody waits while its prompt is computed.
  const alone = { maxSequences: 1, stepTokens: 4096, sharePrefixes: false };
  using engine = new Engine(model, {
    ...alone,
    maxLength,
    ...(graph !== undefined && { graph }),
    ...(kvDtype !== undefined && { kvDtype }),
  });
  yield* engine.submit(ids, text);
}
