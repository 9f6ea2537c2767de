// Mistral: [TOOL_CALLS] [{"name": "f", "arguments": {...}}, ...], or, since 2025, [TOOL_CALLS]f[ARGS]{...}. Its ids have nine
// letters and digits.
import { randomInt } from "node:crypto";
import type { ToolDialect, ToolFunction } from "./dialect.js";
import { jsonText, oneOrMore, tagOf, textWith } from "./dialect.js";

const marker = "[TOOL_CALLS]";
const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const newId = (): string => Array.from({ length: 9 }, () => letters[randomInt(letters.length)]).join("");

/** A list of calls behind a marker; `space`: whether there is one between them. */
export function mistralList(space: "" | " "): ToolDialect {
  const list = (functions: readonly ToolFunction[], isParallel: boolean) => {
    const tags = functions.map((one) => tagOf(one, `{"name": "${one.name}", "arguments": `, "}"));
    return { type: "tag", begin: `${marker}${space}[`, content: oneOrMore(tags, ", ", isParallel), end: "]" };
  };
  return {
    markers: [marker],
    shape: {
      triggers: [marker],
      head: new RegExp(
        `^(?:\\[TOOL_CALLS\\]\\s*\\[)?\\s*\\{\\s*"name"\\s*:\\s*"${jsonText}"\\s*,\\s*"arguments"\\s*:\\s*`,
      ),
      more: /^\s*\}\s*,\s*(?=\{)/,
      done: /^\s*\}\s*\]/,
    },
    calls: list,
    textWithCalls: (functions, isParallel) => textWith([marker], [list(functions, isParallel)], false),
    newId,
  };
}

/** A marker for each call. */
export const mistralMarked: ToolDialect = {
  markers: [marker, "[ARGS]"],
  shape: { triggers: [marker], head: /^\[TOOL_CALLS\]([^[\s]+)\[ARGS\]/, more: null, done: /^/ },
  calls: (functions, isParallel) => {
    const tags = functions.map((one) => tagOf(one, `${one.name}[ARGS]`, ""));
    const elements = [{ type: "const_string", value: marker }, oneOrMore(tags, marker, isParallel)];
    return { type: "sequence", elements };
  },
  textWithCalls: (functions, isParallel) => {
    const tags = functions.map((one) => tagOf(one, `${marker}${one.name}[ARGS]`, ""));
    return textWith([marker], tags, isParallel);
  },
  newId,
};
