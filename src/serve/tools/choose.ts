// Which way of writing calls a model knows: its chat template shows it.
import type { Tokenizer } from "../../hub/index.js";
import type { ToolDialect } from "./dialect.js";
import { hermes } from "./hermes.js";
import { llama3 } from "./llama3.js";
import { mistralList, mistralMarked } from "./mistral.js";
import { qwen3Coder } from "./qwen3-coder.js";

/** Ways of writing calls, by families of models. */
export const toolFormats = ["hermes", "llama3", "mistral", "qwen3-coder"] as const;
export type ToolFormat = (typeof toolFormats)[number];

/** Null where the template shows none that is known. */
export function chooseDialect({ chatTemplates }: Tokenizer, format?: ToolFormat): ToolDialect | null {
  const template = chatTemplates.get("tool_use") ?? chatTemplates.get("default") ?? "";
  const has = (text: string): boolean => template.includes(text);
  switch (format ?? formatOf(has)) {
    case "hermes":
      return hermes;
    case "llama3":
      return llama3;
    case "qwen3-coder":
      return qwen3Coder;
    case "mistral":
      return has("[ARGS]") ? mistralMarked : mistralList(has("[TOOL_CALLS] ") ? " " : "");
    default:
      return null;
  }
}

function formatOf(has: (text: string) => boolean): ToolFormat | null {
  if (has("[TOOL_CALLS]")) return "mistral";
  // Some write arguments as XML between the same tags.
  if (has("<tool_call>")) return has("<function=") ? "qwen3-coder" : "hermes";
  return has("<|python_tag|>") || has('{"name": function name, "parameters"') ? "llama3" : null;
}
